"""Plain training: cross-entropy, Adam, and a checkpoint after every epoch that training resumes from."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.files import exclusive, require_place, write_whole
from workers.images import Dataset
from workers.models.cnn import CNN

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
    card = _same_training(folder, card)
    epochs = card["epochs"]
    if len(epochs) > recipe.epochs:
        raise WrongInput(f"--epochs: {folder} has {len(epochs)} epochs already, got {recipe.epochs}")
    yield from (Epoch(**epoch) for epoch in epochs)
    if len(epochs) == recipe.epochs:
        return

    with exclusive(folder):
        yield from _remaining(training, test, recipe, folder, _same_training(folder, card), on_batch)


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
        _restore(folder, card["weights"], model, optimizer)
    images, labels = torch.tensor(training.images), torch.tensor(training.labels)
    for number in range(len(epochs) + 1, recipe.epochs + 1):
        generator.manual_seed(recipe.seed * 1_000_003 + number)
        loss = _one_epoch(model, optimizer, images, labels, recipe, generator, partial(on_batch, number))
        epoch = _measure(model, test, number, loss)
        epochs.append(asdict(epoch))
        _save(folder, card, model, optimizer)
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


def _same_training(folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """The folder's own card when it holds epochs of this training, else the given one."""
    path = folder / "model.json"
    if folder.exists() and not folder.is_dir():
        raise WrongInput(f"--out {folder}: exists and is not a folder")
    if not path.exists():
        leftovers = ("epoch-", ".epoch-", ".model.json.", ".lock")  # of a kill before the first checkpoint was whole
        if folder.exists() and not all(entry.name.startswith(leftovers) for entry in folder.iterdir()):
            raise WrongInput(f"--out {folder}: exists and is not a model folder")
        require_place(folder)
        return card
    try:
        found = json.loads(path.read_text())
        for field, want in {**card["training"], "architecture": card["architecture"]}.items():
            have = found["architecture"] if field == "architecture" else found["training"][field]
            if have != want:
                raise WrongInput(f"--out {folder}: was trained with {field} {have}, not {want}; name another folder")
        return dict(found)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"--out {folder}: model.json is not a training's description") from None


def _save(folder: Path, card: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    stem = f"epoch-{len(card['epochs']):03d}"
    names = dict(model.named_parameters())
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in names.items()
        for key, value in optimizer.state[parameter].items()
    }
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_whole(folder / f"{stem}.safetensors", safetensors.torch.save(weights))
    write_whole(folder / f"{stem}.adam", safetensors.torch.save(moments))
    card["weights"] = f"{stem}.safetensors"
    write_whole(folder / "model.json", (json.dumps(card, indent=1) + "\n").encode())
    for old in [*folder.glob("epoch-*"), *folder.glob(".*.tmp")]:
        if old.stem != stem:
            with contextlib.suppress(OSError):
                old.unlink()


def _restore(folder: Path, weights: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    try:
        model.load_state_dict(safetensors.torch.load_file(folder / weights))
        moments = safetensors.torch.load_file((folder / weights).with_suffix(".adam"))
        for name, parameter in model.named_parameters():
            optimizer.state[parameter] = {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise WrongInput(f"--out {folder}: its checkpoint cannot be read: {str(error).splitlines()[0]}") from None
