"""``brittle status``: how far a run is."""

import sys

from cyclopts import App

from jobs.examples import examples
from jobs.launch import sentence
from jobs.recorded import open_run
from workers.places import Place

__all__ = ["app"]

app = App(
    name="status",
    help="""Show how far a run is and what it has found so far.
    """,
    help_epilogue=examples(
        "brittle status RUN",
    ),
)


@app.default
def status(run: str) -> int:
    """
    Args:
        run: The run's folder, or its URI.
    """
    recorded = open_run(Place.of(run))
    plan, folder = recorded.plan, recorded.folder
    from analysis.summary import SUMMARISED, summarise

    done, tables = folder.read(plan, SUMMARISED)
    rows = sum(plan.part_rows(shard) for shard in done)
    state = "complete" if len(done) == plan.shards else "running" if folder.busy() else "stopped, resumable"
    print(f"{run}: {state}, {rows} of {plan.rows} rows, {len(done)} of {plan.shards} shards")
    for name in folder.damaged(done):
        print(f"{name} is damaged, or another run's; the run's next start searches again what it should hold")
    for attack, table in zip(recorded.attacks, tables, strict=True) if done else ():
        summary = summarise(table)
        print(sentence(attack, plan.frozen["target"], summary))
        if summary.first_error:
            print(f"the first failure: {summary.first_error}")
    return 0


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["status", *sys.argv[1:]]))
