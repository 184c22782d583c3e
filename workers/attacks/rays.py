"""RayS: a search that needs the predicted class alone."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.attacks.norm_ball import BallAttack

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from workers.search import Batch

__all__ = ["RayS"]

TOLERANCE = 0.05
"""Levels to which a radius is found. Flips gain little each: with a whole level, half of the successes are lost."""


class RayS(BallAttack):
    """RayS: the shortest way along a ray of signs to an image that reaches the goal, asking for predictions alone.

    Chen & Gu (2020), "RayS: a ray searching method for hard-label adversarial attack", Algorithms 2 and 3. A ray
    leaves the clean image along a direction of ±1 a feature and is clipped to 0 to 255; its radius is where it reaches
    the goal. In turn all, halves, quarters, …, single features of the best direction are flipped; a flip that fails
    just short of the best radius is dropped after that one query, else its own radius is bisected and the flip kept.

    Three departures. ε is given, so the first point of a bisection is ⌊255ε⌋ levels: a success there ends an image, a
    failure leaves less to bisect. The paper begins with all −1, then flips blocks of all +1 until a ray reaches the
    goal, which on some models none does; here the blocks of a start, as large as an image, then half, …, have random
    signs. And once no flip of a single feature shortens the ray, later ones would not either: the image is exhausted.

    Points beyond ε are asked for in full precision; a success is an 8-bit image. Targeted, rays lead where such
    patterns do, so a target is often not found.
    """

    NAME: ClassVar[str] = "rays"

    max_queries: int = Field(5000, ge=1, description="Most queries an image.")

    @property
    def shard_size(self) -> int:
        return max(16, min(256, 256_000 // self.max_queries))

    def _search(self, batch: "Batch") -> None:
        import torch

        rows, rays = batch.all_rows, _Rays(batch.images, self.ball.limit, batch.draws(batch.all_rows))
        for _ in range(self.max_queries):
            radius = rays.radius()
            images = rays.at(radius)
            reached = batch.goal.reached(batch.logits(images / 255, rows), rows)
            done = reached & (radius <= self.ball.limit)
            batch.generations[rows] += rays.answer(radius, reached)
            going = ~(done | rays.stuck)
            if not bool(going.all()):
                found = images.to(torch.uint8).where(done.view(-1, 1, 1, 1), rays.nearest())
                batch.adversarial[rows[~going]] = found[~going]
                rows = rows[going]
                rays.keep(going)
                if not len(rows):
                    return
        batch.adversarial[rows] = rays.nearest()


class _Rays:
    """Where the search of each image stands; radii in levels, directions flat, ``[n, D]`` of ±1.

    Attributes:
        best: float ``[n]``, the smallest radius yet, that of ``direction``; ∞ before the first.
        direction: the best direction.
        tried: the direction under test: a random one before the first radius, then ``direction`` with a block flipped.
        low, high: float ``[n]``, radii along ``tried`` at which it failed (0 before) and succeeded (∞ before).
        level, block: int64 ``[n]``: the block is that of this number when the features are cut into 2^level.
        idle: int64 ``[n]``: flips of single features in a row that did not shorten the ray.
    """

    def __init__(self, images: "Tensor", limit: int, streams: "Sequence[np.random.Generator]") -> None:
        import torch

        self.shape, self.limit, self.streams = images.shape[1:], limit, list(streams)
        self.clean = images.flatten(1).float()
        self.features = self.clean.shape[1]
        self.deepest = (self.features - 1).bit_length()
        self.direction, self.tried = torch.ones_like(self.clean), torch.ones_like(self.clean)
        self.best = self.high = torch.full((len(images),), torch.inf, device=images.device)
        self.low = torch.zeros_like(self.best)
        self.level = self.block = self.idle = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self._draw(torch.ones_like(self.level, dtype=torch.bool))

    @property
    def stuck(self) -> "Tensor":
        """bool ``[n]``: whether every flip of a single feature was tried since the ray was last shortened."""
        return self.idle >= self.features

    def radius(self) -> "Tensor":
        """float ``[n]``: where to ask next along ``tried``."""
        import torch

        first = (self.best - TOLERANCE).clamp(min=self.limit, max=255)  # at 255 all features are 0 or 255
        later = ((self.low + self.high) / 2).where(self.low >= self.limit, float(self.limit))
        return torch.where(self.high.isinf(), first, later)

    def at(self, radius: "Tensor") -> "Tensor":
        """float ``[n, C, H, W]`` in levels: the images at these radii along ``tried``."""
        return (self.clean + self.tried * radius[:, None]).clamp_(0, 255).view(-1, *self.shape)

    def nearest(self) -> "Tensor":
        """uint8 ``[n, C, H, W]``: the images of the ball on the best ray; clean ones where there is none."""
        import torch

        radius = torch.where(self.best.isinf(), 0, float(self.limit))[:, None]
        return (self.clean + self.direction * radius).clamp_(0, 255).view(-1, *self.shape).to(torch.uint8)

    def answer(self, radius: "Tensor", reached: "Tensor") -> "Tensor":
        """Takes in whether the images at these radii reached the goal; bool ``[n]``, whether a flip is now kept."""
        import torch

        dropped = ~reached & self.high.isinf()
        self.high, self.low = radius.where(reached, self.high), self.low.where(reached, radius)
        shorter = (self.low >= self.limit) & (self.high - self.low <= TOLERANCE)
        over, flipped = dropped | shorter, self.best.isfinite()
        if not bool(over.any()):
            return shorter
        self.direction = self.tried.where(shorter[:, None], self.direction)
        self.best = self.high.where(shorter, self.best)
        self.high, self.low = self.high.masked_fill(over, torch.inf), self.low.masked_fill(over, 0)

        flip = over & flipped
        self.idle = (self.idle + (flip & (self.level == self.deepest))).masked_fill(shorter, 0)
        last = flip & ((self.block + 1) * self._size() >= self.features)
        self.block = (self.block + flip).masked_fill(last, 0)
        self.level = (self.level + last).clamp(max=self.deepest).masked_fill(shorter & ~flipped, 0)
        self.tried = self._flipped().where(self.best.isfinite()[:, None], self.tried)
        again = dropped & ~flipped
        self.level = torch.where(again, (self.level + 1) % (self.deepest + 1), self.level)
        self._draw(again)
        return shorter

    def keep(self, going: "Tensor") -> None:
        for name in ("clean", "direction", "tried", "best", "low", "high", "level", "block", "idle"):
            setattr(self, name, getattr(self, name)[going])
        self.streams = [stream for stream, stay in zip(self.streams, going.tolist(), strict=True) if stay]

    def _draw(self, rows: "Tensor") -> None:
        """Makes ``tried`` of some (bool ``[n]``) a random direction: a sign for each block of their level."""
        import torch

        size = self._size().tolist()
        for row in rows.nonzero()[:, 0].tolist():
            signs = 2 * self.streams[row].integers(0, 2, -(-self.features // size[row])) - 1
            self.tried[row] = torch.from_numpy(signs.repeat(size[row])[: self.features]).to(self.tried)

    def _flipped(self) -> "Tensor":
        """``direction`` with the block flipped."""
        import torch

        size, place = self._size()[:, None], torch.arange(self.features, device=self.level.device)
        return self.direction.where(place // size != self.block[:, None], -self.direction)

    def _size(self) -> "Tensor":
        """int64 ``[n]``: the features of a block."""
        return (self.features + (1 << self.level) - 1) >> self.level
