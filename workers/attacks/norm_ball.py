"""What searches within an L∞ or L2 ball share: ε, the loss, the geometry of the ball, rounding that stays inside it.

Iterates are float32 levels (0 to 255), so that clean images and L∞ bounds are whole numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from workers.attacks.attack import Attack
from workers.errors import WrongInput
from workers.losses import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from workers.results import Distances

__all__ = ["Ball", "Norm", "NormBallAttack", "enough_classes", "lengths", "require_radius", "unit"]

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Ball:
    """The 8-bit images within ε of a clean one, for pixels in [0, 1]; the budget is met on whole levels.

    L∞: no level changes by more than ⌊255ε⌋. L2: the squared level changes sum to at most (255ε)². L1: the level
    changes sum to at most 255ε.
    """

    norm: Literal["linf", "l2", "l1"]
    epsilon: float

    @property
    def radius(self) -> float:
        """ε in levels; ⌊255ε⌋ for L∞."""
        return float(self.limit) if self.norm == "linf" else 255 * self.epsilon

    @property
    def limit(self) -> int:
        """The most that the largest level change, their squares' sum (L2) or their sum (L1) may be."""
        if self.norm == "l2":
            return int((255 * self.epsilon) ** 2 + 1e-6)  # (255 · 0.2)² may fall just short of 2601
        return int(255 * self.epsilon + 1e-9)  # 255 · (k / 255) may fall just short of k

    def __str__(self) -> str:
        names = {"linf": "L∞", "l2": "L2", "l1": "L1"}
        return f"{names[self.norm]} ε = {self.epsilon:g}"

    def within(self, moved: "Distances") -> "np.ndarray":
        """bool ``[n]``: whether images that moved so far are in the ball."""
        size = {"linf": moved.linf * 255, "l2": (moved.l2 * 255) ** 2, "l1": moved.l1 * 255}[self.norm]
        return np.rint(size) <= self.limit

    def project(self, moved: "Tensor", clean: "Tensor") -> "Tensor":
        """The images moved into the ball, then into 0 to 255; both ``[n, C, H, W]`` in levels.

        By clamping (L∞) or by shrinking the change.
        """
        if self.norm == "linf":
            return moved.clamp(clean - self.radius, clean + self.radius).clamp_(0, 255)
        change = moved - clean
        size = lengths(change) if self.norm == "l2" else change.abs().flatten(1).sum(dim=1)
        shrink = (self.radius / size.clamp(min=self.radius)).view(-1, 1, 1, 1)
        return change.mul_(shrink).add_(clean).clamp_(0, 255)

    def rounded(self, moved: "Tensor", clean: "Tensor") -> "Tensor":
        """The 8-bit images that stand for moved ones in the ball, themselves within the budget; uint8.

        Rounding to the nearest level can leave an L2 or L1 ball. Then fewer levels are rounded up in size: those
        whose fraction is above a threshold that is the same for all of an image, found by bisection.
        """
        import torch

        if self.norm == "linf":
            return moved.round().to(torch.uint8)
        change = (moved - clean).round_()
        outside = self._size(change) > self.limit
        if bool(outside.any()):
            fraction = (moved - clean)[outside]
            size, low, high = fraction.abs(), *(torch.full((len(fraction), 1, 1, 1), t) for t in (-0.5, 0.5))
            low, high = low.to(size), high.to(size)
            for _ in range(7):
                middle = (low + high) / 2
                inside = (self._size((size + middle).floor_().clamp_(min=0)) <= self.limit).view(-1, 1, 1, 1)
                low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
            change[outside] = (size + low).floor_().clamp_(min=0).copysign_(fraction)
        return change.add_(clean).to(torch.uint8)

    def _size(self, change: "Tensor") -> "Tensor":
        """What `limit` bounds in L2 and L1, exact in float64 ``[n]``, of whole level changes."""
        import torch

        counted = change.square() if self.norm == "l2" else change.abs()
        return counted.flatten(1).sum(dim=1, dtype=torch.float64)


def require_radius(norm: Norm, epsilon: float) -> None:
    """Refuses an ε that is more than all.

    Raises:
        WrongInput: saying so.
    """
    if norm == "linf" and epsilon > 1:
        raise WrongInput(f"--epsilon: must be at most 1 with --norm linf, got {epsilon}")


class NormBallAttack(Attack):
    """A search within the L∞ or L2 `Ball` around the clean image."""

    BUDGET: ClassVar[str | None] = "epsilon"

    epsilon: float = Field(
        0.1,
        ge=1 / 255,
        description="ε, the radius of the ball, for pixels in [0, 1]; 1/255 (a level) at least, with linf 1 at most.",
    )
    norm: Norm = Field("linf", description="Norm of the ball: linf (largest change) or l2 (Euclidean length).")
    loss: Loss = Field("ce", description="What is raised: cross-entropy, logit margin, or its ratio (dlr).")

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        require_radius(self.norm, self.epsilon)
        return self

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        enough_classes(self.loss, classes)
        return self

    @property
    def ball(self) -> Ball:
        """What the search stays within."""
        return Ball(self.norm, self.epsilon)

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return self.ball.within(moved)

    def steepest(self, gradient: "Tensor") -> "Tensor":
        """The direction of norm 1 in which a loss with this gradient ``[n, C, H, W]`` rises most."""
        return gradient.sign() if self.norm == "linf" else unit(gradient)

    def random_start(self, clean: "Tensor", streams: Sequence[np.random.Generator]) -> "Tensor":
        """Uniform draws from the ball around each clean image ``[n, C, H, W]``, one stream an image; in levels."""
        import torch

        shape = clean.shape[1:]
        if self.norm == "linf":
            drawn = np.stack([stream.random(shape, dtype=np.float32) for stream in streams])
            change = torch.from_numpy(drawn).to(clean.device).mul_(2).sub_(1).mul_(self.ball.radius)
        else:
            normal = np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])
            share = np.array([stream.random() ** (1 / clean[0].numel()) for stream in streams], dtype=np.float32)
            change = unit(torch.from_numpy(normal).to(clean.device))
            change *= torch.from_numpy(share).to(clean.device).mul(self.ball.radius).view(-1, 1, 1, 1)
        return self.ball.project(clean + change, clean)


def lengths(change: "Tensor") -> "Tensor":
    """L2 norms ``[n]`` of ``[n, C, H, W]``, the same bits for any n.

    Summed in two steps, because torch splits the sum of a single long row among its threads.
    """
    return change.square().sum(dim=3).flatten(1).sum(dim=1).sqrt_()


def unit(gradient: "Tensor") -> "Tensor":
    """Each of ``[n, C, H, W]`` divided by its L2 norm; zeros stay zeros."""
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_(min=1e-38)  # else squares underflow
    return scaled.div_(lengths(scaled).clamp_(min=1e-38).view(-1, 1, 1, 1))


def enough_classes(loss: str, classes: int, *, needed: int = 3) -> None:
    """Refuses the DLR loss on a model with fewer than three classes.

    Raises:
        WrongInput: saying so.
    """
    if loss == "dlr" and classes < needed:
        raise WrongInput(f"--loss: dlr needs a model of at least {needed} classes, this one has {classes}")
