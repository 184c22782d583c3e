"""Few-pixel search by chance: what every other search has to beat."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from workers.attacks.few_pixel import FewPixelAttack, Incumbents, subsets

if TYPE_CHECKING:
    from workers.search import Batch

__all__ = ["RandomPixels"]

CHUNK = 1 << 16
"""Candidates judged at a time, over all images."""


class RandomPixels(FewPixelAttack):
    """Independent candidates: k distinct pixels, all sets equally likely, and each channel's level uniform.

    An image's candidates come in steps of an eighth of those that it has had, and of 8 at least, so that few
    are judged beyond the first success and yet few calls are made.
    """

    NAME: ClassVar[str] = "random-pixels"

    pixels: int = Field(5, ge=1, description="k, how many pixels are drawn.")
    levels: Literal["extremes", "all"] = Field(
        "extremes", description="Levels drawn: 0 and 255 of each channel, or all 256."
    )
    max_queries: int = Field(10_000, ge=1, description="Most queries an image.")

    @property
    def shard_size(self) -> int:
        return max(1, min(256, 1_000_000 // self.max_queries))

    def _search(self, batch: "Batch") -> None:
        import torch

        device, rows = batch.images.device, batch.all_rows
        channels, count = batch.images.shape[1], batch.images[0, 0].numel()
        incumbents = Incumbents(batch)
        streams = batch.draws(rows)
        values = np.array([0, 255] if self.levels == "extremes" else range(256), dtype=np.uint8)
        used = 0
        while len(rows) and used < self.max_queries:
            step = min(max(8, used // 8), self.max_queries - used, CHUNK)
            used += step
            for part in torch.split(rows, max(1, CHUNK // step)):
                mine = [streams[row] for row in part.tolist()]
                position = np.concatenate([subsets(stream, step, self.pixels, count) for stream in mine])
                size = (step, self.pixels, channels)
                drawn = np.concatenate([stream.integers(0, len(values), size, dtype=np.uint8) for stream in mine])
                incumbents.judge(
                    part.repeat_interleave(step),
                    torch.from_numpy(position).to(device),
                    torch.from_numpy(values[drawn]).to(device),
                )
            batch.generations[rows] += 1
            rows = rows[~incumbents.done[rows]]
