"""Adversarial training with the fast gradient sign method."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.budgets import Number
from workers.training.adversarial import AdversarialTraining, cross_entropy_sum

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["FGSMTraining"]


class FGSMTraining(AdversarialTraining):
    """Adversarial training with one gradient step: images and their FGSM images are learned together.

    Goodfellow, Shlens & Szegedy (2015), "Explaining and harnessing adversarial examples", section 6:
    J̃(θ, x, y) = α·J(θ, x, y) + (1 − α)·J(θ, x + ε·sign(∇ₓJ(θ, x, y)), y). The step is clipped to [0, 1].
    It teaches FGSM and little else: several steps may still find what it hides.
    """

    NAME: ClassVar[str] = "fgsm"

    clean_share: Number = Field(0.5, ge=0, le=1, description="α, the weight of the clean images' loss.")

    def loss(
        self, model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", share: float
    ) -> "Tensor":
        from torch.nn.functional import cross_entropy

        adversarial = self.raised(
            cross_entropy_sum(model, labels), images, images, steps=1, step_size=self.radius, share=share
        )
        attacked = cross_entropy(model(adversarial), labels)
        return self.clean_share * cross_entropy(model(images), labels) + (1 - self.clean_share) * attacked
