"""Adversarial training with projected gradient descent."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.budgets import Amount
from workers.training.adversarial import AdversarialTraining

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["PGDTraining"]


class PGDTraining(AdversarialTraining):
    """Adversarial training with projected gradient descent: only images of (nearly) the highest loss are learned.

    Madry, Makelov, Schmidt, Tsipras & Vladu (2018), "Towards deep learning models resistant to adversarial attacks",
    Eq. 2.1: min_θ E[max_{‖δ‖∞ ≤ ε} L(θ, x + δ, y)], the maximum by projected gradient descent from a uniformly random
    start. The paper takes 40 steps of 0.01 on MNIST (``--steps 40 --step-size 0.01``); the default takes fewer, longer
    ones, for two cores.
    """

    NAME: ClassVar[str] = "pgd"

    steps: int = Field(7, ge=1, le=1000, description="Steps of the inner search; each costs about a plain training.")
    step_size: Amount | None = Field(None, gt=0, le=2, description="Size of a step; 2.5·ε/steps when absent.")

    def loss(
        self, model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", share: float
    ) -> "Tensor":
        step_size = 2.5 * self.radius / self.steps if self.step_size is None else self.step_size
        return self.from_random_start(model, images, labels, generator, share, steps=self.steps, step_size=step_size)
