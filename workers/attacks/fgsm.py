"""The fast gradient sign method, in one step and iterated as in the seed."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.attacks.attack import Attack
from workers.attacks.norm_ball import BallAttack
from workers.budgets import Amount

if TYPE_CHECKING:
    import numpy as np

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["FGSM", "IterativeFGSM"]


class FGSM(BallAttack):
    """Fast gradient sign method: one step of ε along the sign of the loss gradient.

    Goodfellow, Shlens & Szegedy (2014), "Explaining and harnessing adversarial examples", section 4:
    η = ε·sign(∇ₓJ(θ, x, y)). Untargeted it raises the label's cross-entropy, targeted it lowers the target's.
    The step is ⌊255ε⌋ whole levels, so the 8-bit image stays within ε.
    """

    NAME: ClassVar[str] = "fgsm"
    BY_GRADIENTS: ClassVar[bool] = True
    CARRIES: ClassVar[bool] = False
    USES_CLEAN_GRADIENT: ClassVar[bool] = True

    def _search(self, batch: "Batch") -> None:
        import torch

        moved = batch.images.to(torch.int16) + self.ball.limit * batch.clean_gradient().sign().to(torch.int16)
        batch.adversarial = moved.clamp(0, 255).to(torch.uint8)
        batch.generations += 1


class IterativeFGSM(Attack):
    """Iterated fast gradient sign method in the seed's form: many small steps, no projection.

    Kurakin, Goodfellow & Bengio (2016), "Adversarial examples in the physical world", section 2.2, without
    its clipping to an ε-ball: the steps themselves bound the change, by steps × step size. The iterate is
    kept in full precision. An image is done at the first iterate that reaches the goal both as it is and rounded
    to 8 bits (to try every iterate rounded would double the queries); after the last step it is judged rounded.
    """

    NAME: ClassVar[str] = "ifgsm"
    BY_GRADIENTS: ClassVar[bool] = True

    steps: int = Field(200, ge=1, le=1_000_000, description="Most steps.")
    step_size: Amount = Field(0.001, gt=0, le=1, description="Size of a step on pixels in [0, 1].")
    full: bool = Field(False, description="Take all steps, past the first success, as the seed's code does.")

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.linf * 255 <= self.steps * self.step_size * 255 + 0.501  # the iterate is rounded once

    def _search(self, batch: "Batch") -> None:
        import torch

        rows, images = batch.all_rows, batch.images.float().div(255)
        for _ in range(self.steps):
            logits, (gradient,) = batch.vector_jacobian(
                images, rows, lambda found, part: [batch.goal.loss_cotangent(found, part)]
            )
            going = torch.ones_like(rows, dtype=torch.bool)
            hopeful = batch.goal.reached(logits, rows)
            if not self.full and hopeful.any():
                rounded = images[hopeful].mul(255).round().to(torch.uint8)
                going[hopeful] = ~batch.goal.reached(batch.logits(rounded, rows[hopeful]), rows[hopeful])
            rows, images, gradient = rows[going], images[going], gradient[going]
            if not len(rows):
                return
            images = (images + self.step_size * gradient.sign()).clamp(0, 1)
            batch.adversarial[rows] = images.mul(255).round().to(torch.uint8)
            batch.generations[rows] += 1
