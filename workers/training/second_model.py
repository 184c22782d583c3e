"""The training of a classifier that a detector asks beside the one it guards: by a defense, resumable."""

import hashlib
from dataclasses import asdict, dataclass, replace

import numpy as np
from torch import nn

from workers.errors import WrongInput
from workers.images import Dataset
from workers.models.loading import construct
from workers.training.classifiers import Recipe
from workers.training.defense import Defense

__all__ = ["SecondModel"]

HELD_OUT = 1000
"""Training images that it does not learn from: its accuracy is measured on them."""


@dataclass(frozen=True)
class SecondModel:
    """A classifier and how it is trained.

    `workers.training.classifiers.stages` gives its trainings, on what `split` makes of the training images.

    Attributes:
        defense: by what.
        recipe: how.
    """

    defense: Defense
    recipe: Recipe

    @property
    def key(self) -> str:
        """The defense and eight hexadecimal digits of all parameters: what a folder of trained networks calls it."""
        described = f"{self.defense.model_dump_json()} {asdict(self.recipe)}"
        return f"{self.defense.NAME}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The untrained classifier for images of ``(C, H, W)``.

        Raises:
            WrongInput: when it cannot take them.
        """
        try:
            return construct(self.defense.architecture(shape, classes))
        except ValueError as error:
            raise WrongInput(f"{self.defense.NAME}: {error}") from None

    def split(self, training: Dataset) -> tuple[Dataset, Dataset]:
        """What it learns from, and what its accuracy is measured on: a tenth of the images, 1,000 at most."""
        order = np.random.default_rng(self.recipe.seed).permutation(len(training))
        size = min(HELD_OUT, len(training) // 10)
        held_out, learned = (
            replace(training, images=training.images[rows], labels=training.labels[rows])
            for rows in (np.sort(order[:size]), np.sort(order[size:]))
        )
        return learned, held_out
