"""``brittle report``: runs as one self-contained page."""

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cyclopts import App

from jobs.examples import examples
from jobs.recorded import RecordedRun, open_run
from jobs.subject import Subject
from workers.errors import WrongInput
from workers.files import require_place, write_whole
from workers.places import Place
from workers.remedies.checks import State

__all__ = ["app", "write_page"]

app = App(
    name="report",
    help="""Write runs of one model and data set as one self-contained HTML page.
    """,
    help_epilogue=examples(
        "brittle report RUN_A RUN_B --out page.html --open",
    ),
)


@app.default
def report(runs: list[str], /, *, out: Path = Path("page.html"), open: bool = False) -> int:
    """
    Args:
        runs: Folders of runs, or their URIs; all of one model and one data set.
        out: The page.
        open: Show it in the browser.
    """
    recorded = [open_run(Place.of(run)) for run in runs]
    for other in recorded[1:]:
        for what in ("model", "data", "split"):
            if other.plan.frozen[what] != recorded[0].plan.frozen[what]:
                raise WrongInput(f"{other.folder.place}: another {what} than {recorded[0].folder.place}")
    write_page(recorded, recorded[0].subject(), out)
    print(f"page in {out}")
    if open:
        webbrowser.open(out.resolve().as_uri())
    return 0


def write_page(runs: list[RecordedRun], subject: Subject, out: Path, *, findings: Sequence[str] = ()) -> None:
    """Renders runs into one file, whole or not at all.

    Args:
        runs: all of one model and one data set.
        subject: theirs.
        out: the page.
        findings: what they come to together, a sentence each, the first as a heading; none when empty.

    Raises:
        WrongInput: when a run has no rows, or the file cannot be written.
    """
    from analysis.page import RunView, render
    from workers.evaluation.answers import answers

    if out.is_dir():
        raise WrongInput(f"--out {out}: is a folder; expected the name of a page")
    require_place(out.parent)
    views = [
        RunView(
            place=run.folder.place,
            attack=attack,
            target=run.plan.frozen["target"],
            planned=len(run.plan.ids),
            table=table,
            checks=[str(check) for check in run.probe.checks if check.state != State.PASSED],
        )
        for run in runs
        for attack, table in run.tables()
    ]
    if subject.recipe.remedies.answering:  # each answer takes many: only the images of the runs are asked about again
        ids = np.unique(np.concatenate([run.plan.ids for run in runs]))
        correct = answers(subject.model, subject.dataset.images[ids]) == subject.dataset.labels[ids]
    else:
        correct = subject.correct
    html = render(views, subject.recipe, subject.dataset, correct, findings=findings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, html.encode())
    except OSError as error:
        raise WrongInput(f"--out {out}: {error.strerror}") from None


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["report", *sys.argv[1:]]))
