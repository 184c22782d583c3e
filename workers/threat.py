"""What an attacker may do to an image: move it within a ball, on whole levels, or change some of its pixels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workers.budgets import levels, spelled, whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ball", "Pixels", "Threat", "lengths", "threat_of"]

NAMES = {"linf": "L∞", "l2": "L2", "l1": "L1"}


class Threat(ABC):
    """What an attacker may do to an image."""

    @abstractmethod
    def within(self, moved: Any) -> np.ndarray:
        """bool ``[n]``: whether images that moved so far are in reach.

        Args:
            moved: has ``l0`` (pixels) and ``linf``, ``l2`` or ``l1`` (pixels in [0, 1]), each ``[n]``: distances of
                8-bit images, as `workers.results.distances` gives them.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """As JSON files have it; `threat_of` makes the threat of it again."""


@dataclass(frozen=True)
class Ball(Threat):
    """The 8-bit images within ε of a clean one, for pixels in [0, 1]; the budget is met on whole levels.

    L∞: no level changes by more than ⌊255ε⌋. L2: the squared level changes sum to at most (255ε)². L1: the level
    changes sum to at most 255ε. An ε within a thousandth of a level of a whole level is that level
    (`workers.budgets.levels`).
    """

    norm: Literal["linf", "l2", "l1"]
    epsilon: float

    @property
    def radius(self) -> float:
        """ε in levels; ⌊255ε⌋ for L∞."""
        return float(self.limit) if self.norm == "linf" else levels(self.epsilon)

    @property
    def limit(self) -> int:
        """The most that the largest level change, their squares' sum (L2) or their sum (L1) may be."""
        asked = levels(self.epsilon)
        return int(asked**2 + 1e-6) if self.norm == "l2" else int(asked)  # the square of √2 may fall short of 2

    @property
    def searched(self) -> str:
        """The ε that the limit comes to, as typed; empty where that is the ball's own."""
        asked = levels(self.epsilon)
        if self.norm == "linf":
            return "" if asked == self.limit else f"{self.limit}/255"
        reached = math.sqrt(self.limit) if self.norm == "l2" else self.limit
        return "" if reached > 0.999 * asked else f"{reached / 255:.3g}"

    @property
    def note(self) -> str:
        """A sentence on what ε loses to whole levels; empty where it loses nothing."""
        if not self.searched:
            return ""
        asked = f"{NAMES[self.norm]} ε = {spelled(self.epsilon)} is {levels(self.epsilon):.6g} levels of 255"
        return f"{asked}, images have whole ones: {self.searched} is searched"

    @property
    def words(self) -> str:
        """ε, and in brackets what is searched where that is less: ``8/255``, ``0.031 (7/255)``."""
        return spelled(whole(self.epsilon)) + f" ({self.searched})" * bool(self.searched)

    def __str__(self) -> str:
        return f"{NAMES[self.norm]} ε = {self.words}"

    def describe(self) -> dict[str, Any]:
        """Norm, ε and, on whole levels, what the limit is: ``levels``, of L2 ``squared_levels``."""
        counted = "squared_levels" if self.norm == "l2" else "levels"
        return {"norm": self.norm, "epsilon": self.epsilon, counted: self.limit}

    def within(self, moved: Any) -> np.ndarray:
        size = 255 * np.asarray(getattr(moved, self.norm), dtype=np.float64)
        return np.rint(size**2 if self.norm == "l2" else size) <= self.limit

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


@dataclass(frozen=True)
class Pixels(Threat):
    """At most so many pixels may change, to anything."""

    count: int

    def __str__(self) -> str:
        return f"{self.count} changed pixel{'s' * (self.count != 1)}"

    def describe(self) -> dict[str, Any]:
        return {"pixels": self.count}

    def within(self, moved: Any) -> np.ndarray:
        return np.asarray(moved.l0) <= self.count


def threat_of(described: Mapping[str, Any]) -> Ball | Pixels:
    """The threat of `Threat.describe`."""
    if described.get("pixels") is not None:
        return Pixels(described["pixels"])
    return Ball(described["norm"], described["epsilon"])


def lengths(change: "Tensor") -> "Tensor":
    """L2 norms ``[n]`` of ``[n, C, H, W]``, the same bits for any n.

    Summed in two steps, because torch splits the sum of a single long row among its threads.
    """
    return change.square().sum(dim=3).flatten(1).sum(dim=1).sqrt_()
