"""Auto-PGD: projected gradient descent that chooses its own step size."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.attacks.norm_ball import NormBallAttack

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from workers.search import Batch

__all__ = ["APGD", "checkpoints"]

MOMENTUM = 0.75
"""α of the paper's Eq. 3."""
RISES = 0.75
"""ρ of the paper's condition 1: the share of steps that must raise the loss, else the step is halved."""


class APGD(NormBallAttack):
    """Auto-PGD: steps with momentum whose size is halved, from the best iterate on, when they stop paying.

    Croce & Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", Algorithm 1. The first step is 2ε. The iterate is kept in full precision; scored, and differentiated,
    is its rounding to 8 bits within the budget. A run takes all its steps and keeps the success with the highest
    loss, or, where nothing reached the goal, the image with the highest loss; images without success start again.
    """

    NAME: ClassVar[str] = "apgd"
    BY_GRADIENTS: ClassVar[bool] = True

    steps: int = Field(100, ge=1, le=1_000_000, description="Steps of a run.")
    restarts: int = Field(1, ge=1, description="Most runs, each from a random start of its own.")

    def _search(self, batch: "Batch") -> None:
        import torch

        streams, rows = batch.draws(batch.all_rows), batch.all_rows
        highest = torch.full(rows.shape, -torch.inf, device=rows.device)
        for _ in range(self.restarts):
            images, loss, reached = self._run(batch, rows, [streams[row] for row in rows.tolist()])
            better = reached | (loss > highest[rows])
            batch.adversarial[rows[better]] = images[better]
            highest[rows[better]] = loss[better]
            rows = rows[~reached]
            if not len(rows):
                return

    def _run(
        self, batch: "Batch", rows: "Tensor", streams: "Sequence[np.random.Generator]"
    ) -> tuple["Tensor", "Tensor", "Tensor"]:
        """One run: the best image of each row, uint8, its loss, and whether it reaches the goal."""
        import torch

        clean = batch.images[rows].float()
        size = torch.full((len(rows), 1, 1, 1), 2 * self.ball.radius, device=rows.device)
        marks, since = checkpoints(self.steps), 0
        rises = torch.zeros_like(rows)
        halved = torch.ones_like(rows, dtype=torch.bool)  # the paper's condition 2 looks back one checkpoint
        previous = moved = self.random_start(clean, streams)
        for taken in range(self.steps + 1):
            images = self.ball.rounded(moved, clean)
            if taken < self.steps:
                logits, (gradient,) = batch.vector_jacobian(
                    images, rows, lambda found, part: [batch.goal.loss_cotangent(found, part, self.loss)]
                )
            else:
                logits = batch.logits(images, rows)
            loss, now = batch.goal.loss(self.loss, logits, rows), batch.goal.reached(logits, rows)
            if taken == 0:
                best, best_gradient, top = moved, gradient, loss
                kept, kept_loss, reached = images, loss, now
                last, mark_top = loss, loss
            else:
                keep = (now & ~reached) | ((now == reached) & (loss > kept_loss))
                kept, kept_loss, reached = _chosen(keep, images, kept), loss.where(keep, kept_loss), reached | now
                better = loss > top
                top = loss.where(better, top)
                best, best_gradient = _chosen(better, moved, best), _chosen(better, gradient, best_gradient)
                rises += loss > last
                last = loss
            if taken == self.steps:
                break
            if taken in marks:
                stalled = rises < RISES * (taken - since)
                stuck = ~halved & (top <= mark_top)
                halved = stalled | stuck
                size = torch.where(halved.view(-1, 1, 1, 1), size / 2, size)
                moved = _chosen(halved, best, moved)
                gradient = _chosen(halved, best_gradient, gradient)
                mark_top, since = top, taken
                rises = torch.zeros_like(rises)
            aimed = self.ball.project(moved + size * self.steepest(gradient), clean)
            if taken:
                aimed = moved + MOMENTUM * (aimed - moved) + (1 - MOMENTUM) * (moved - previous)
                aimed = self.ball.project(aimed, clean)
            previous, moved = moved, aimed
            batch.generations[rows] += 1
        return kept, kept_loss, reached


def checkpoints(steps: int) -> frozenset[int]:
    """The iterations at which the step size may be halved (Croce & Hein, 2020, section 3.1).

    Periods of 0.22, 0.19, 0.16 … of the steps, 0.06 at least, each a whole number rounded down, as the authors
    compute it; for 20 steps that halves earlier than ⌈p_j·steps⌉ does, and fools more.
    """
    period, least, less = (max(steps * hundredths // 100, 1) for hundredths in (22, 6, 3))
    at, marks = period, []
    while at <= steps:
        marks.append(at)
        period = max(period - less, least)
        at += period
    return frozenset(marks)


def _chosen(which: "Tensor", yes: "Tensor", no: "Tensor") -> "Tensor":
    """Whole images ``[n, C, H, W]``, of the one where ``which`` ``[n]``, else of the other."""
    return yes.where(which.view(-1, 1, 1, 1), no)
