"""Decoupled direction and norm: the smallest L2 change that reaches the goal."""

import math
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from workers.attacks.attack import Attack
from workers.attacks.norm_ball import enough_classes, unit
from workers.budgets import Amount, Number
from workers.losses import Loss
from workers.threat import lengths

if TYPE_CHECKING:
    import numpy as np

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["DDN"]


class DDN(Attack):
    """Decoupled direction and norm: gradient steps choose a direction, success or failure its length.

    Rony et al. (2019), "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and
    defenses", Algorithm 1. Each step adds α·gradient/norm to the change and scales it to a length that shrinks by γ
    after a success and grows by γ after a failure. α falls from 1 to 0.01 along a cosine, and here γ falls by the same
    factor (in the paper it stays 0.05), so that the length settles: on 200 digits the changes are 2.0 % shorter after
    20 steps and 1.1 % after 50. The change is kept in full precision; scored, differentiated and measured is the
    image rounded to 8 bits, and the success of the smallest L2 distance is kept. There is no budget but the steps.
    """

    NAME: ClassVar[str] = "ddn"
    BY_GRADIENTS: ClassVar[bool] = True

    steps: int = Field(100, ge=1, le=1_000_000, description="Steps.")
    start: Amount = Field(1.0, gt=0, description="The first length of the change, on pixels in [0, 1].")
    gamma: Number = Field(0.1, gt=0, lt=1, description="γ, the share by which the first steps change the length.")
    loss: Loss = Field("ce", description="What is raised: cross-entropy, logit margin, or its ratio (dlr).")

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        enough_classes(self.loss, classes)
        return self

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.l2 >= 0

    def _search(self, batch: "Batch") -> None:
        import torch

        rows = batch.all_rows
        clean = batch.images.float()
        farthest = lengths(torch.maximum(clean, 255 - clean))
        length = torch.full_like(farthest, 255 * self.start)
        shortest = torch.full_like(farthest, torch.inf, dtype=torch.float64)
        change = torch.zeros_like(clean)
        for taken in range(self.steps + 1):
            images = (clean + change).round_().to(torch.uint8)
            if taken < self.steps:
                logits, (gradient,) = batch.vector_jacobian(
                    images, rows, lambda found, part: [batch.goal.loss_cotangent(found, part, self.loss)]
                )
            else:
                logits = batch.logits(images, rows)
            reached = batch.goal.reached(logits, rows)
            squares = (images - clean).square_().flatten(1).sum(dim=1, dtype=torch.float64)
            better = reached & (squares < shortest)
            shortest = squares.where(better, shortest)
            kept = better | (shortest.isinf() & (taken == self.steps))  # a failed search leaves its last image
            batch.adversarial = images.where(kept.view(-1, 1, 1, 1), batch.adversarial)
            if taken == self.steps:
                break
            ease = 0.01 + 0.99 * (1 + math.cos(math.pi * taken / self.steps)) / 2
            change.add_(unit(gradient), alpha=255 * ease)
            share = self.gamma * ease
            length = torch.minimum(length * torch.where(reached, 1 - share, 1 + share), farthest)
            change *= (length / lengths(change).clamp_(min=1e-6)).view(-1, 1, 1, 1)
            change = change.add_(clean).clamp_(0, 255).sub_(clean)
            batch.generations += 1
