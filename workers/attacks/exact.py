"""Exact few-pixel verdicts: every change of a stated space is tried."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from workers.attacks.attack import Attack
from workers.attacks.few_pixel import subsets
from workers.errors import WrongInput

if TYPE_CHECKING:
    from workers.results import Distances
    from workers.search import Batch

__all__ = ["OnePixelExact", "TwoPixelExact"]

CHUNK = 1 << 18
"""Candidates judged at a time."""

COMPARED = 64
"""Random changes of each image that the whole model scores before any image is judged."""


class _Exhaustive(Attack):
    """Tries every candidate of its space: the strongest is kept, the successes are counted and mapped.

    An image of which no candidate succeeds is certified. By-products: ``successes``, how many candidates
    succeed, ``untried``, how many changes of the space to be decided are left out, and ``map``, for each pixel how many
    of the successes use it; where there are any, ``ties``, how many candidates fail only because the prediction is the
    lowest class of the highest logits.
    """

    CERTIFIES: ClassVar[bool] = True

    @property
    @abstractmethod
    def pixels(self) -> int:
        """k, how many pixels a candidate changes."""

    @abstractmethod
    def _space(self, shape: tuple[int, int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions int64 ``[n, k]`` and levels uint8 ``[n, k, C]`` of all candidates, in chunks."""

    @abstractmethod
    def _values(self, channels: int) -> np.ndarray:
        """What a pixel becomes, uint8 ``[L, C]``."""

    @property
    def shard_size(self) -> int:
        return 16

    def within(self, moved: "Distances", features: int) -> np.ndarray:
        return moved.l0 <= self.pixels

    def _search(self, batch: "Batch") -> None:
        import torch

        channels, height, width = batch.images.shape[1:]
        device, untried = batch.images.device, self._untried((channels, height, width))
        batch.by_products["successes"] = torch.zeros(len(batch), dtype=torch.int64, device=device)
        batch.by_products["untried"] = torch.full((len(batch),), untried, device=device)
        batch.by_products["map"] = torch.zeros((len(batch), height * width), dtype=torch.int32, device=device)
        ties = torch.zeros_like(batch.by_products["successes"])
        self._compare(batch)
        for row in batch.all_rows.tolist():
            around = batch.around(batch.images[row : row + 1], batch.all_rows[row : row + 1])
            best = (True, float("inf"))  # failures after successes: at a margin of zero there are both
            for positions, values in self._space((channels, height, width)):
                position, levels = torch.from_numpy(positions).to(device), torch.from_numpy(values).to(device)
                index = torch.zeros(len(position), dtype=torch.int64, device=device)
                _, margin, success = around.judge(index, position, levels)
                batch.by_products["successes"][row] += success.sum()
                ties[row] += ((margin == 0) & ~success).sum()
                used = torch.bincount(position[success].flatten(), minlength=height * width)
                batch.by_products["map"][row] += used.to(torch.int32)
                failed = not bool(success.any())
                strongest = (margin if failed else margin.masked_fill(~success, torch.inf)).argmin()
                rank = (failed, float(margin[strongest]))
                if rank < best:
                    best, chosen = rank, strongest[None]
                    batch.adversarial[row] = around.images(index[:1], position[chosen], levels[chosen])[0]
        if bool(ties.any()):
            batch.by_products["ties"] = ties
        batch.certified = (batch.by_products["successes"] == 0) & (untried == 0)

    def _compare(self, batch: "Batch") -> None:
        """Has a sample of the space, drawn anew for each image, scored by the whole model too: no query of the search.

        A certificate rests on failures that are not: they are scored in parts where that pays.
        """
        import torch

        channels, height, width = batch.images.shape[1:]
        device, values = batch.images.device, self._values(channels)
        positions, levels = [], []
        for stream in batch.draws(batch.all_rows):
            positions.append(subsets(stream, COMPARED, self.pixels, height * width))
            levels.append(values[stream.integers(0, len(values), (COMPARED, self.pixels))])
        drawn = torch.from_numpy(np.concatenate(positions)), torch.from_numpy(np.concatenate(levels))
        index = batch.all_rows.repeat_interleave(COMPARED)
        batch.around(batch.images, batch.all_rows).neighbourhood.compare(index, *(part.to(device) for part in drawn))

    def _untried(self, shape: tuple[int, int, int]) -> int:
        """How many changes of the space that the attack decides are not candidates."""
        return 0


class OnePixelExact(_Exhaustive):
    """Every change of one pixel: all H·W·256 of a grey image, or the 2ᶜ corners of each pixel's channels.

    The exact verdict that one-pixel searches (Su, Vargas & Sakurai, 2019) are measured against. With
    ``--levels extremes``, and on colour images, whose 256ᶜ values are too many, only black and white of each
    channel are tried: the remainder is counted in ``untried``, and an image without a success is exhausted,
    not certified.
    """

    NAME: ClassVar[str] = "one-pixel-exact"

    levels: Literal["all", "extremes"] = Field("all", description="Levels of a changed pixel: all 256, or 0 and 255.")

    @property
    def pixels(self) -> int:
        return 1

    def _values(self, channels: int) -> np.ndarray:
        from workers.evaluation.few_pixel import all_levels

        return all_levels(channels, extremes=channels > 1 or self.levels == "extremes")

    def _untried(self, shape: tuple[int, int, int]) -> int:
        channels, height, width = shape
        return min(height * width * (256**channels - len(self._values(channels))), 2**63 - 1)

    def _space(self, shape: tuple[int, int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        channels, height, width = shape
        values = self._values(channels)
        pixels = np.arange(height * width)
        rows = max(1, CHUNK // len(values))
        for start in range(0, len(pixels), rows):
            part = pixels[start : start + rows]
            yield part.repeat(len(values))[:, None], np.tile(values, (len(part), 1))[:, None]


class TwoPixelExact(_Exhaustive):
    """Every change of two pixels to black or white, each channel; 1.2 million candidates for a digit.

    ``certified`` states that no two pixels made black or white (single ones are among them wherever a pixel is
    black or white already) change the prediction; levels between are not tried.
    """

    NAME: ClassVar[str] = "two-pixel-exact"

    @property
    def pixels(self) -> int:
        return 2

    @property
    def shard_size(self) -> int:
        return 4

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if shape[1] * shape[2] < 2:
            raise WrongInput("two-pixel-exact: an image has one pixel only")
        return self

    def _values(self, channels: int) -> np.ndarray:
        from workers.evaluation.few_pixel import all_levels

        return all_levels(channels, extremes=True)

    def _space(self, shape: tuple[int, int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        channels, height, width = shape
        one = self._values(channels)
        both = np.stack([one.repeat(len(one), axis=0), np.tile(one, (len(one), 1))], axis=1)
        first, second = np.triu_indices(height * width, k=1)
        pairs = np.stack([first, second], axis=1)
        rows = max(1, CHUNK // len(both))
        for start in range(0, len(pairs), rows):
            part = pairs[start : start + rows]
            yield part.repeat(len(both), axis=0), np.tile(both, (len(part), 1, 1))
