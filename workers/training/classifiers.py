"""The training of a classifier by any defense: Adam, and a checkpoint after every epoch that training resumes from."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.scores import predicted
from workers.files import exclusive
from workers.images import Dataset
from workers.models.loading import construct, read_model
from workers.training.checkpoints import restore, same_training, save
from workers.training.defense import Defense, Objective
from workers.training.plain import Plain

__all__ = ["Epoch", "Recipe", "Stage", "stages", "train"]

OnBatch = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are the seed's.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; an incomplete last batch is left out, as in the seed.
        learning_rate: Adam's (Kingma & Ba, 2015).
        seed: initial weights, and the order of the images in each epoch.
    """

    epochs: int = 12
    batch_size: int = 256
    learning_rate: float = 1e-3
    seed: int = 42


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: mean training loss, test accuracy in [0, 1], test images by label and prediction.

    Of a model that may reject an image, what is rejected is predicted as the class behind the last.
    """

    epoch: int
    loss: float
    accuracy: float
    confusion: list[list[int]]


@dataclass(frozen=True)
class Stage:
    """One of the trainings that a defense is made of.

    Attributes:
        title: what it is called.
        recipe: how to train.
        defense: by what.
        folder: its model folder.
    """

    title: str
    recipe: Recipe
    defense: Defense
    folder: Path


def stages(training: Dataset, test: Dataset, recipe: Recipe, folder: Path, defense: Defense) -> list[Stage]:
    """The trainings of a defense in their order, its own last, for `train`; nothing is written.

    Raises:
        WrongInput: when the data does not fit together, or one of the folders holds a different training.
    """
    defense = defense.for_images(training.shape)
    card = same_training(folder, _card(training, test, recipe, defense), recipe.epochs, _parts(defense))
    found = [Stage("model", recipe, defense, folder)]
    if len(card["epochs"]) == recipe.epochs:
        return found  # what it stands on is not needed any more
    if (earlier := defense.earlier) is not None:
        below = replace(recipe, epochs=earlier.epochs)
        before = stages(training, test, below, folder / earlier.folder, earlier.defense)
        found = [*before[:-1], replace(before[-1], title=earlier.folder), *found]
    return found


def train(
    training: Dataset, test: Dataset, recipe: Recipe, folder: Path, *, on_batch: OnBatch, defense: Defense | None = None
) -> Iterator[Epoch]:
    """Trains a classifier and yields after each epoch, its checkpoint written.

    A folder that holds some epochs of the same training is resumed; the result is the one that an
    uninterrupted training gives. ``model.json`` names the weights and is replaced last and atomically, so a
    kill at any moment leaves the epoch before.

    Args:
        training, test: images of one shape.
        recipe: how to train.
        folder: the model folder, created when absent.
        on_batch: called after each step with the epoch (from 1), the step (from 1) and its loss.
        defense: what is trained by; plain training when None. The training that it stands on, if any, must be done:
            `stages` gives all in their order.

    Yields:
        Every epoch, those already in the folder first.

    Raises:
        WrongInput: when the data does not fit together, the folder holds a different training, or the training that
            this one stands on is not done.
    """
    defense = (defense or Plain()).for_images(training.shape)
    card, parts = _card(training, test, recipe, defense), _parts(defense)
    found = same_training(folder, card, recipe.epochs, parts)
    epochs = found["epochs"]
    yield from (Epoch(**epoch) for epoch in epochs)
    if len(epochs) == recipe.epochs:
        return
    earlier = _earlier(training, test, recipe, folder, defense)
    with exclusive(folder):
        found = same_training(folder, card, recipe.epochs, parts)
        yield from _remaining(training, test, recipe, folder, found, on_batch, defense, earlier)


def _card(training: Dataset, test: Dataset, recipe: Recipe, defense: Defense) -> dict[str, Any]:
    """The description of a training without epochs.

    Raises:
        WrongInput: when the data does not fit together.
    """
    if training.shape != test.shape:
        raise WrongInput(f"training images are {training.shape}, test images {test.shape}")
    if len(training) < recipe.batch_size:
        raise WrongInput(f"--batch-size: at most the {len(training)} training images, got {recipe.batch_size}")
    if min(training.shape[1:]) < 7:
        raise WrongInput(f"the CNN needs images of at least 7×7, got {training.shape[1]}×{training.shape[2]}")
    how = {"defense": defense.NAME} | defense.model_dump(mode="json")
    how |= {field: value for field, value in asdict(recipe).items() if field != "epochs"}
    return {
        "architecture": defense.architecture(training.shape, max(training.classes, test.classes, 2)),
        "training": how | {"data": training.content_hash()},
        "data": {"name": training.name, "training_images": len(training), "test_images": len(test)},
        "epochs": [],
    }


def _parts(defense: Defense) -> tuple[str, ...]:
    """The folders that a model folder may hold before its first epoch is done."""
    return () if defense.earlier is None else (defense.earlier.folder,)


def _earlier(training: Dataset, test: Dataset, recipe: Recipe, folder: Path, defense: Defense) -> nn.Module | None:
    """The model that a defense stands on, in ``eval()`` mode, its parameters frozen."""
    if (earlier := defense.earlier) is None:
        return None
    place, below = folder / earlier.folder, replace(recipe, epochs=earlier.epochs)
    card = _card(training, test, below, earlier.defense)
    done = len(same_training(place, card, earlier.epochs, _parts(earlier.defense))["epochs"])
    if done < earlier.epochs:
        raise WrongInput(f"--out {folder}: its {earlier.folder} has {done} of {earlier.epochs} epochs; train it first")
    return read_model(str(place)).build()


def _remaining(
    training: Dataset,
    test: Dataset,
    recipe: Recipe,
    folder: Path,
    card: dict[str, Any],
    on_batch: OnBatch,
    defense: Defense,
    earlier: nn.Module | None,
) -> Iterator[Epoch]:
    """Trains the epochs that the card does not list yet."""
    epochs: list[dict[str, Any]] = card["epochs"]
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):  # the layers draw from torch's own stream
        torch.manual_seed(recipe.seed)
        model = construct(card["architecture"])
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    if epochs:
        restore(folder, card["weights"], model, [optimizer])
    else:
        defense.start(model, earlier)
    objective = defense.objective(earlier, training)
    images, labels = torch.tensor(training.images), torch.tensor(training.labels)
    for number in range(len(epochs) + 1, recipe.epochs + 1):
        generator.manual_seed(recipe.seed * 1_000_003 + number)
        loss = _one_epoch(model, optimizer, images, labels, recipe, objective, generator, number, on_batch)
        epoch = _measure(model, test, number, loss)
        epochs.append(asdict(epoch))
        save(folder, card, model, [optimizer])
        yield epoch


def _one_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    objective: Objective,
    generator: torch.Generator,
    number: int,
    on_batch: OnBatch,
) -> float:
    model.train()
    order, losses, steps = torch.randperm(len(images), generator=generator), [], len(images) // recipe.batch_size
    for step in range(steps):
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        optimizer.zero_grad()
        seen, done = images[chosen].float().div(255), number - 1 + step / steps
        loss = objective(model, seen, labels[chosen], generator, done)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        on_batch(number, step + 1, losses[-1])
    return float(np.mean(losses))


def _measure(model: nn.Module, test: Dataset, number: int, loss: float) -> Epoch:
    logits = DenseEvaluator(model.eval()).logits(torch.tensor(test.images))
    table = confusion_matrix(test.labels, predicted(logits).numpy(), labels=range(logits.shape[1]))
    return Epoch(number, loss, float(table.trace() / len(test)), table.tolist())  # no answer is not a right one
