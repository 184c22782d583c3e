"""``brittle run``: the seed's whole experiment, ending with the page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from analysis.claims import SeedRun, claims, claims_exhibit
from jobs.analyze import AnalysisOptions, analysed
from jobs.detect import Judged, Question, judge
from jobs.examples import examples
from jobs.exits import Exit
from jobs.interruption import keeping
from jobs.launch import Selection, Where, WorkerHost, launch
from jobs.progress import Parts, say
from jobs.recorded import RecordedRun, open_runs
from jobs.report import run_views, write_page
from jobs.subject import Subject, SubjectOptions, load_subject
from jobs.train import train_model
from jobs.typed import changed, flags, path
from jobs.typed import command as typed
from workers.attacks import DDN, FGSM, JSMA, PGD, Attack, DifferentialEvolution, IterativeFGSM, OnePixelExact
from workers.errors import WrongInput
from workers.files import require_place
from workers.images import Layout
from workers.places import Place
from workers.results import Status
from workers.sources import is_single_file, load_data

__all__ = ["app"]

app = App(
    name="run",
    help="""The seed's experiment on real data, from training to the page.

    Trains the CNN (or reuses it), attacks ten correctly classified 2s and a larger mixed sample, maps their
    representations and activations, and writes the page, the seed's claims first. --full does all of it at the seed's
    own sizes, with the exact one-pixel search, and trains, attacks and judges the seed's detector. What is finished is
    reused, so a second start takes seconds.
    """,
    help_epilogue=examples(
        "brittle run --out experiment",
        "brittle run --full --out experiment-full",
        "brittle run --full --detector vae-kl,epochs=5 --sample 50 --out experiment-full",
    ),
)


class Sizes(NamedTuple):
    """What differs between the quick form and the full one."""

    population: int
    generations: int
    points: int


QUICK = Sizes(population=400, generations=75, points=2000)
FULL = Sizes(population=5000, generations=400, points=10_000)


DETECTOR = "vae-kl"
"""The seed's."""


class ExperimentOptions(BaseModel):
    """The experiment's sizes; the defaults keep it to minutes on two cores."""

    model_config = ConfigDict(extra="forbid")

    full: bool = Field(
        False, description="All systems at the seed's sizes, the detector's training and adaptive attacks included."
    )
    epochs: int = Field(12, ge=1, le=10_000, description="Training epochs.")
    label: int = Field(2, ge=0, description="Class of the ten images.")
    target: int = Field(6, ge=0, description="Class they are to become.")
    sample: int = Field(100, ge=1, description="Size of the mixed sample, and of the detector's attacked images.")
    population: int | None = Field(
        None,
        ge=4,
        description=f"Individuals of differential evolution; {QUICK.population}, or with --full {FULL.population}.",
    )
    generations: int | None = Field(
        None, ge=0, description=f"Its generations; {QUICK.generations}, or with --full {FULL.generations}."
    )
    points: int | None = Field(
        None, ge=10, description=f"Training images on the maps; {QUICK.points}, or with --full {FULL.points}."
    )
    detector: str | None = Field(
        None, description=f"Judged with --full: a name as of brittle detect, with parameters; {DETECTOR} when absent."
    )

    @property
    def sizes(self) -> Sizes:
        """As asked for, else those of the form."""
        form = FULL if self.full else QUICK
        asked = {name: given for name in Sizes._fields if (given := getattr(self, name)) is not None}
        return form._replace(**asked)


LOOKED_INTO = (
    SeedRun.TEN_IFGSM, SeedRun.TEN_ONE_PIXEL, SeedRun.TEN_FIVE_PIXELS, SeedRun.MIXED_IFGSM, SeedRun.MIXED_JSMA
)  # fmt: skip
"""The searches whose representations and activations are looked at."""


class Search(NamedTuple):
    """One search: the attack at one budget or several, the images as ``--ids`` takes them, and the target."""

    name: str
    attacks: tuple[Attack, ...]
    ids: str
    target: str | None = None


@app.default
def run(
    *,
    out: Path,
    data: str = "mnist",
    layout: Layout | None = None,
    options: Annotated[ExperimentOptions | None, Parameter(name="*")] = None,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
) -> int:
    """
    Args:
        out: Folder for the model, the runs and the page.
        data: mnist, fashion-mnist, digits, or a folder with train and test.
        layout: Order of the axes of images that are arrays: chw or hwc. Asked for where it is in doubt.
    """
    from jobs.guard import Named
    from workers.training.classifiers import Recipe

    asked, parts = options or ExperimentOptions(), Parts()
    if is_single_file(data):
        raise WrongInput("--data is a single file: give a folder with train and test")
    if asked.label == asked.target:
        raise WrongInput(f"--target: must differ from --label, got {asked.target} twice")
    if asked.detector and not asked.full:
        raise WrongInput("--detector: is judged with --full only")
    detector = Named.of(asked.detector or DETECTOR)
    _require_ours(out)
    parts.begin("data")
    training, test = (load_data(data, split, layout=layout, say=say) for split in ("train", "test"))
    classes = max(training.classes, test.classes)
    for flag, number in (("--label", asked.label), ("--target", asked.target)):
        if number >= classes:
            raise WrongInput(f"{flag}: {data} has classes 0 to {classes - 1}, got {number}")
    page, named = out / "page.html", SubjectOptions(model=str(out / "model"), data=data, split="test", layout=layout)
    with keeping(out), WorkerHost(where or Where()) as host:
        if not page.exists():
            parts.begin("Ray")
            host.pool()  # before the training, so that workers that do not fit are refused at once
        parts.begin("training")
        train_model(training, test, Recipe(epochs=asked.epochs), out / "model")
        subject = load_subject(named)
        folders, broken = [], 0
        for search in _searches(subject, asked):
            parts.begin(search.name)
            folders.append(Place.of(out / "runs" / search.name))
            selection = Selection(ids=search.ids, target=search.target)
            summaries = launch(search.attacks, subject, selection, folders[-1], host)
            broken += sum(summary.counts.get(Status.FAILED, 0) for summary in summaries)
        judged = None
        if asked.full:
            parts.begin(f"detector {detector.text}")
            judged = judge([detector.text], named, str(out / "detector"), host, question=Question(limit=asked.sample))
            broken += len(judged.detection.failures)
    _write(out, data, asked, subject, open_runs(folders), judged, parts)
    parts.end()
    for line in parts.table():
        print(line)
    print(f"done in {parts.wall:.0f} s; the page is {page.resolve()}")
    return Exit.FAILED if broken else Exit.DONE


