"""``brittle run``: the seed's whole experiment, ending with the page."""

import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import App, Group, Parameter, validators

from jobs.launch import Selection, Where, WorkerHost, launch
from jobs.progress import say
from jobs.recorded import open_run
from jobs.report import write_page
from jobs.subject import Subject, SubjectOptions, load_subject
from jobs.train import train_model
from workers.attacks import FGSM, JSMA, Attack, DifferentialEvolution, IterativeFGSM
from workers.errors import WrongInput
from workers.results import Status
from workers.sources import NAMES, load_data

__all__ = ["app"]

app = App(
    name="run",
    help="""The seed's experiment on real data, from training to the page.

    Trains the CNN (or reuses it), attacks ten correctly classified 2s and a larger mixed sample, and writes
    the page. What is finished is reused, so a second start takes seconds.

    Examples:

    brittle run --out experiment

    brittle run --out experiment-full --population 5000 --generations 400
    """,
)

_Positive = Annotated[int, Parameter(validator=validators.Number(gte=1))]


@app.default
def run(
    *,
    out: Path,
    data: str = "mnist",
    epochs: _Positive = 12,
    label: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 2,
    target: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 6,
    sample: _Positive = 100,
    population: Annotated[int, Parameter(validator=validators.Number(gte=4))] = 400,
    generations: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 75,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
) -> int:
    """
    Args:
        out: Folder for the model, the runs and the page.
        data: mnist, fashion-mnist, digits, or a folder with train and test.
        epochs: Training epochs.
        label: Class of the ten images.
        target: Class they are to become.
        sample: Size of the mixed sample.
        population: Individuals of differential evolution; the seed's 5000 takes 70 times as long.
        generations: Its generations; the seed's is 400.
    """
    from workers.training.plain import Recipe

    started = time.monotonic()
    if data not in NAMES and Path(data).is_file():
        raise WrongInput("--data is a single file: give a folder with train and test")
    if label == target:
        raise WrongInput(f"--target: must differ from --label, got {target} twice")
    _require_ours(out)
    training, test = load_data(data, "train", say=say), load_data(data, "test", say=say)
    train_model(training, test, Recipe(epochs=epochs), out / "model")
    say(f"model ready after {time.monotonic() - started:.0f} s")
    subject = load_subject(SubjectOptions(model=str(out / "model"), data=data, split="test"))
    ten, mixed = _chosen(subject, label, sample)
    search = DifferentialEvolution(pixels=5, population=population, generations=generations)
    one_pixel = DifferentialEvolution(pixels=1, population=population, generations=generations)
    plan: list[tuple[str, Attack, str, str | None]] = [
        ("ten-ifgsm", IterativeFGSM(), ten, str(target)),
        ("ten-jsma", JSMA(), ten, str(target)),
        ("ten-one-pixel-de", one_pixel, ten, None),
        ("ten-five-pixel-de", search, ten, None),
        ("mixed-fgsm", FGSM(epsilon=0.1), mixed, None),
        ("mixed-ifgsm", IterativeFGSM(), mixed, str(target)),
        ("mixed-jsma", JSMA(), mixed, str(target)),
        ("mixed-jsma-classes", JSMA(map="classes"), mixed, str(target)),
    ]
    broken, folders = 0, []
    with WorkerHost(where or Where(), subject.recipe) as host:
        for name, attack, ids, goal in plan:
            folder = out / "runs" / name
            summary = launch(attack, subject, Selection(ids=ids, target=goal), folder, host)
            broken += summary.counts.get(Status.FAILED, 0)
            folders.append(folder)
    page = out / "page.html"
    write_page([open_run(folder) for folder in folders], subject, page)
    print(f"done in {time.monotonic() - started:.0f} s; the page is {page.resolve()}")
    return 1 if broken else 0


def _require_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise WrongInput(f"--out {out}: exists and is not a folder")
    if out.exists() and any(out.iterdir()) and not (out / "model" / "model.json").exists():
        raise WrongInput(f"--out {out}: exists and is not the folder of such an experiment")


def _chosen(subject: Subject, label: int, sample: int) -> tuple[str, str]:
    """The first ten correctly classified images of a class, and a random sample of all correct ones."""
    subject.warn_near_chance()
    right = np.flatnonzero(subject.correct)
    ten = right[subject.dataset.labels[right] == label][:10]
    if not len(ten):
        raise WrongInput(f"--label: the model classifies no test image of class {label} correctly")
    mixed = np.sort(np.random.default_rng(0).choice(right, min(sample, len(right)), replace=False))
    return ",".join(map(str, ten)), ",".join(map(str, mixed))


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["run", *sys.argv[1:]]))
