"""``brittle status``: how far a run is."""

import json
import sys

from cyclopts import App

from jobs.examples import examples
from jobs.launch import sentence
from jobs.recorded import RecordedRun, open_run, runs_below
from workers.places import Place

__all__ = ["app"]

app = App(
    name="status",
    help="""Show how far a run is and what it has found so far; of an evaluation, a detection or an experiment, all of
    its runs.
    """,
    help_epilogue=examples(
        "brittle status RUN",
        "brittle status DETECTION",
    ),
)


@app.default
def status(run: str) -> int:
    """
    Args:
        run: The run's folder, or its URI; or a local folder with runs in it.
    """
    for name, found in runs_below(run):
        tell(name, open_run(found))
    place = Place.of(run)
    if place.local and (place.path / "verdict.json").exists():
        print(f"verdict: {json.loads((place.path / 'verdict.json').read_text())['verdict']}")
    return 0


def tell(name: str, recorded: RecordedRun) -> None:
    """Prints what is known of a run."""
    plan, folder = recorded.plan, recorded.folder
    from analysis.reservations import reservations
    from analysis.summary import SUMMARISED, summarise

    done, tables = folder.read(plan, (*SUMMARISED, "target"))
    rows = sum(plan.part_rows(shard) for shard in done)
    state = "complete" if len(done) == plan.shards else "running" if folder.busy() else "stopped, resumable"
    print(f"{name}: {state}, {rows} of {plan.rows} rows, {len(done)} of {plan.shards} shards")
    for damaged in folder.damaged(done):
        print(f"{damaged} is damaged, or another run's; the run's next start searches again what it should hold")
    for attack, table, beside in zip(recorded.attacks, tables, folder.beside(plan), strict=True) if done else ():
        summary = summarise(table)
        print(sentence(attack, plan.frozen["target"], summary))
        if summary.first_error:
            print(f"the first failure: {summary.first_error}")
        for said in reservations(table, beside):
            print(said)
    for check in recorded.checks:
        print(check)


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["status", *sys.argv[1:]]))
