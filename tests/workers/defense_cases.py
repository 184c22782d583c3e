"""What the tests of defenses share: quick trainings on the digits, a small model with images, a stream of draws."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.conftest import random_images, random_model
from workers.sources import load_data
from workers.training.classifiers import Epoch, Recipe, stages, train
from workers.training.defense import Defense
from workers.training.defenses import defense_named

__all__ = ["quick", "run", "stream", "trained"]

QUICK = {
    "pgd": {"steps": 2},
    "trades": {"steps": 2},
    "distillation": {"teacher_epochs": 1},
    "null": {"initial_epochs": 1},
}
"""What keeps a training of a few seconds short."""


def quick(name: str) -> Defense:
    return defense_named(name, **QUICK.get(name, {})).for_images((1, 8, 8))


def run(
    folder: Path,
    defense: Defense,
    epochs: int = 2,
    on_batch: Callable[[int, int, float], None] = lambda *_: None,
    *,
    seed: int = 1,
) -> list[Epoch]:
    """All trainings of a defense on the digits; the last one's epochs."""
    training, test = load_data("digits", "train"), load_data("digits", "test")
    found: list[Epoch] = []
    for stage in stages(training, test, Recipe(epochs, 64, 3e-3, seed), folder, defense):
        found = list(train(training, test, stage.recipe, stage.folder, on_batch=on_batch, defense=stage.defense))
    return found


def trained(kind: str = "grey") -> tuple[nn.Module, Tensor, Tensor]:
    """A model with random weights in training mode, images and labels."""
    model, shape, classes = random_model(kind, 1)
    images = torch.tensor(random_images(shape, 32, 2)).float().div(255)
    return model.train(), images, torch.arange(32) % classes


def stream(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
