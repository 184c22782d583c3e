"""What searches over few-pixel changes share: k, the budget that it is, the draw of k pixels, the best kept."""

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from workers.attacks.attack import Attack
from workers.errors import WrongInput

if TYPE_CHECKING:
    from torch import Tensor

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["FewPixelAttack", "Incumbents", "subsets"]


class FewPixelAttack(Attack):
    """A search among the changes of at most k pixels, each to any level of each channel (an L0 budget)."""

    BUDGET: ClassVar[str | None] = "pixels"

    pixels: int = Field(ge=1, description="k, the most pixels that may change.")

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if self.pixels > shape[1] * shape[2]:
            raise WrongInput(f"--pixels: an image has {shape[1] * shape[2]} pixels, got {self.pixels}")
        return self

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.l0 <= self.pixels


def subsets(stream: np.random.Generator, count: int, size: int, universe: int) -> np.ndarray:
    """Uniform subsets of 0 to universe − 1, int64 ``[count, size]``: Floyd's algorithm (Bentley & Floyd, 1987).

    All subsets are equally likely; the order within one is not uniform.
    """
    last = np.arange(universe - size, universe)
    chosen = stream.integers(0, last + 1, (count, size))
    for i in range(1, size):
        taken = (chosen[:, :i] == chosen[:, i : i + 1]).any(axis=1)
        chosen[taken, i] = last[i]
    return chosen


class Incumbents:
    """The best candidate so far of every image of a batch, left in ``batch.adversarial``.

    Attributes:
        lowest: float32 ``[B]``, its margin.
        done: bool ``[B]``, whether it succeeds.
    """

    def __init__(self, batch: "Batch") -> None:
        import torch

        self._batch, self._around = batch, batch.around(batch.images, batch.all_rows)
        self.lowest = torch.full((len(batch),), torch.inf, device=batch.images.device)
        self.done = torch.zeros(len(batch), dtype=torch.bool, device=batch.images.device)

    def judge(self, index: "Tensor", position: "Tensor", levels: "Tensor") -> tuple["Tensor", "Tensor"]:
        """Logits ``[n, K]`` and margins ``[n]`` of candidates (as of `Around.judge`) of images not done.

        An image's best candidate is that of the lowest margin among the successes, or else among all; the
        earliest of equals.
        """
        import torch

        logits, margin, success = self._around.judge(index, position, levels)
        self.done[index[success]] = True
        worst = torch.full_like(self.lowest, torch.inf)
        eligible = margin.masked_fill(~success & self.done[index], torch.inf)
        best = worst.scatter_reduce(0, index, eligible, "amin")
        number = torch.arange(len(index), device=index.device)
        number = number.masked_fill(eligible > best[index], len(index))
        first = torch.full_like(self.done, len(index), dtype=torch.int64).scatter_reduce_(0, index, number, "amin")
        better = torch.nonzero((first < len(index)) & (self.done | (best < self.lowest)))[:, 0]
        chosen = first[better]
        self.lowest[better] = best[better]
        self._batch.adversarial[better] = self._around.images(better, position[chosen], levels[chosen])
        return logits, margin
