"""Sparse-RS: random search over which k pixels change, and to which corner of the colour cube."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field

from workers.attacks.few_pixel import FewPixelAttack, subsets
from workers.budgets import Number
from workers.errors import WrongInput

if TYPE_CHECKING:
    from torch import Tensor

    from workers.search import Around, Batch

__all__ = ["SparseRS", "corner_of_each_pixel"]

BLOCK = 256
"""Most iterations whose random numbers are drawn at a time: few calls an image, and little memory."""

SCHEDULE = ((0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20))
"""After each of these iterations of 10,000, α is α_init over this."""


class SparseRS(FewPixelAttack):
    """Sparse-RS with an L0 budget of k pixels.

    Croce, Andriushchenko, Singh, Flammarion & Hein (2022), "Sparse-RS: a versatile framework for
    query-efficient sparse black-box adversarial attacks", Algorithm 1 with its L0 sampling. The state is a set
    M of k pixels with a black or white level for each of their channels. At iteration i, max(⌊α_i·k⌋, 1) pixels
    of M are restored and as many from outside M come in with random levels; where it is one, it differs from the
    clean pixel. What lowers the loss is kept: the margin when untargeted, the target's cross-entropy when
    targeted. α_i falls in steps, the paper's for 10,000 queries stretched to the budget.
    """

    NAME: ClassVar[str] = "sparse-rs"

    pixels: int = Field(5, ge=1, description="k, how many pixels may change.")
    alpha: Number = Field(0.3, gt=0, le=1, description="α_init, the share of the pixels moved at once at first.")
    max_queries: int = Field(10_000, ge=1, description="Most queries an image; the schedule of α ends there.")

    @property
    def shard_size(self) -> int:
        return max(1, min(256, 1_000_000 // self.max_queries))

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if self.pixels >= shape[1] * shape[2]:
            raise WrongInput(f"--pixels: must leave some of the {shape[1] * shape[2]} pixels out, got {self.pixels}")
        return super().check(shape, classes)

    def moved(self, iteration: int) -> int:
        """How many pixels iteration 1, 2, … exchanges."""
        scaled = int(iteration / self.max_queries * 10_000)
        divisor = max((divisor for after, divisor in SCHEDULE if scaled > after), default=1)
        return max(int(self.alpha / divisor * self.pixels), 1)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Iterations that exchange the same number of pixels: how many iterations, and how many pixels."""
        start = 1
        while start < self.max_queries:
            moved, end = self.moved(start), start + 1
            while end < min(self.max_queries, start + BLOCK) and self.moved(end) == moved:
                end += 1
            yield end - start, moved
            start = end

    def _search(self, batch: "Batch") -> None:
        import torch

        from workers.evaluation.few_pixel import all_levels

        device, rows = batch.images.device, batch.all_rows
        channels, count = batch.images.shape[1], batch.images[0, 0].numel()
        around = batch.around(batch.images, rows)
        corners = torch.from_numpy(all_levels(channels, extremes=True)).to(device)
        clean = corner_of_each_pixel(batch.images)
        streams = batch.draws(rows)

        def drawn(parts: Iterable[np.ndarray]) -> "Tensor":
            return torch.from_numpy(np.stack(list(parts))).to(device)

        order = drawn(stream.permutation(count) for stream in streams)
        corner = drawn(stream.integers(0, len(corners), self.pixels) for stream in streams)
        loss, success = _judge(batch, around, rows, order[:, : self.pixels], corners[corner])
        state = _leave(batch, around, _State(rows, order, corner, loss), corners, success)
        for steps, moved in self._blocks():
            if not len(state.rows):
                return
            mine = [streams[row] for row in state.rows.tolist()]
            draws = _Draws(*map(drawn, zip(*(self._draw(one, steps, moved, count) for one in mine), strict=True)))
            for step in range(steps):
                leaving, entering = draws.leaving[:, step], draws.entering[:, step]
                old, new = state.order.gather(1, leaving), state.order.gather(1, entering)
                colour = _colours(draws.chance[:, step], clean[state.rows[:, None], new], len(corners))
                position = state.order[:, : self.pixels].scatter(1, leaving, new)
                corner = state.corner.scatter(1, leaving, colour)
                loss, success = _judge(batch, around, state.rows, position, corners[corner])
                batch.generations[state.rows] += 1
                better = success | (loss < state.loss)
                keep = better[:, None]
                state.order.scatter_(1, leaving, new.where(keep, old)).scatter_(1, entering, old.where(keep, new))
                state = state._replace(corner=corner.where(keep, state.corner), loss=loss.where(better, state.loss))
                if bool(success.any()):
                    state = _leave(batch, around, state, corners, success)
                    if not len(state.rows):
                        return
                    draws = _Draws(*(part[~success] for part in draws))
        _leave(batch, around, state, corners, torch.ones_like(state.rows, dtype=torch.bool))

    def _draw(self, stream: np.random.Generator, steps: int, moved: int, count: int) -> tuple[np.ndarray, ...]:
        """One image's `_Draws`."""
        moved = min(moved, count - self.pixels)
        leaving = subsets(stream, steps, moved, self.pixels)
        entering = self.pixels + subsets(stream, steps, moved, count - self.pixels)
        return leaving, entering, stream.random((steps, moved))