def _searches(subject: Subject, asked: ExperimentOptions) -> list[Search]:
    """The searches in the order of the page."""
    ten, mixed = _chosen(subject, asked.label, asked.sample)
    one_pixel, five_pixels = (
        DifferentialEvolution(pixels=k, population=asked.sizes.population, generations=asked.sizes.generations)
        for k in (1, 5)
    )
    all_steps = IterativeFGSM(full=True)  # as the seed's code: its images lie beyond the boundary, not on it
    target = str(asked.target)
    quick = [
        Search(SeedRun.TEN_IFGSM, (all_steps,), ten, target),
        Search(SeedRun.TEN_JSMA, (JSMA(),), ten, target),
        Search(SeedRun.TEN_ONE_PIXEL, (one_pixel,), ten),
        Search(SeedRun.TEN_EXACT, (OnePixelExact(),), ten),
        Search(SeedRun.TEN_FIVE_PIXELS, (five_pixels,), ten),
        Search("mixed-fgsm", (FGSM(epsilon=0.1),), mixed),
        Search(SeedRun.MIXED_IFGSM, (all_steps,), mixed, target),
        Search(SeedRun.MIXED_JSMA, (JSMA(),), mixed, target),
        Search("mixed-jsma-classes", (JSMA(map="classes"),), mixed, target),
    ]
    full = [
        Search("mixed-jsma-all", (JSMA(),), mixed, "all"),
        Search("mixed-pgd", tuple(PGD(epsilon=epsilon) for epsilon in (0.02, 0.05, 0.1, 0.2, 0.3)), mixed),
        Search("mixed-ddn", (DDN(),), mixed),
        Search("mixed-one-pixel-exact", (OnePixelExact(),), mixed),
    ]
    return quick + full if asked.full else quick


def _write(
    out: Path,
    data: str,
    asked: ExperimentOptions,
    subject: Subject,
    runs: Sequence[RecordedRun],
    judged: Judged | None,
    parts: Parts,
) -> None:
    """Analyses what was found, and writes figures, tables and the page."""
    from analysis.exhibits import write_exhibits
    from analysis.figures.detection import detection_exhibits
    from analysis.figures.runs import run_exhibits

    parts.begin("analysis")
    looked_at = AnalysisOptions(points=asked.sizes.points, training_data=data)
    chosen = [run for run in runs if run.name in LOOKED_INTO]
    inside = analysed(chosen, subject, out / "analysis", looked_at)
    parts.begin("figures and page")
    views = run_views(runs)
    named = flags({"data": None if data == "mnist" else data, "layout": subject.dataset.layout})
    command = typed("run", *changed(asked), *named, "--out", path(out))
    report = judged.reports[0] if judged else None
    held = claims(
        subject.accuracy,
        {view.name: view.table for view in views},
        {exhibit.key: exhibit.by_run for exhibit in inside},
        report,
    )
    said = claims_exhibit(held, command)
    exhibits = [
        *run_exhibits(views, subject.dataset),
        *inside,
        *(detection_exhibits([report]) if report else ()),
    ]
    write_exhibits([said, *exhibits], out / "figures")
    findings = [said.finding, *map(str, held)]
    write_page(runs, subject, out / "page.html", findings=findings, exhibits=exhibits, command=command)


def _require_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise WrongInput(f"--out {out}: exists and is not a folder")
    ours = ("model", "runs", "analysis", "detector", "figures", "page.html", ".page.html.")
    if out.exists() and not all(entry.name.startswith(ours) for entry in out.iterdir()):
        raise WrongInput(f"--out {out}: exists and is not the folder of such an experiment")
    require_place(out)


def _chosen(subject: Subject, label: int, sample: int) -> tuple[str, str]:
    """The first ten correctly classified images of a class, and a random sample of all correct ones."""
    right = np.flatnonzero(subject.correct)
    ten = right[subject.dataset.labels[right] == label][:10]
    if not len(ten):
        raise WrongInput(f"--label: the model classifies no test image of class {label} correctly")
    mixed = np.sort(np.random.default_rng(0).choice(right, min(sample, len(right)), replace=False))
    return ",".join(map(str, ten)), ",".join(map(str, mixed))


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["run", *sys.argv[1:]]))
