"""Plain training: cross-entropy, Adam, and a checkpoint after every epoch that training resumes from."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.files import exclusive
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.training.checkpoints import restore, same_training, save

__all__ = ["Epoch", "Recipe", "train"]

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
    """What one epoch came to: mean training loss, test accuracy in [0, 1], test images by label and prediction."""

    epoch: int
    loss: float
    accuracy: float
    confusion: list[list[int]]


def train(training: Dataset, test: Dataset, recipe: Recipe, folder: Path, *, on_batch: OnBatch) -> Iterator[Epoch]:
    """Trains the seed's CNN and yields after each epoch, its checkpoint written.

    A folder that holds some epochs of the same training is resumed; the result is the one that an
    uninterrupted training gives. ``model.json`` names the weights and is replaced last and atomically, so a
    kill at any moment leaves the epoch before.

    Args:
        training, test: images of one shape.
        recipe: how to train.
        folder: the model folder, created when absent.
        on_batch: called after each step with the epoch (from 1), the step (from 1) and its loss.

    Yields:
        Every epoch, those already in the folder first.

    Raises:
        WrongInput: when the data does not fit together, or the folder holds a different training.
    """
    if training.shape != test.shape:
        raise WrongInput(f"training images are {training.shape}, test images {test.shape}")
    if len(training) < recipe.batch_size:
        raise WrongInput(f"--batch-size: at most the {len(training)} training images, got {recipe.batch_size}")
    if min(training.shape[1:]) < 7:
        raise WrongInput(f"the CNN needs images of at least 7×7, got {training.shape[1]}×{training.shape[2]}")
    channels, height, width = training.shape
    classes = max(training.classes, test.classes, 2)
    architecture = {"name": "cnn", "channels": channels, "height": height, "width": width, "classes": classes}
    card: dict[str, Any] = {
        "architecture": architecture,
        "training": {k: v for k, v in asdict(recipe).items() if k != "epochs"} | {"data": training.content_hash()},
        "data": {"name": training.name, "training_images": len(training), "test_images": len(test)},
        "epochs": [],
    }
    card = same_training(folder, card, recipe.epochs)
    epochs = card["epochs"]
    yield from (Epoch(**epoch) for epoch in epochs)
    if len(epochs) == recipe.epochs:
        return

    with exclusive(folder):
        yield from _remaining(training, test, recipe, folder, same_training(folder, card, recipe.epochs), on_batch)


def _remaining(
    training: Dataset, test: Dataset, recipe: Recipe, folder: Path, card: dict[str, Any], on_batch: OnBatch
) -> Iterator[Epoch]:
    """Trains the epochs that the card does not list yet."""
    epochs: list[dict[str, Any]] = card["epochs"]
    sizes = {name: size for name, size in card["architecture"].items() if name != "name"}
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):  # the layers draw from torch's own stream
        torch.manual_seed(recipe.seed)
        model = CNN(**sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    if epochs:
        restore(folder, card["weights"], model, [optimizer])
    images, labels = torch.tensor(training.images), torch.tensor(training.labels)
    for number in range(len(epochs) + 1, recipe.epochs + 1):
        generator.manual_seed(recipe.seed * 1_000_003 + number)
        loss = _one_epoch(model, optimizer, images, labels, recipe, generator, partial(on_batch, number))
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
    generator: torch.Generator,
    on_step: Callable[[int, float], None],
) -> float:
    model.train()
    order, losses = torch.randperm(len(images), generator=generator), []
    for step in range(len(images) // recipe.batch_size):
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[chosen].float().div(255)), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        on_step(step + 1, losses[-1])
    return float(np.mean(losses))


def _measure(model: nn.Module, test: Dataset, number: int, loss: float) -> Epoch:
    logits = DenseEvaluator(model.eval()).logits(torch.tensor(test.images))
    table = confusion_matrix(test.labels, logits.argmax(dim=1).numpy(), labels=range(logits.shape[1]))
    return Epoch(number, loss, float(table.trace() / table.sum()), table.tolist())
