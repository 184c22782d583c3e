"""``brittle train``: train the seed's CNN, by a defense or by none, resumably."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from jobs.examples import examples
from jobs.exits import DEFENSE_PARAMETERS
from jobs.interruption import keeping
from jobs.progress import progress, say
from workers.budgets import Number, spelled
from workers.errors import WrongInput
from workers.images import Dataset, Layout
from workers.sources import is_single_file, load_data
from workers.training.defense import BallDefense, Defense
from workers.training.defenses import DEFENSES, defense_kind
from workers.training.plain import Plain

if TYPE_CHECKING:
    from workers.training.classifiers import Epoch, Recipe, Stage

__all__ = ["app", "app_for", "epochs_of", "followed", "train_model"]


class TrainOptions(BaseModel):
    """How to train; the defaults are the seed's."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    epochs: int = Field(12, ge=1, le=10_000, description="Passes over the training images.")
    seed: int = Field(42, ge=0, lt=2**31, description="Of the initial weights, the order of images and every draw.")
    batch_size: int = Field(256, ge=1, description="Images a step.")
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="Adam's.")


def app_for(arguments: Sequence[str]) -> App:
    """The command, with the flags of the defense that its arguments name.

    Raises:
        WrongInput: when they name none that there is.
    """
    named = [value for flag, value in pairwise(arguments) if flag == "--defense"]
    named += [argument.partition("=")[2] for argument in arguments if argument.startswith("--defense=")]
    kind = defense_kind(named[-1]) if named else Plain
    app = App(
        name="train",
        help=_help() if kind is Plain else kind.__doc__,
        help_epilogue=examples(*_examples(DEFENSES if kind is Plain else [kind.NAME])),
    )
    app.default(_command(kind))
    return app


def _help() -> str:
    *first, last = (name for name in DEFENSES if name != Plain.NAME)
    return f"""Train the seed's CNN, by a defense or by none, and keep a checkpoint after every epoch.

    Interrupted, or asked for more epochs, the same command goes on from the last checkpoint. The defenses are
    {", ".join(first)} and {last}; brittle train --defense NAME --help shows what one is and takes.
    """


def _examples(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name != Plain.NAME:
            yield f"brittle train --data mnist --defense {name} --out MODEL"
            continue
        yield "brittle train --data mnist --out MODEL"
        yield "brittle train --data train.npz --test-data test.npz --out MODEL --epochs 20"
        yield "brittle train --data mnist --defense pgd --steps 40 --step-size 0.01 --out MODEL"


def _command(kind: type[Defense]) -> Any:
    def train(
        *,
        data: str,
        out: Path,
        test_data: str | None = None,
        layout: Layout | None = None,
        defense: str = Plain.NAME,
        parameters: Any = None,
        options: Annotated[TrainOptions | None, Parameter(name="*")] = None,
    ) -> int:
        from workers.training.classifiers import Recipe

        if test_data is None and is_single_file(data):
            raise WrongInput("--data is a single file: give --test-data, or a folder with train and test")
        training = load_data(data, "train" if test_data is None else None, layout=layout, say=say)
        test = load_data(test_data or data, "test" if test_data is None else None, layout=layout, say=say)
        recipe = Recipe(**(options or TrainOptions()).model_dump())
        given = parameters or kind()
        if isinstance(whole := given.for_images(training.shape), BallDefense) and whole != given:
            say(f"L∞ ε = {spelled(whole.radius)}: the default for such images; --epsilon takes another")
        table = train_model(training, test, recipe, out, whole)
        print("test images by label (row) and prediction (column):")
        width = len(str(max(map(max, table)))) + 1
        for row in table:
            print("".join(f"{count:{width}d}" for count in row))
        print(f"model in {out}")
        return 0

    shown = Parameter(name="*", group=Group(DEFENSE_PARAMETERS)) if kind.model_fields else Parameter(parse=False)
    train.__annotations__["parameters"] = Annotated[kind | None, shown]
    train.__doc__ = f"""
    Args:
        data: mnist, fashion-mnist, digits, or a path; a folder or name gives its train split.
        out: The model folder.
        test_data: Images to test on; the data's own test split when absent.
        layout: Order of the axes of images that are arrays: chw or hwc. Asked for where it is in doubt.
        defense: {", ".join(DEFENSES)}.
    """
    return train


def train_model(
    training: Dataset, test: Dataset, recipe: "Recipe", out: Path, defense: Defense | None = None
) -> list[list[int]]:
    """Trains into a folder with progress; returns the last epoch's confusion matrix.

    Raises:
        WrongInput: for data that do not fit, or a folder that holds another training.
        Interrupted: when stopped; the same command resumes.
    """
    import joblib
    import torch

    torch.set_num_threads(joblib.cpu_count())
    confusion = None

    def title(stage: "Stage") -> str:
        return "training" if stage.folder == out else f"training the {stage.title}"

    with keeping(out):
        for stage, epoch, _ in epochs_of(training, test, recipe, out, defense or Plain(), title):
            what = "" if stage.folder == out else f"{stage.title}, "
            reached = f"loss {epoch.loss:.4f}, test accuracy {epoch.accuracy:.2%}"
            print(f"{what}epoch {epoch.epoch}: {reached}", flush=True)
            confusion = epoch.confusion
    assert confusion is not None
    return confusion


def epochs_of(
    training: Dataset, test: Dataset, recipe: "Recipe", out: Path, defense: Defense, title: "Callable[[Stage], str]"
) -> "Iterator[tuple[Stage, Epoch, bool]]":
    """Every epoch of all trainings of a defense, with progress, and whether it was trained now.

    Args:
        training, test: images of one shape.
        recipe: how to train.
        out: the model folder.
        defense: by what.
        title: what the progress of a training is called.

    Raises:
        WrongInput: for data that do not fit, or a folder that holds another training.
    """
    from workers.training.classifiers import stages, train

    steps = len(training) // recipe.batch_size
    for stage in stages(training, test, recipe, out, defense):
        run = partial(train, training, test, stage.recipe, stage.folder, defense=stage.defense)
        for epoch, new in followed(run, stage.recipe.epochs, steps, title(stage)):
            yield stage, epoch, new


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


app = app_for(())
"""The command without a defense, as it is listed beside the others."""


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
