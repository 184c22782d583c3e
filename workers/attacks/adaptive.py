"""The attack that knows the detector: the smallest change that fools the classifier and raises no alarm."""

import math
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from workers.attacks.attack import Attack
from workers.attacks.norm_ball import Norm, enough_classes, lengths, unit
from workers.losses import Loss

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["Adaptive"]

Form = Literal["joint", "selective", "orthogonal", "matching"]

LARGEST_WEIGHT = 1000.0
WEIGHT_STEP = 1.1


class Adaptive(Attack):
    """Searches a classifier and its detector together, by gradients; the success of the smallest change is kept.

    The length of the change follows decoupled direction and norm (Rony et al., 2019, Algorithm 1): it shrinks where
    the rounded image is fooled and not flagged, and grows elsewhere. The direction is one of four forms, of the
    gradient g of the classifier's loss and h of the detector's score, each of unit length:

    ``joint``: g − λh, λ searched for each image: it grows by a tenth where the image is fooled but flagged and shrinks
    by as much where it is let through but not fooled. (With max(0, score − τ), whose gradient vanishes wherever the
    image is let through, searches between two half-spaces ended at 1.4 times the known distance; so, at 1.01 times.)
    ``selective`` and ``orthogonal`` (Bryniarski et al., 2021, Eq. 4 and 5): g while the image is not fooled, −h once it
    is; orthogonal takes from each its part along the other.
    ``matching`` (Sabour et al., 2016; on logits): towards the logits of the nearest clean image of another class (of
    the target class) that is not flagged, beside the joint form's −λh.

    On a model without a detector all forms but ``matching`` are decoupled direction and norm. Every iterate is rounded
    and judged. An image that is fooled but always flagged keeps its least flagged iterate.
    """

    NAME: ClassVar[str] = "adaptive"

    form: Form = Field("joint", description="How the gradients of classifier and detector are put together.")
    norm: Norm = Field("l2", description="What is made small: l2 (Euclidean length) or linf (largest change).")
    steps: int = Field(100, ge=1, le=1_000_000, description="Steps.")
    start: float = Field(
        1.0, gt=0, description="The first length of the change, on pixels in [0, 1]; a tenth for linf."
    )
    gamma: float = Field(0.05, gt=0, lt=1, description="γ, the share by which the first steps change the length.")
    loss: Loss = Field("ce", description="What is raised: cross-entropy, logit margin, or its ratio (dlr).")

    @property
    def title(self) -> str:
        return f"{self.NAME} --form {self.form}"

    @property
    def shard_size(self) -> int:
        return 64

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        enough_classes(self.loss, classes)
        return self

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.l2 >= 0

    def _search(self, batch: "Batch") -> None:
        import torch

        rows, clean = batch.all_rows, batch.images.float()
        farthest = self._size(torch.maximum(clean, 255 - clean))
        length = torch.full_like(farthest, 255 * self.start * (1 if self.norm == "l2" else 0.1)).minimum(farthest)
        smallest = torch.full_like(farthest, torch.inf)
        least = torch.full_like(farthest, torch.inf)
        weight, change = torch.ones_like(farthest), torch.zeros_like(clean)
        guide = self._guides(batch) if self.form == "matching" else None
        for taken in range(self.steps + 1):
            images = (clean + change).round_().to(torch.uint8)
            state = self._judged(batch, images, guide, gradients=taken < self.steps)
            size = self._size(images.float() - clean)
            better = state.reached & (size < smallest)
            smallest = size.where(better, smallest)
            excess = state.excess.where(state.fooled & smallest.isinf(), torch.inf)
            milder = excess < least
            least = excess.where(milder, least)
            kept = better | milder | (smallest.isinf() & least.isinf() & (taken == self.steps))
            batch.adversarial = images.where(kept.view(-1, 1, 1, 1), batch.adversarial)
            if taken == self.steps:
                break
            ease = 0.01 + 0.99 * (1 + math.cos(math.pi * taken / self.steps)) / 2
            direction = self._direction(state, weight)
            flagged = state.excess > 0
            weight *= torch.where(state.fooled & flagged, WEIGHT_STEP, 1.0)
            weight /= torch.where(~state.fooled & ~flagged, WEIGHT_STEP, 1.0)
            weight.clamp_(1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
            share = self.gamma * ease**0.5
            length = torch.minimum(length * torch.where(state.reached, 1 - share, 1 + share), farthest)
            length = length.minimum(smallest)  # what is longer than a success is of no use
            change = self._moved(change, direction, length, ease).add_(clean).clamp_(0, 255).sub_(clean)
            batch.generations[rows] += 1

    def _judged(self, batch: "Batch", images: "Tensor", guide: "Tensor | None", *, gradients: bool) -> "_State":
        """What classifier and detector say of images, and where each would have them go."""
        import torch

        goal, rows = batch.goal, batch.all_rows

        def cotangents(found: "Tensor", part: "Tensor") -> list["Tensor"]:
            logits, excess = goal.apart(found)
            raised = plain.loss_cotangent(logits, part, self.loss) if guide is None else 2 * (guide[part] - logits)
            if excess is None:
                return [raised]
            none = torch.zeros_like(excess)[:, None]
            return [torch.cat([raised, none], dim=1), torch.cat([torch.zeros_like(raised), none - 1], dim=1)]

        plain = type(goal)(goal.labels, goal.targets)
        if gradients:
            found, (towards, *away) = batch.vector_jacobian(images, rows, cotangents)
        else:
            found, towards, away = batch.logits(images, rows), torch.zeros_like(images, dtype=torch.float32), []
        logits, excess = goal.apart(found)
        fooled = plain.reached(logits, rows)
        if excess is None:
            excess = torch.zeros_like(logits[:, 0])
        calm = [gradient.nan_to_num_() for gradient in (towards, *away)]
        return _State(fooled, excess, unit(calm[0]), unit(calm[1]) if away else torch.zeros_like(towards))

    def _direction(self, state: "_State", weight: "Tensor") -> "Tensor":
        """Where each image goes, ``[B, C, H, W]``."""
        import torch

        fooled, flagged = (mask.view(-1, 1, 1, 1) for mask in (state.fooled, state.excess > 0))
        if self.form in ("joint", "matching"):
            return state.towards + weight.view(-1, 1, 1, 1) * state.away
        towards, away = state.towards, state.away
        if self.form == "orthogonal":
            along = (towards * away).sum(dim=3).flatten(1).sum(dim=1).view(-1, 1, 1, 1)
            towards, away = towards - along * away, away - along * towards
        return torch.where(fooled, torch.where(flagged, away, 0.0), towards)

    def _moved(self, change: "Tensor", direction: "Tensor", length: "Tensor", ease: float) -> "Tensor":
        """The change after a step, brought to its length."""
        size = length.view(-1, 1, 1, 1)
        if self.norm == "l2":
            moved = change + unit(direction) * (ease * size)
            return moved * (size / lengths(moved).clamp(min=1e-6).view(-1, 1, 1, 1))
        return (change + direction.sign() * (ease * size)).clamp(-size, size)

    def _size(self, change: "Tensor") -> "Tensor":
        """float ``[B]``, in levels."""
        moved = change.float()
        return lengths(moved) if self.norm == "l2" else moved.abs().amax(dim=(1, 2, 3))

    def _guides(self, batch: "Batch") -> "Tensor":
        """For each image the logits ``[B, K]`` of the guide that are nearest to its own."""
        import torch

        guides: Tensor = batch.guides
        logits, _ = batch.goal.apart(batch.logits(batch.images, batch.all_rows))
        found, chosen = guides.argmax(dim=1), batch.goal.classes
        apart = torch.stack([(guides - one).square().sum(dim=1) for one in logits])
        if batch.goal.targets is None:
            apart = apart.masked_fill(found == chosen[:, None], torch.inf)
        else:
            apart = apart.masked_fill(found != chosen[:, None], torch.inf)
        return guides[apart.argmin(dim=1)]


class _State(NamedTuple):
    """What is known of an iterate: fooled bool ``[B]``, excess float ``[B]``, two directions of unit length."""

    fooled: "Tensor"
    excess: "Tensor"
    towards: "Tensor"
    away: "Tensor"

    @property
    def reached(self) -> "Tensor":
        """bool ``[B]``: fooled and not flagged."""
        return self.fooled & (self.excess <= 0)
