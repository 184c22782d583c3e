"""``brittle verify``: replay every stored image of a run."""

import sys
from pathlib import Path

from cyclopts import App

from jobs.examples import examples
from jobs.progress import progress
from jobs.recorded import RecordedRun, open_run, runs_below
from workers.results import Status

__all__ = ["app"]

REPLAYED = 16
"""Batches of the model that are read at once."""

app = App(
    name="verify",
    help="""Replay every stored image of a run through its model and compare each row.

    Labels, predictions, confidences, distances, success and the attack's budget are computed anew; floats may
    differ by 1e-4. Exit code 1 names the first row that differs, or the shards that a run still lacks.
    """,
    help_epilogue=examples(
        "brittle verify RUN",
    ),
)


@app.default
def verify(run: str, *, model: str | None = None, weights: Path | None = None, data: str | None = None) -> int:
    """
    Args:
        run: The run's folder, or its URI; or a local folder with runs in it, as of an evaluation, all of which are
            replayed.
        model: Where the run's model is now, if it moved.
        weights: Where its weights are now, for a model given as module:function.
        data: Where the run's data is now, if it moved.
    """
    opened = [(name, open_run(place)) for name, place in runs_below(run)]
    return max(_replay(name, recorded, model, weights, data) for name, recorded in opened)


def _replay(run: str, recorded: RecordedRun, model: str | None, weights: Path | None, data: str | None) -> int:
    """Replays one run and says what came of it; the exit code."""
    plan = recorded.plan
    done = recorded.folder.done(plan)
    subject = recorded.subject(model, weights, data)
    from analysis.replay import first_difference
    from analysis.reservations import reservations
    from analysis.summary import summarise

    rows, failed = sum(plan.part_rows(shard) for shard in done), 0
    with progress(rows, "replaying", "rows") as bar:
        for tables in recorded.folder.batches(plan, REPLAYED * plan.frozen["batch"]):
            for attack, table in zip(recorded.attacks, tables, strict=True):
                failed += summarise(table).counts.get(Status.FAILED, 0)
                difference = first_difference(
                    table,
                    attack,
                    plan.frozen["seed"],
                    subject.dataset,
                    subject.model,
                    block=plan.frozen["block"],
                    batch=plan.frozen["batch"],
                    on_rows=bar.advance,
                )
                if difference:
                    print(f"{run}: differs: {difference}")
                    return 1
    if len(done) < plan.shards:
        print(f"{run}: {rows} rows agree, but {plan.shards - len(done)} of {plan.shards} shards are not done")
        return 1
    _, tables = recorded.folder.read(plan, ("image_id", "target", "status"))
    for table, beside in zip(tables, recorded.folder.beside(plan), strict=True):
        for said in reservations(table, beside):
            print(f"{run}: {said}")
    print(f"{run}: all {rows} rows agree with the model" + (f"; {failed} of them failed in the search" * (failed > 0)))
    return 0


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["verify", *sys.argv[1:]]))
