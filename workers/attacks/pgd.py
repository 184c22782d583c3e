"""Projected gradient descent."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.attacks.norm_ball import NormBallAttack
from workers.budgets import Amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from workers.search import Batch

__all__ = ["PGD"]


class PGD(NormBallAttack):
    """Projected gradient descent from random starts, in the L∞ or L2 ball.

    Madry et al. (2018), "Towards deep learning models resistant to adversarial attacks", section 2.1:
    x ← Π(x + step·direction of the loss gradient), the direction being the gradient's sign (L∞) or the gradient over
    its norm (L2). The iterate is kept in full precision; scored, and differentiated, is its rounding to 8 bits
    within the budget, so a step is one query. The first iterate that reaches the goal ends an image; the others
    start again, up to the number of restarts.
    """

    NAME: ClassVar[str] = "pgd"
    BY_GRADIENTS: ClassVar[bool] = True

    steps: int = Field(40, ge=1, le=1_000_000, description="Steps of a run.")
    step_size: Amount | None = Field(None, gt=0, description="Size of a step, in the norm; 2.5·ε/steps when absent.")
    restarts: int = Field(1, ge=1, description="Most runs, each from a random start of its own.")

    def _search(self, batch: "Batch") -> None:
        streams, rows = batch.draws(batch.all_rows), batch.all_rows
        for _ in range(self.restarts):
            rows = self._run(batch, rows, [streams[row] for row in rows.tolist()])
            if not len(rows):
                return

    def _run(self, batch: "Batch", rows: "Tensor", streams: "Sequence[np.random.Generator]") -> "Tensor":
        """One run from a random start for some rows; returns those that did not reach the goal."""
        step = 2.5 * self.ball.radius / self.steps if self.step_size is None else 255 * self.step_size
        clean = batch.images[rows].float()
        moved = self.random_start(clean, streams)
        for taken in range(self.steps + 1):
            images = self.ball.rounded(moved, clean)
            if taken == self.steps:
                logits = batch.logits(images, rows)
            else:
                logits, (gradient,) = batch.vector_jacobian(
                    images, rows, lambda found, part: [batch.goal.loss_cotangent(found, part, self.loss)]
                )
            going = ~batch.goal.reached(logits, rows)
            if taken == self.steps or not bool(going.all()):
                batch.adversarial[rows] = images
                rows, clean, moved = rows[going], clean[going], moved[going]
                if taken == self.steps or not len(rows):
                    break
                gradient = gradient[going]
            moved = self.ball.project(moved.add_(self.steepest(gradient), alpha=step), clean)
            batch.generations[rows] += 1
        return rows
