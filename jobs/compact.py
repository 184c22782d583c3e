"""``brittle compact``: merge a run's many small parts into few large ones."""

import sys

from cyclopts import App

from jobs.examples import examples
from jobs.progress import progress
from jobs.recorded import open_run, runs_below
from workers.errors import WrongInput

__all__ = ["app"]

app = App(
    name="compact",
    help="""Merge a run's many small parts into few large ones.

    Rows stay as they are, and a run that is not complete stays resumable. Whenever it is interrupted or killed no
    row is lost or doubled for brittle's own commands; the same command, or the run's next start, does the rest.
    """,
    help_epilogue=examples(
        "brittle compact RUN",
        "brittle compact s3://bucket/RUN",
    ),
)


@app.default
def compact(run: str) -> int:
    """
    Args:
        run: The run's folder, or its URI; or a local folder with runs in it, all of which are merged.
    """
    opened = [(name, open_run(place)) for name, place in runs_below(run)]
    for name, recorded in opened:
        folder, plan = recorded.folder, recorded.plan
        with folder.locked():
            folder.sweep(plan)
            count = folder.compactable(plan)
            if not count:
                raise WrongInput(f"{name}: has no results yet")
            with progress(count, "merging", "files") as bar:
                left = folder.compact(plan, bar.advance)
        print(f"{name}: {count} files are now {left}")
    return 0


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["compact", *sys.argv[1:]]))
