"""``brittle train``: train the seed's CNN, resumably."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from cyclopts import App, Parameter
from pydantic import BaseModel, ConfigDict, Field

from jobs.examples import examples
from jobs.exits import Interrupted
from jobs.progress import progress, say
from workers.errors import WrongInput
from workers.images import Dataset
from workers.sources import NAMES, load_data

__all__ = ["app", "followed", "train_model"]

app = App(
    name="train",
    help="""Train the seed's CNN and keep a checkpoint after every epoch.

    Interrupted, or asked for more epochs, the same command goes on from the last checkpoint.
    """,
    help_epilogue=examples(
        "brittle train --data mnist --out MODEL",
        "brittle train --data train.npz --test-data test.npz --out MODEL --epochs 20",
    ),
)


class TrainOptions(BaseModel):
    """How to train; the defaults are the seed's."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epochs: int = Field(12, ge=1, le=10_000, description="Passes over the training images.")
    seed: int = Field(42, ge=0, lt=2**31, description="Of the initial weights and the order of images.")
    batch_size: int = Field(256, ge=1, description="Images a step.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="Adam's.")


@app.default
def train(
    *,
    data: str,
    out: Path,
    test_data: str | None = None,
    options: Annotated[TrainOptions | None, Parameter(name="*")] = None,
) -> int:
    """
    Args:
        data: mnist, fashion-mnist, digits, or a path; a folder or name gives its train split.
        out: The model folder.
        test_data: Images to test on; the data's own test split when absent.
    """
    from workers.training.plain import Recipe

    if test_data is None and data not in NAMES and Path(data).is_file():
        raise WrongInput("--data is a single file: give --test-data, or a folder with train and test")
    training = load_data(data, "train" if test_data is None else None, say=say)
    test = load_data(test_data or data, "test" if test_data is None else None, say=say)
    table = train_model(training, test, Recipe(**(options or TrainOptions()).model_dump()), out)
    print("test images by label (row) and prediction (column):")
    width = len(str(max(map(max, table)))) + 1
    for row in table:
        print("".join(f"{count:{width}d}" for count in row))
    print(f"model in {out}")
    return 0


def train_model(training: Dataset, test: Dataset, recipe: Any, out: Path) -> list[list[int]]:
    """Trains into a folder with progress; returns the last epoch's confusion matrix.

    Raises:
        WrongInput: for data that do not fit, or a folder that holds another training.
        Interrupted: when stopped; the same command resumes.
    """
    import joblib
    import torch

    from workers.training.plain import train as epochs_of

    torch.set_num_threads(joblib.cpu_count())
    steps, confusion = len(training) // recipe.batch_size, None
    with _interruptible(out):
        for epoch, _ in followed(partial(epochs_of, training, test, recipe, out), recipe.epochs, steps, "training"):
            print(f"epoch {epoch.epoch}: loss {epoch.loss:.4f}, test accuracy {epoch.accuracy:.2%}", flush=True)
            confusion = epoch.confusion
    assert confusion is not None
    return confusion


class Numbered(Protocol):
    """An epoch of a training."""

    @property
    def epoch(self) -> int:
        """From 1."""


SomeEpoch = TypeVar("SomeEpoch", bound=Numbered)


def followed(
    training: Callable[..., Iterator[SomeEpoch]], epochs: int, steps: int, title: str
) -> Iterator[tuple[SomeEpoch, bool]]:
    """The epochs of a training, with progress, and whether each was trained now, not read from its checkpoint.

    Args:
        training: given ``on_batch``, which follows the steps, it yields every epoch; those that are there at once.
        epochs, steps: how many, and of how many steps each.
        title: what is being done.
    """
    with progress(epochs * steps, title, "steps") as bar:
        seen = 0

        def on_batch(epoch: int, step: int, loss: float) -> None:
            nonlocal seen
            seen = epoch
            bar.advance(1, f"epoch {epoch}, loss {loss:.3f}")

        for epoch in training(on_batch=on_batch):
            if kept := epoch.epoch > seen:
                bar.advance(steps, f"epoch {epoch.epoch} from its checkpoint")
            yield epoch, not kept


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {out} keeps the finished epochs; run the same command again to resume"
        ) from None


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
