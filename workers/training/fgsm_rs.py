"""Adversarial training with one step from a random start."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.budgets import Amount
from workers.training.adversarial import AdversarialTraining

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["FGSMRandomStart"]


class FGSMRandomStart(AdversarialTraining):
    """Adversarial training with one gradient step from a uniformly random start in the L∞ ball.

    Wong, Rice & Kolter (2020), "Fast is better than free: revisiting adversarial training", Algorithm 3: a step of
    α = 1.25·ε from the start, projected to the ball; only what comes of it is learned. The start is clipped to [0, 1]
    before its gradient is taken, where the paper clips the end alone. The paper's learning rate rises and falls within
    a number of epochs that is known beforehand; here it is constant, so that a training can be prolonged.
    """

    NAME: ClassVar[str] = "fgsm-rs"

    step_size: Amount | None = Field(None, gt=0, le=2, description="α, the size of the step; 1.25·ε when absent.")

    def loss(
        self, model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", share: float
    ) -> "Tensor":
        step_size = 1.25 * self.radius if self.step_size is None else self.step_size
        return self.from_random_start(model, images, labels, generator, share, steps=1, step_size=step_size)
