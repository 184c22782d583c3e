"""Logits of images that differ from given ones in a few pixels: incrementally where that pays, else densely."""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from workers.evaluation.chain import read_chain
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.incremental import CleanState, IncrementalEvaluator
from workers.evaluation.scores import slack

__all__ = ["FewPixelEvaluator", "Neighbourhood", "all_levels", "changed_images"]

PUSH_COST = 1.5
"""What a multiply-add of the incremental evaluator costs in dense ones (measured: 30–34 against 34–53 G/s a core)."""

CHUNK = 1024
"""Candidates turned into whole images at a time, or a batch if that is more: it bounds the dense road's memory."""

_EVALUATORS: "WeakKeyDictionary[nn.Module, dict[Any, IncrementalEvaluator]]" = WeakKeyDictionary()


class FewPixelEvaluator:
    """Chooses, for a model and a number of pixels, between the incremental and the dense evaluator.

    The choice compares operations counted, not times measured, so that it is the same everywhere. The model is read
    anew each time one is made: its weights may have changed, or it may be a chain no more.

    Args:
        dense: the dense evaluator of the model.
        shape: ``(C, H, W)``.
        threads: of the incremental evaluator.
    """

    def __init__(self, dense: DenseEvaluator, shape: tuple[int, int, int], *, threads: int = 1) -> None:
        self.dense, self._shape = dense, shape
        known = _EVALUATORS.setdefault(dense.model, {})
        chain = read_chain(dense.model, shape) if dense.device.type == "cpu" else None
        made = known.get((shape, threads))
        if chain is not None and (made is None or not made.chain.same(chain)):
            made = known[shape, threads] = IncrementalEvaluator(chain, shape, threads=threads)
        self._incremental = made if chain is not None else None

    def incremental(self, pixels: int) -> IncrementalEvaluator | None:
        """The incremental evaluator where it pays for candidates of k pixels, None where the dense one does."""
        evaluator = self._incremental
        if evaluator is None or evaluator.differs:
            return None
        if evaluator.operations(pixels) * PUSH_COST > evaluator.dense_operations:
            return None
        return evaluator


class Neighbourhood:
    """Images, and what the model makes of changes to them.

    Args:
        evaluator: of the model.
        images: uint8 ``[m, C, H, W]``.
    """

    def __init__(self, evaluator: FewPixelEvaluator, images: Tensor) -> None:
        self.images = images
        self._evaluator = evaluator
        self._state: CleanState | None = None

    def logits(self, index: Tensor, position: Tensor, levels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits float32 ``[n, K]`` of candidates, and by how much each may differ from the dense ones (``[n]``).

        None for how much says that they are the dense ones.

        Args:
            index: int64 ``[n]``, the image that each candidate changes.
            position: int64 ``[n, k]``, pixels as row·W + column; of two writes to one pixel the later stays.
            levels: uint8 ``[n, k, C]``.
        """
        incremental = self._evaluator.incremental(position.shape[1])
        if incremental is None:
            return self.dense_logits(index, position, levels), None
        if self._state is None:
            self._state = incremental.clean_state(self.images, block=self._evaluator.dense.block)
        found = torch.from_numpy(incremental.logits(self._state, index.numpy(), position.numpy(), levels.numpy()))
        return found, slack(found)

    def compare(self, index: Tensor, position: Tensor, levels: Tensor) -> None:
        """Scores candidates (as of `logits`) both ways; where one differs by more than it may, all go densely from now.

        What reads as a chain can still say other things than its layers do; a certificate rests on that it does not.
        """
        logits, tolerance = self.logits(index, position, levels)
        if tolerance is None:
            return
        off = (logits - self.dense_logits(index, position, levels)).abs().amax(dim=1)
        evaluator = self._evaluator.incremental(position.shape[1])
        if evaluator is not None and not bool((off <= tolerance).all()):  # a NaN is off
            evaluator.differs = True

    def dense_logits(self, index: Tensor, position: Tensor, levels: Tensor) -> Tensor:
        """The same logits from whole images through the whole model."""
        parts, size = [], max(CHUNK, self._evaluator.dense.batch)
        for start in range(0, len(index), size):
            part = slice(start, start + size)
            images = changed_images(self.images, index[part], position[part], levels[part])
            parts.append(self._evaluator.dense.logits(images))
        return torch.cat(parts)


def changed_images(images: Tensor, index: Tensor, position: Tensor, levels: Tensor) -> Tensor:
    """The candidates as images, uint8 ``[n, C, H, W]``; arguments as of `Neighbourhood.logits`."""
    made = images[index]
    flat = made.view(*made.shape[:2], made.shape[2] * made.shape[3])
    each = torch.arange(len(made), device=made.device)
    for pixel in range(position.shape[1]):  # in order, so that of two writes to one pixel the later stays
        flat[each, :, position[:, pixel]] = levels[:, pixel]
    return made


def all_levels(channels: int, *, extremes: bool) -> np.ndarray:
    """What one pixel can become, uint8 ``[L, C]``: 256 levels of grey, or every corner of black and white."""
    if extremes:
        corners = np.indices((2,) * channels).reshape(channels, -1).T
        return np.ascontiguousarray(corners * 255).astype(np.uint8)
    return np.arange(256, dtype=np.uint8)[:, None]
