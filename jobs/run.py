"""``brittle run``: the seed's whole experiment, ending with the page."""

import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from jobs.examples import examples
from jobs.launch import Selection, Where, WorkerHost, launch
from jobs.progress import say
from jobs.recorded import open_run
from jobs.report import write_page
from jobs.subject import Subject, SubjectOptions, load_subject
from jobs.train import train_model
from workers.attacks import FGSM, JSMA, Attack, DifferentialEvolution, IterativeFGSM
from workers.errors import WrongInput
from workers.files import require_place
from workers.places import Place
from workers.results import Status
from workers.sources import NAMES, load_data

__all__ = ["app"]

app = App(
    name="run",
    help="""The seed's experiment on real data, from training to the page.

    Trains the CNN (or reuses it), attacks ten correctly classified 2s and a larger mixed sample, and writes
    the page. What is finished is reused, so a second start takes seconds.
    """,
    help_epilogue=examples(
        "brittle run --out experiment",
        "brittle run --out experiment-full --population 5000 --generations 400",
    ),
)


class ExperimentOptions(BaseModel):
    """The experiment's sizes; the defaults keep it to minutes on two cores."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(12, ge=1, le=10_000, description="Training epochs.")
    label: int = Field(2, ge=0, description="Class of the ten images.")
    target: int = Field(6, ge=0, description="Class they are to become.")
    sample: int = Field(100, ge=1, description="Size of the mixed sample.")
    population: int = Field(400, ge=4, description="Individuals of differential evolution; the seed's is 5000.")
    generations: int = Field(75, ge=0, description="Its generations; the seed's is 400.")


@app.default
def run(
    *,
    out: Path,
    data: str = "mnist",
    options: Annotated[ExperimentOptions | None, Parameter(name="*")] = None,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
) -> int:
    """
    Args:
        out: Folder for the model, the runs and the page.
        data: mnist, fashion-mnist, digits, or a folder with train and test.
    """
    from workers.training.classifiers import Recipe

    sizes, started = options or ExperimentOptions(), time.monotonic()
    if data not in NAMES and Path(data).is_file():
        raise WrongInput("--data is a single file: give a folder with train and test")
    if sizes.label == sizes.target:
        raise WrongInput(f"--target: must differ from --label, got {sizes.target} twice")
    _require_ours(out)
    training, test = load_data(data, "train", say=say), load_data(data, "test", say=say)
    classes = max(training.classes, test.classes)
    for flag, number in (("--label", sizes.label), ("--target", sizes.target)):
        if number >= classes:
            raise WrongInput(f"{flag}: {data} has classes 0 to {classes - 1}, got {number}")
    with WorkerHost(where or Where()) as host:
        if not (out / "page.html").exists():
            host.pool()  # before the training, so that workers that do not fit are refused at once
        train_model(training, test, Recipe(epochs=sizes.epochs), out / "model")
        say(f"model ready after {time.monotonic() - started:.0f} s")
        subject = load_subject(SubjectOptions(model=str(out / "model"), data=data, split="test"))
        folders, broken = [], 0
        for name, attack, ids, target in _searches(subject, sizes):
            folders.append(out / "runs" / name)
            (summary,) = launch((attack,), subject, Selection(ids=ids, target=target), Place.of(folders[-1]), host)
            broken += summary.counts.get(Status.FAILED, 0)
    page = out / "page.html"
    write_page([open_run(Place.of(folder)) for folder in folders], subject, page)
    print(f"done in {time.monotonic() - started:.0f} s; the page is {page.resolve()}")
    return 1 if broken else 0


def _searches(subject: Subject, sizes: ExperimentOptions) -> list[tuple[str, Attack, str, str | None]]:
    """The name, attack, images and target of each search, in the order of the page."""
    ten, mixed = _chosen(subject, sizes.label, sizes.sample)
    one_pixel, five_pixels = (
        DifferentialEvolution(pixels=k, population=sizes.population, generations=sizes.generations) for k in (1, 5)
    )
    target = str(sizes.target)
    return [
        ("ten-ifgsm", IterativeFGSM(), ten, target),
        ("ten-jsma", JSMA(), ten, target),
        ("ten-one-pixel-de", one_pixel, ten, None),
        ("ten-five-pixel-de", five_pixels, ten, None),
        ("mixed-fgsm", FGSM(epsilon=0.1), mixed, None),
        ("mixed-ifgsm", IterativeFGSM(), mixed, target),
        ("mixed-jsma", JSMA(), mixed, target),
        ("mixed-jsma-classes", JSMA(map="classes"), mixed, target),
    ]


def _require_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise WrongInput(f"--out {out}: exists and is not a folder")
    ours = ("model", "runs", "page.html", ".page.html.")
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
