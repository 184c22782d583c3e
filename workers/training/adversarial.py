"""What adversarial trainings share: ε and its warm-up, the inner search, and the loss on what it finds."""

from abc import abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from workers.budgets import Number
from workers.training.defense import BallDefense, Objective

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from workers.images import Dataset

__all__ = ["AdversarialTraining", "cross_entropy_sum"]


class AdversarialTraining(BallDefense):
    """A training on images that are moved within the L∞ ball of radius ε, pixels in [0, 1], to raise a loss.

    ε and every step grow together from 0 to their full size in the first epochs: at ε = 0.3 a small network that meets
    the full ball from the first step on stays at a constant answer for its first epoch or longer.
    """

    warmup: Number = Field(1.0, ge=0, le=10_000, description="Epochs in which ε grows from 0 to its full size.")

    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        def loss(
            model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", epoch: float
        ) -> "Tensor":
            share = min(1.0, epoch / self.warmup) if self.warmup else 1.0
            return self.loss(model, images, labels, generator, share)

        return loss

    @abstractmethod
    def loss(
        self, model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", share: float
    ) -> "Tensor":
        """The loss of an image, a scalar.

        Args:
            model: in training mode, and left in it.
            images: float ``[n, C, H, W]`` in [0, 1].
            labels: int64 ``[n]``.
            generator: of every draw.
            share: what part of ε and of a step's size is used, in [0, 1].
        """

    def raised(
        self,
        loss: "Callable[[Tensor], Tensor]",
        images: "Tensor",
        start: "Tensor",
        *,
        steps: int,
        step_size: float,
        share: float,
    ) -> "Tensor":
        """Images in the ball around others at which a loss is (nearly) highest; arguments as of `ascend`."""
        from workers.training.ascent import ascend

        return ascend(loss, images, start, epsilon=share * self.radius, steps=steps, step_size=share * step_size)

    def from_random_start(
        self,
        model: "nn.Module",
        images: "Tensor",
        labels: "Tensor",
        generator: "torch.Generator",
        share: float,
        *,
        steps: int,
        step_size: float,
    ) -> "Tensor":
        """The cross-entropy of what a search from a random start finds; arguments as of `loss` and `raised`."""
        from torch.nn.functional import cross_entropy

        from workers.training.ascent import uniform_start

        start = uniform_start(images, share * self.radius, generator)
        raised = cross_entropy_sum(model, labels)
        adversarial = self.raised(raised, images, start, steps=steps, step_size=step_size, share=share)
        return cross_entropy(model(adversarial), labels)


def cross_entropy_sum(model: "nn.Module", labels: "Tensor") -> "Callable[[Tensor], Tensor]":
    """The loss that Goodfellow's, Madry's and Wong's searches raise: of images, the sum of their cross-entropies.

    Args:
        model: images to logits.
        labels: int64 ``[n]``, or probabilities ``[n, K]``.
    """
    from torch.nn.functional import cross_entropy

    return lambda images: cross_entropy(model(images), labels, reduction="sum")
