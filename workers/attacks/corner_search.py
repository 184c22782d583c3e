"""CornerSearch: sampling k-pixel changes by the rank that each one-pixel change has alone."""

from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field

from workers.attacks.few_pixel import FewPixelAttack, Incumbents
from workers.errors import WrongInput

if TYPE_CHECKING:
    from torch import Tensor

    from workers.search import Batch, Goal

__all__ = ["CornerSearch", "draw_ranks", "rankings"]

CHUNK = 1 << 17
"""One-pixel changes judged at a time, which bounds how many images are searched at once."""


class CornerSearch(FewPixelAttack):
    """CornerSearch with an L0 budget of k pixels.

    Croce & Hein (2019), "Sparse and imperceivable adversarial attacks", Algorithm 1. Every change of one pixel to
    another corner of the colour cube is judged and ranked (`rankings`). Then for 2, 3, … k pixels and each
    ranking, candidates combine single changes drawn independently among its N best, the i-th of them with
    probability (2N − 2i + 1)/N². Of two changes of one pixel the later counts, so that a candidate may change
    fewer. Changes to what a pixel already is are neither judged nor ranked.
    """

    NAME: ClassVar[str] = "corner-search"
    JOINT: ClassVar[bool] = False

    pixels: int = Field(5, ge=1, description="k, the most pixels that may change.")
    ranked: int = Field(100, ge=1, description="N, the best single changes of each ranking, which are drawn from.")
    samples: int | None = Field(
        None,
        ge=1,
        description="Candidates of each number of pixels and ranking (N_iter, 1,000 in the paper); "
        "an equal share of the queries when absent.",
    )
    max_queries: int = Field(10_000, ge=1, description="Most queries an image.")

    @property
    def shard_size(self) -> int:
        return max(1, min(256, 1_000_000 // self.max_queries))

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        singles = shape[1] * shape[2] * 2 ** shape[0]
        if self.max_queries < singles:
            raise WrongInput(f"--max-queries: to rank the changes of one pixel takes {singles}, got {self.max_queries}")
        return super().check(shape, classes)

    def _search(self, batch: "Batch") -> None:
        import torch

        corners = 2 ** batch.images.shape[1]
        incumbents, streams = Incumbents(batch), batch.draws(batch.all_rows)
        for part in torch.split(batch.all_rows, max(1, CHUNK // (batch.images[0, 0].numel() * corners))):
            self._some(batch, incumbents, streams, part)

    def _some(self, batch: "Batch", incumbents: Incumbents, streams: list[np.random.Generator], rows: "Tensor") -> None:
        """Searches for some rows of the batch."""
        import torch

        index, position, levels = _single_changes(batch.images, rows)
        logits, _ = incumbents.judge(index, position, levels)
        batch.generations[rows] += 1
        scores = rankings(logits, index, batch.goal)
        # Of each pixel all corners but one at most are changes, so that every image has this many.
        ranked = min(self.ranked, batch.images[0, 0].numel() * (2 ** batch.images.shape[1] - 1))
        best = torch.zeros((len(batch), scores.shape[1], ranked), dtype=torch.int64, device=index.device)
        rows = rows[~incumbents.done[rows]]
        for row in rows.tolist():
            mine = torch.nonzero(index == row)[:, 0]
            best[row] = mine[scores[mine].argsort(dim=0, stable=True)[:ranked]].T

        left = self.max_queries - batch.queries
        groups = [(pixels, one) for pixels in range(2, self.pixels + 1) for one in range(scores.shape[1])]
        for number, (pixels, one) in enumerate(groups):
            if not len(rows):
                return
            share = left * (number + 1) // len(groups) - left * number // len(groups)
            if self.samples is not None:
                share = (left - number * self.samples).clamp(0, self.samples)
            sizes = share[rows]
            if not bool(sizes.any()):
                continue
            drawn = [
                draw_ranks(streams[row], size, pixels, ranked)
                for row, size in zip(rows.tolist(), sizes.tolist(), strict=True)
            ]
            owner = rows.repeat_interleave(sizes)
            single = best[owner[:, None], one, torch.from_numpy(np.concatenate(drawn)).to(owner.device)]
            incumbents.judge(owner, position[single, 0], levels[single, 0])
            batch.generations[rows] += sizes > 0
            rows = rows[~incumbents.done[rows]]


def rankings(logits: "Tensor", rows: "Tensor", goal: "Goal") -> "Tensor":
    """What single changes are ranked by, lowest first, float32 ``[n, R]``.

    Untargeted, R is the number of classes: f_y − f_r in the column of each class r, and in that of the label y
    the margin. Targeted, the one column is f_y − f_t. ∞ where there is no answer.

    Args:
        logits: ``[n, K]`` of the changed images.
        rows: int64 ``[n]``, their rows of the batch.
        goal: of the batch.
    """
    from workers.evaluation.scores import answered

    label = goal.labels[rows][:, None]
    behind = (logits.gather(1, label) - logits).masked_fill_(~answered(logits)[:, None], float("inf"))
    if goal.targets is not None:
        return behind.gather(1, goal.targets[rows][:, None])
    return behind.scatter(1, label, goal.margin(logits, rows)[:, None])


def draw_ranks(stream: np.random.Generator, count: int, pixels: int, ranked: int) -> np.ndarray:
    """Ranks int64 ``[count, pixels]`` in 0 to N − 1: rank i − 1 with probability (2N − 2i + 1)/N²."""
    return ranked - 1 - np.sqrt(stream.integers(0, ranked**2, (count, pixels))).astype(np.int64)


def _single_changes(images: "Tensor", rows: "Tensor") -> tuple["Tensor", "Tensor", "Tensor"]:
    """Every change of one pixel to another corner, of some rows of the batch: rows, positions, levels."""
    import torch

    from workers.evaluation.few_pixel import all_levels

    corners = torch.from_numpy(all_levels(images.shape[1], extremes=True)).to(images.device)
    other = (images[rows].flatten(2).transpose(1, 2)[:, :, None] != corners).any(dim=3)
    image, position, corner = torch.nonzero(other, as_tuple=True)
    return rows[image], position[:, None], corners[corner][:, None]