class _State(NamedTuple):
    """Where the images that are still searched stand.

    Attributes:
        rows: int64 ``[b]``, of the batch.
        order: int64 ``[b, H·W]``, all pixels, the k of M first; exchanged in place.
        corner: int64 ``[b, k]``, the levels of M as a row of `all_levels`.
        loss: ``[b]``.
    """

    rows: "Tensor"
    order: "Tensor"
    corner: "Tensor"
    loss: "Tensor"


class _Draws(NamedTuple):
    """The random numbers of a block of iterations.

    Attributes:
        leaving, entering: int64 ``[b, steps, moved]``, columns of `_State.order` that are exchanged.
        chance: float64 ``[b, steps, moved]`` in [0, 1), which become the levels.
    """

    leaving: "Tensor"
    entering: "Tensor"
    chance: "Tensor"


def _judge(
    batch: "Batch", around: "Around", rows: "Tensor", position: "Tensor", levels: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """Loss and success, each ``[b]``."""
    logits, margin, success = around.judge(rows, position, levels)
    if batch.goal.targets is None:
        return margin, success
    return batch.goal.log_odds(logits, rows), success


def _leave(batch: "Batch", around: "Around", state: _State, corners: "Tensor", leaving: "Tensor") -> _State:
    """Leaves the images of some rows as they stand, and returns the state of the others."""
    gone = _State(*(part[leaving] for part in state))
    batch.adversarial[gone.rows] = around.images(gone.rows, gone.order[:, : gone.corner.shape[1]], corners[gone.corner])
    return _State(*(part[~leaving] for part in state))


def _colours(chance: "Tensor", clean: "Tensor", corners: int) -> "Tensor":
    """Uniform corners int64 ``[b, moved]``; other than the clean pixel's (−1 where it is none) if one pixel moves."""
    if chance.shape[1] > 1:
        return (chance * corners).long()
    other = (chance * (corners - 1)).long()
    return (chance * corners).long().where(clean < 0, other + (other >= clean))


def corner_of_each_pixel(images: "Tensor") -> "Tensor":
    """int64 ``[B, H·W]``: which row of `all_levels` each pixel is, −1 where it is none."""
    import torch

    pixels = images.flatten(2).transpose(1, 2)
    weights = 2 ** torch.arange(pixels.shape[2], device=images.device).flip(0)
    extreme = ((pixels == 0) | (pixels == 255)).all(dim=2)
    return ((pixels == 255) * weights).sum(dim=2).where(extreme, -1)
