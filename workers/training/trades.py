"""TRADES: accuracy and smoothness, traded off by a weight."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.budgets import Amount, Number
from workers.training.adversarial import AdversarialTraining

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["TRADES"]

START = 0.001
"""Standard deviation of the start's distance from the image, where the divergence has no gradient."""


class TRADES(AdversarialTraining):
    """TRADES: the cross-entropy of clean images, and a divergence of the predictions within the L∞ ball.

    Zhang, Yu, Jiao, Xing, El Ghaoui & Jordan (2019), "Theoretically principled trade-off between robustness and
    accuracy", Eq. 5 and Algorithm 1: min_θ E[L(f(x), y) + β·max_{‖x′ − x‖∞ ≤ ε} KL(f(x) ‖ f(x′))], β being the paper's
    1/λ and KL that of the softmax probabilities. The maximum is searched from x + 0.001·N(0, I), the model in
    evaluation mode as in the authors' code. The paper takes 40 steps of 0.01 on MNIST; the default takes fewer.
    Three steps are too few at ε = 0.3: from a start so near the image they teach single steps alone.
    """

    NAME: ClassVar[str] = "trades"

    beta: Number = Field(1.0, ge=0, le=1000, description="β, the weight of the divergence, 1/λ in the paper.")
    steps: int = Field(7, ge=1, le=1000, description="Steps of the inner search; each costs about a plain training.")
    step_size: Amount | None = Field(None, gt=0, le=2, description="Size of a step; 2.5·ε/steps when absent.")

    def loss(
        self, model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", share: float
    ) -> "Tensor":
        import torch
        from torch.nn.functional import cross_entropy, kl_div

        model.eval()
        with torch.no_grad():
            centre = model(images).log_softmax(dim=1)
        adversarial = self.raised(
            lambda moved: kl_div(model(moved).log_softmax(dim=1), centre, reduction="sum", log_target=True),
            images,
            (images + share * START * torch.randn(images.shape, generator=generator)).clamp_(0, 1),
            steps=self.steps,
            step_size=2.5 * self.radius / self.steps if self.step_size is None else self.step_size,
            share=share,
        )
        model.train()
        logits = model(images)
        divergence = kl_div(
            model(adversarial).log_softmax(dim=1), logits.log_softmax(dim=1), reduction="batchmean", log_target=True
        )
        return cross_entropy(logits, labels) + self.beta * divergence
