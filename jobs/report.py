"""``brittle report``: runs as one self-contained page."""

import re
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cyclopts import App

from jobs.attack import flag_of
from jobs.examples import examples
from jobs.recorded import RecordedRun, open_runs, require_one_subject, require_runs
from jobs.subject import Subject
from jobs.typed import command as typed
from jobs.typed import flags, path, word
from workers.errors import WrongInput
from workers.files import require_place, write_whole
from workers.remedies.remedies import NONE
from workers.results import Status

if TYPE_CHECKING:
    from analysis.exhibits import Exhibit
    from analysis.run_view import RunView
    from analysis.statistics import Rate
    from analysis.summary import Summary

__all__ = ["app", "run_views", "write_files", "write_page"]

app = App(
    name="report",
    help="""Write runs of one model and data set as one self-contained HTML page.
    """,
    help_epilogue=examples(
        "brittle report RUN_A RUN_B --out page.html --open",
        "brittle report RUN --out page.html --files figures",
    ),
)


@app.default
def report(runs: list[str], /, *, out: Path | None = None, open: bool = False, files: Path | None = None) -> int:
    """
    Args:
        runs: Folders of runs, or their URIs; all of one model and one data set.
        out: The page; page.html, where there is none yet, if not given.
        open: Show it in the browser.
        files: Folder for its figures as PNG and SVG and its tables as Parquet and CSV.
    """
    from analysis.figures.runs import run_exhibits

    recorded = open_runs(require_runs(runs))
    require_one_subject(recorded)
    if out is None:
        out = Path("page.html")
        if out.exists():
            raise WrongInput(f"{out}: is there already; --out {out} writes over it, --out NAME elsewhere")
    if files is not None:
        if files.exists() and not files.is_dir():
            raise WrongInput(f"--files {files}: expected a folder, is a file")
        require_place(files)
    subject, views = recorded[0].subject(), run_views(recorded)
    exhibits = run_exhibits(views, subject.dataset)
    command = typed("report", *(path(run.folder.place) for run in recorded), "--out", path(out))
    write_page(recorded, subject, out, command=command, findings=_findings(views), exhibits=exhibits)
    print(f"page in {out}")
    if files is not None:
        write_files(views, exhibits, files)
        print(f"figures and tables in {files}")
    if open:
        webbrowser.open(out.resolve().as_uri())
    return 0


def write_page(
    runs: Sequence[RecordedRun],
    subject: Subject,
    out: Path,
    *,
    command: str,
    findings: Sequence[str] = (),
    exhibits: "Sequence[Exhibit]" = (),
    left: "Mapping[str, Rate] | None" = None,
) -> None:
    """Renders runs into one file, whole or not at all.

    Args:
        runs: all of one model and one data set.
        subject: theirs.
        out: the page.
        command: what makes the page, as typed.
        findings: what they come to together, a sentence each, the first as a heading; none when empty.
        exhibits: what supports them, in the order shown.
        left: by the name of a run, the robust accuracy that it and the runs before it left; None where each run
            searched all images.

    Raises:
        WrongInput: when a run has no rows, or the file cannot be written.
    """
    from analysis.page import render
    from analysis.summary import clean_accuracy
    from workers.evaluation.answers import answers

    if out.is_dir():
        raise WrongInput(f"--out {out}: is a folder; expected the name of a page")
    require_place(out.parent)
    views = [replace(view, left=(left or {}).get(view.name)) for view in run_views(runs)]
    if subject.recipe.remedies.answering:  # each answer takes many: only the images of the runs are asked about again
        ids = np.unique(np.concatenate([run.plan.ids for run in runs]))
        accuracy = clean_accuracy(answers(subject.model, subject.dataset.images[ids]), subject.dataset.labels[ids])
    else:
        accuracy = subject.accuracy
    html = render(
        views,
        subject.recipe,
        subject.dataset,
        accuracy,
        findings=findings,
        exhibits=exhibits,
        command=command,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, html.encode())
    except OSError as error:
        raise WrongInput(f"--out {out}: {error.strerror}") from None


