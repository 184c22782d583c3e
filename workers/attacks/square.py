"""Square attack: random search that needs the logits alone."""

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from workers.attacks.norm_ball import NormBallAttack
from workers.budgets import Number
from workers.losses import Loss
from workers.threat import lengths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.search import Batch

__all__ = ["Square", "pattern", "share_of_pixels"]

DRAWN_AT_ONCE = 128
"""Steps whose random numbers are drawn together; bounds the memory, and results do not depend on it."""


class Square(NormBallAttack):
    """Square attack: a black-box random search over square patches on the boundary of the ball.

    Andriushchenko et al. (2020), "Square attack: a query-efficient black-box adversarial attack via random search",
    Algorithms 1 to 3. It starts from vertical stripes (L∞) or a grid of bumps (L2); a step proposes a square of new
    changes at a random place and keeps it when the loss rises. The side of the square falls with the steps. L∞
    changes are whole levels; L2 changes are kept in full precision and scored rounded to 8 bits within the budget.
    The first success ends an image.
    """

    NAME: ClassVar[str] = "square"

    max_queries: int = Field(5000, ge=1, description="Most queries an image.")
    p_init: Number = Field(0.8, gt=0, le=1, description="p, the share of the pixels that the first squares cover.")
    loss: Loss = Field("margin", description="What is raised: cross-entropy, logit margin, or its ratio (dlr).")

    @property
    def shard_size(self) -> int:
        return max(16, min(256, 256_000 // self.max_queries))

    def _search(self, batch: "Batch") -> None:
        import torch

        rows = batch.all_rows
        space = (_Linf if self.norm == "linf" else _L2)(self, batch)
        loss = torch.full(rows.shape, -torch.inf, device=rows.device)
        streams = batch.draws(rows)
        for step in range(self.max_queries):
            ahead = (step - 1) % DRAWN_AT_ONCE
            if step and not ahead:
                numbers = _drawn(streams, (DRAWN_AT_ONCE, space.numbers), rows)
            if step:
                images = space.propose(numbers[:, ahead], self._side(step - 1, batch.images.shape))
            else:
                images = space.start(streams)
            logits = batch.logits(images, rows)
            found, reached = batch.goal.loss(self.loss, logits, rows), batch.goal.reached(logits, rows)
            better = (found > loss) | reached
            loss = found.where(better, loss)
            space.accept(better, images)
            batch.generations[rows] += step > 0
            if step == self.max_queries - 1 or bool(reached.any()):
                batch.adversarial[rows] = space.images
                going = ~reached
                rows, loss = rows[going], loss[going]
                if not len(rows):
                    return
                space.keep(going)
                streams = [stream for stream, stay in zip(streams, going.tolist(), strict=True) if stay]
                if step:
                    numbers = numbers[going]

    def _side(self, step: int, shape: "Sequence[int]") -> int:
        height, width = shape[2:]
        share = share_of_pixels(self.p_init, step, self.max_queries)
        side = max(round(math.sqrt(share * height * width)), 1)
        if self.norm == "l2":
            side = max(side, 3)
            side += side % 2 == 0
        return min(side, height, width)


class _Linf:
    """Images whose every feature is the clean one ± ⌊255ε⌋ levels, as far as 0 to 255 goes."""

    def __init__(self, attack: Square, batch: "Batch") -> None:
        import torch

        clean, levels = batch.images.to(torch.int16), int(attack.ball.radius)
        self.numbers = 2 + clean.shape[1]  # row, column, the sign of each channel
        self.low = (clean - levels).clamp_(min=0).to(torch.uint8)
        self.high = (clean + levels).clamp_(max=255).to(torch.uint8)
        self.images = batch.images

    def start(self, streams: "Sequence[np.random.Generator]") -> "Tensor":
        """Vertical stripes, a sign for each channel and column."""
        _, channels, _, width = self.images.shape
        signs = _drawn(streams, (channels, 1, width), self.images) < 0.5
        return self.high.where(signs, self.low)

    def propose(self, numbers: "Tensor", side: int) -> "Tensor":
        """Images ``[n, C, H, W]`` with a square of this side changed, from draws ``[n, numbers]`` in [0, 1)."""
        import torch

        height, width = self.images.shape[2:]
        top, left = _corner(numbers[:, 0], height - side), _corner(numbers[:, 1], width - side)
        row, column = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
        rows = (row >= top[:, None]) & (row < top[:, None] + side)
        columns = (column >= left[:, None]) & (column < left[:, None] + side)
        square = rows[:, None, :, None] & columns[:, None, None, :]
        return self.high.where(numbers[:, 2:, None, None] < 0.5, self.low).where(square, self.images)

    def accept(self, better: "Tensor", images: "Tensor") -> None:
        self.images = images.where(better.view(-1, 1, 1, 1), self.images)

    def keep(self, going: "Tensor") -> None:
        self.low, self.high, self.images = self.low[going], self.high[going], self.images[going]


class _L2:
    """Changes of length 255ε before clipping to 0 to 255, made of bumps; the images are their roundings."""

    def __init__(self, attack: Square, batch: "Batch") -> None:
        import torch

        self.attack, self.images = attack, batch.images
        self.clean = batch.images.float()
        self.numbers = 5 + self.clean.shape[1]  # two corners, the orientation of the bumps, the sign of each channel
        self.change = self.proposed = torch.zeros_like(self.clean)

    def start(self, streams: "Sequence[np.random.Generator]") -> "Tensor":
        """A grid of bumps, five along the shorter side, a sign for each bump and channel."""
        import torch

        count, channels, height, width = self.clean.shape
        side = max(min(height, width) // 5, 1)
        down, across = height // side, width // side
        drawn = _drawn(streams, (1 + channels, down, 1, across, 1), self.clean) < 0.5
        bumps = torch.from_numpy(pattern(side)).to(self.clean)
        lying = bumps.view(1, 1, 1, side, 1, side).where(drawn[:, :1], bumps.T.reshape(1, 1, 1, side, 1, side))
        grid = lying.where(drawn[:, 1:], -lying).reshape(count, channels, down * side, across * side)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        change = torch.zeros_like(self.clean)
        change[:, :, top : top + down * side, left : left + across * side] = grid
        return self._put(change)

    def propose(self, numbers: "Tensor", side: int) -> "Tensor":
        """Images ``[n, C, H, W]`` with a window changed and another one cleared, from draws ``[n, numbers]``.

        The new window adds a bump to the direction of the old one; its length takes up what is left of ε and what
        both windows held (Algorithm 3).
        """
        import torch

        count, channels, height, width = self.change.shape
        across = torch.arange(side, device=numbers.device)
        windows = []
        for first in (0, 2):
            top, left = _corner(numbers[:, first], height - side), _corner(numbers[:, first + 1], width - side)
            places = (top[:, None, None] + across[:, None]) * width + left[:, None, None] + across
            windows.append(places.view(count, 1, -1).expand(-1, channels, -1))
        new, cleared = windows
        bumps = torch.from_numpy(pattern(side)).to(numbers)
        bump = bumps.reshape(-1).where(numbers[:, 4:5] < 0.5, bumps.T.reshape(-1))[:, None]
        bump = bump.where(numbers[:, 5:, None] < 0.5, -bump)

        flat = self.change.flatten(2)
        held = flat.gather(2, new)
        without = flat.scatter(2, new, 0).scatter(2, cleared, 0)
        unused = (self.attack.ball.radius**2 - lengths(self.change).square()).clamp(min=0).view(-1, 1, 1) / channels
        freed = flat.square().sum(dim=2, keepdim=True) - without.square().sum(dim=2, keepdim=True)
        direction = bump + held / _length(held)
        length = (unused + freed.clamp_(min=0)).sqrt()
        return self._put(without.scatter(2, new, direction * (length / _length(direction))).view_as(self.change))

    def accept(self, better: "Tensor", images: "Tensor") -> None:
        chosen = better.view(-1, 1, 1, 1)
        self.change, self.images = self.proposed.where(chosen, self.change), images.where(chosen, self.images)

    def keep(self, going: "Tensor") -> None:
        self.clean, self.change, self.images = self.clean[going], self.change[going], self.images[going]

    def _put(self, change: "Tensor") -> "Tensor":
        """Scales changes to the ball's radius, clips the images, and returns them rounded."""
        change = change * (self.attack.ball.radius / lengths(change).clamp(min=1e-6)).view(-1, 1, 1, 1)
        moved = (self.clean + change).clamp_(0, 255)
        self.proposed = moved - self.clean
        return self.attack.ball.rounded(moved, self.clean)


def pattern(side: int) -> np.ndarray:
    """The bumps of the L2 attack, ``[side, side]`` of norm 1: a rising half over a falling one (Eq. 1)."""
    upper = side // 2
    whole = np.concatenate([_bump(upper, side), -_bump(side - upper, side)])
    return whole / np.linalg.norm(whole)


def share_of_pixels(first: float, step: int, steps: int) -> float:
    """The share of the pixels that a square covers in a step of so many.

    The paper's schedule halves it at 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps.
    """
    at = step * 10_000 / steps
    return first / 2 ** sum(at > mark for mark in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))


def _bump(height: int, width: int) -> np.ndarray:
    """Concentric rectangles around the middle, that at distance d being Σ_{k ≥ d} 1/(k + 1)²."""
    row, column = np.arange(height)[:, None], np.arange(width)
    distance = np.maximum(abs(row - height // 2), abs(column - width // 2))
    rings = 1 / np.arange(1, max(height // 2, width // 2) + 2) ** 2
    return rings[::-1].cumsum()[::-1][distance]


def _corner(drawn: "Tensor", last: int) -> "Tensor":
    """int64 ``[n]`` in 0 to ``last``, from draws in [0, 1)."""
    return (drawn * (last + 1)).long().clamp_(max=last)


def _drawn(streams: "Sequence[np.random.Generator]", shape: tuple[int, ...], like: "Tensor") -> "Tensor":
    """Uniform float32 ``[n, …]`` in [0, 1), a stream a row, on the device of another tensor."""
    import torch

    return torch.from_numpy(np.stack([stream.random(shape, dtype=np.float32) for stream in streams])).to(like.device)


def _length(windows: "Tensor") -> "Tensor":
    return windows.square().sum(dim=2, keepdim=True).sqrt().clamp(min=1e-12)
