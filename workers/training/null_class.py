"""Training with a NULL class."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from workers.budgets import Number
from workers.errors import WrongInput
from workers.training.defense import BallDefense, Earlier, Objective
from workers.training.plain import Plain

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from workers.images import Dataset

__all__ = ["NullClass"]

SIZES = 11
"""Sizes of perturbation at which the first classifier's errors are counted, 0 and ε among them."""

COUNTED = 2000
"""Training images that they are counted on."""


class NullClass(BallDefense):
    """A NULL class that takes the more of an image's probability the more the image is perturbed.

    Hosseini, Chen, Kannan, Zhang & Poovendran (2017), "Blocking transferability of adversarial examples in black-box
    learning systems", its three steps: a classifier is trained; for each size of perturbation p(NULL) is the share of
    perturbed images that it gets wrong; then the classifier, with a NULL class, learns clean images and perturbed ones
    of random size, NULL having p(NULL), the label `certainty` of the rest, and the other classes what is left.

    The paper measures the size by the number of changed features; here it is the L∞ length of a step along the sign of
    the gradient, uniform in [0, ε]. It is a defense against transferred images, not against a search that knows of
    NULL. An image that is predicted as NULL is rejected: it is not classified right, and does not fool. The first
    classifier stays in the folder ``initial`` of the model's.
    """

    NAME: ClassVar[str] = "null"

    certainty: Number = Field(0.95, gt=0, le=1, description="Share of the label in what NULL leaves to the classes.")
    initial_epochs: int = Field(
        12, ge=1, le=10_000, description="Passes of the first classifier over the training images."
    )

    @property
    def earlier(self) -> Earlier:
        return Earlier("initial", Plain(), self.initial_epochs)

    def architecture(self, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
        return super().architecture(shape, classes) | {"name": "null"}

    def start(self, model: "nn.Module", earlier: "nn.Module | None") -> None:
        """Takes over the first classifier; NULL's weights stay as they were drawn."""
        import torch

        assert earlier is not None
        with torch.no_grad():
            for name, value in earlier.state_dict().items():
                model.state_dict()[name][: len(value)] = value

    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        import torch
        from torch.nn.functional import cross_entropy

        assert earlier is not None
        rates = self.null_rates(earlier, training)

        def loss(
            model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", epoch: float
        ) -> "Tensor":
            share = torch.rand(len(images), generator=generator)
            size = self.radius * share.view(-1, 1, 1, 1)
            logits = model(images)
            clean = self.soft_labels(labels, torch.zeros(len(labels)), logits.shape[1])
            perturbed = _perturbed(model, images, clean, size)
            soft = self.soft_labels(labels, _between(rates, share), logits.shape[1])
            return (cross_entropy(logits, clean) + cross_entropy(model(perturbed), soft)) / 2

        return loss

    def soft_labels(self, labels: "Tensor", null: "Tensor", outputs: int) -> "Tensor":
        """Probabilities ``[n, K + 1]`` to be learned, of labels ``[n]`` and NULL's probabilities ``[n]``."""
        import torch

        soft = torch.full((len(labels), outputs), (1 - self.certainty) / (outputs - 2))
        soft.scatter_(1, labels[:, None], self.certainty)
        soft.mul_(1 - null[:, None])
        soft[:, -1] = null
        return soft

    def null_rates(self, earlier: "nn.Module", training: "Dataset") -> "Tensor":
        """p(NULL) at `SIZES` sizes from 0 to ε, float ``[SIZES]``, not falling: errors of the first classifier.

        Of training images that it classifies right, so that p(NULL) of an unperturbed one is 0.

        Raises:
            WrongInput: when it classifies none right.
        """
        import numpy as np
        import torch

        from workers.evaluation.scores import predicted

        # drawn: images are often sorted by class; the same ones at every start
        drawn = np.random.default_rng(0).permutation(len(training))[:COUNTED]
        images = torch.tensor(training.images[drawn]).float().div(255)
        labels = torch.tensor(training.labels[drawn])
        with torch.no_grad():
            right = predicted(earlier(images)) == labels
        if not right.any():
            raise WrongInput(f"--initial-epochs: the first classifier has none of {len(drawn)} training images right")
        images, labels = images[right], labels[right]
        rates = torch.zeros(SIZES)
        for number in range(1, SIZES):
            size = self.radius * number / (SIZES - 1)
            moved = _perturbed(earlier, images, labels, size)
            with torch.no_grad():
                rates[number] = (predicted(earlier(moved)) != labels).float().mean()
        return rates.cummax(dim=0).values


def _perturbed(model: "nn.Module", images: "Tensor", goals: "Tensor", size: "float | Tensor") -> "Tensor":
    """Images after one step of a size along the sign of their loss's gradient; goals are labels or probabilities."""
    from workers.training.adversarial import cross_entropy_sum
    from workers.training.ascent import ascend

    return ascend(cross_entropy_sum(model, goals), images, images, epsilon=size, steps=1, step_size=size)


def _between(rates: "Tensor", share: "Tensor") -> "Tensor":
    """Rates at shares of the largest size, ``[n]`` in [0, 1], linear between the sizes that were counted."""
    place = share * (len(rates) - 1)
    below = place.long().clamp(max=len(rates) - 2)
    return rates[below].lerp(rates[below + 1], place - below)