def write_files(views: "Sequence[RunView]", exhibits: "Sequence[Exhibit]", folder: Path) -> None:
    """Writes exhibits, and the rows of runs without their images, as ``rows.parquet`` and ``rows.csv``.

    Raises:
        WrongInput: when a file cannot be written.
    """
    import pyarrow as pa

    from analysis.exhibits import Exhibit, write_exhibits

    tables = []
    for view in views:
        named = pa.array([view.name] * len(view.table))
        rows = view.table.drop_columns(["adversarial", "shape"]).add_column(0, "run", named)
        tables.append(rows.set_column(rows.column_names.index("status"), "status", rows["status"].cast(pa.string())))
    rows = Exhibit("rows", "All rows", "", table=pa.concat_tables(tables))
    try:
        write_exhibits([*exhibits, rows], folder)
    except OSError as error:
        raise WrongInput(f"--files {folder}: {error.strerror}") from None


def run_views(runs: Sequence[RecordedRun]) -> "list[RunView]":
    """Runs as pages and figures take them, one at each budget.

    Raises:
        WrongInput: when one has no rows.
    """
    from analysis.run_view import RunView

    return [
        RunView(
            place=run.folder.place,
            name=run.name,
            key=run.key,
            attack=attack,
            target=run.plan.frozen["target"],
            planned=len(run.plan.ids),
            table=table,
            checks=run.checks,
            by_products=beside,
            command=_command(run),
            command_of_row=_command_of_row(run),
        )
        for run in runs
        for (attack, table), beside in zip(run.tables, run.by_products, strict=True)
    ]


def _findings(views: "Sequence[RunView]") -> list[str]:
    """The run that succeeds on the largest share of its images, and what is certified."""
    from analysis.reservations import reservations
    from analysis.summary import asked_rows, summarise

    found = [(view, summarise(view.table)) for view in views]
    searched = [(view, summary) for view, summary in found if summary.searched]
    if not searched:
        return ["No image was searched to an end"]
    strongest, summary = max(searched, key=lambda each: each[1].success.low or 0)
    images = {frozenset(asked_rows(view.table)["image_id"].to_pylist()) for view, _ in searched}
    left = len(images) > 1 and any(not view.command for view, _ in searched)  # by an evaluation: what others left
    rank = "" if left else _rank(summary, [each for _, each in searched])
    sentences = [f"{strongest.title}: success on {summary.success}{rank}"]
    if left:
        sentences.append(
            "These runs searched the images chosen for each by another command, so their success rates do not rank the "
            "attacks"
        )
    for view, summary in searched:
        if certified := summary.counts.get(Status.CERTIFIED):
            rate = replace(summary.success, hits=certified, unknown=0)
            sentences.append(f"{view.title}: it is certified that no change of its space succeeds on {rate}")
        sentences += [f"{view.title}: {said}" for said in reservations(view.table, view.by_products)]
    return sentences


def _rank(strongest: "Summary", searched: "Sequence[Summary]") -> str:
    """What is sure of the strongest beside others: that it succeeds most, or as often as some; empty where neither."""
    least = strongest.success.low or 0
    others = [each.success for each in searched if each is not strongest]
    if not others or any((rate.high or 0) > least for rate in others):
        return ""
    same = sum(rate.high == least for rate in others)
    return ", the most of these attacks" + f", as {same} more" * (same > 0)


def _command(run: RecordedRun) -> str:
    """What makes the run, as typed; empty when its images were chosen by another command."""
    frozen = run.plan.frozen
    if frozen["ids"] and not re.fullmatch(r"[\d,]+", frozen["ids"]):
        return ""
    words = flags({name: frozen[name] for name in ("label", "ids", "limit", "target")})
    if frozen["correct"]:
        words.append("--correct")
    return typed(*_search(run), *words, "--out", path(run.folder.place))


def _command_of_row(run: RecordedRun) -> str:
    return typed(*_search(run))


def _search(run: RecordedRun) -> list[str]:
    """The words behind ``brittle`` that name a run's attack, model, data and seed."""
    frozen, recorded = run.plan.frozen, run.plan.recorded
    parameters, budget = dict(frozen["parameters"]), run.attacks[0].BUDGET
    if budget and isinstance(values := parameters.get(budget), list):
        parameters[budget] = ",".join(map(word, values))
    words = ["attack", frozen["attack"]]
    words += flags({name: recorded[name] for name in ("model", "weights", "data", "mean", "std")})
    words += flags({"split": None if frozen["split"] == "all" else frozen["split"], "layout": recorded.get("layout")})
    words += flags(parameters, flag_of)
    words += flags({"seed": frozen["seed"] or None})
    if run.remedies == NONE and run.probe.remedies != NONE:
        words.append("--as-given")
    return words


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["report", *sys.argv[1:]]))
