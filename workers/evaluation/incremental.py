"""Exact few-pixel evaluation: only what a changed pixel touches is computed again."""

import threading

import numpy as np
import torch

from workers.compiled import pool
from workers.evaluation.calls import filled_call
from workers.evaluation.chain import Chain, Layer
from workers.evaluation.kernel import (
    GROUP,
    IN,
    OUT,
    SITES,
    TAPS,
    CleanState,
    Network,
    Scratch,
    evaluate,
)
from workers.evaluation.vectors import LANES, ROWS

__all__ = ["CleanState", "IncrementalEvaluator"]

PLACEMENTS = 32
"""Random placements of k pixels that the mean number of operations is taken over."""


class IncrementalEvaluator:
    """Logits of images that differ from clean ones in a few pixels.

    The clean image's pre-activations are kept. A candidate pushes the change of each of its pixels into the
    pre-activations of the next layer, takes the ReLU where all overlapping windows are summed, goes on with the
    sites that changed, and moves the logits by the change of the last map. That is exact up to the rounding of
    the sums: within 1e-4 of the dense logits.

    Args:
        chain: the model.
        shape: ``(C, H, W)`` of its images.
        threads: threads that candidates are spread over.

    Attributes:
        multiply_adds: executed so far; of channels and sites that a ReLU keeps still, few or none.
        differs: whether the whole model has once said otherwise (`few_pixel.Neighbourhood.compare`).
    """

    def __init__(self, chain: Chain, shape: tuple[int, int, int], *, threads: int = 1) -> None:
        self.chain, self._shape, self._threads = chain, shape, threads
        self._network, self._classes = _flatten(chain, shape)
        self.multiply_adds, self.differs = 0, False
        self._scratch: list[Scratch] = []
        self._operations: dict[int, float] = {}
        self._lock = threading.Lock()  # the scratch is shared, and the kernel runs without the GIL

    def clean_state(self, images: torch.Tensor, *, block: int = 16) -> CleanState:
        """Runs clean images uint8 ``[B, C, H, W]`` through the chain, filled up to a multiple of ``block``."""
        if tuple(images.shape[1:]) != self._shape or images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 [n, {self._shape}], got {images.dtype} {list(images.shape)}")
        floats = images.cpu().float().div(255)
        parts: list[list[np.ndarray]] = [[] for _ in self.chain.layers]
        with torch.no_grad():
            for chunk in torch.split(floats, block):
                for part, found in zip(parts, self.chain.preactivations(filled_call(chunk, block)), strict=True):
                    sites = found[: len(chunk)].flatten(2).transpose(1, 2)
                    part.append(_pad(sites.numpy(), -1, LANES))
        layers = [np.concatenate(part).reshape(-1) for part in parts]
        offsets = np.cumsum([0, *(len(layer) for layer in layers[:-1])])
        pixels = np.ascontiguousarray(images.cpu().flatten(2).transpose(1, 2).numpy())
        return CleanState(pixels, _aligned(np.concatenate(layers)), offsets.astype(np.int64))

    def logits(self, state: CleanState, owner: np.ndarray, position: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Logits float32 ``[n, K]`` of candidates.

        Args:
            state: the clean images.
            owner: int64 ``[n]``, each candidate's clean image.
            position: int64 ``[n, k]``, pixels as row·W + column; of two writes to one pixel the later stays.
            levels: uint8 ``[n, k, C]``, what they become.

        Raises:
            ValueError: for a wrong shape, or an index out of range (the kernel itself would crash).
        """
        channels, height, width = self._shape
        if levels.dtype != np.uint8 or levels.shape != (*position.shape, channels) or owner.shape != position.shape[:1]:
            raise ValueError(f"shapes do not fit: {owner.shape}, {position.shape}, {levels.dtype} {levels.shape}")
        if not len(owner):
            return np.empty((0, self._classes), np.float32)
        if owner.min() < 0 or owner.max() >= len(state.pixels):
            raise ValueError(f"owner must lie in 0 to {len(state.pixels) - 1}")
        if position.size and (position.min() < 0 or position.max() >= height * width):
            raise ValueError(f"position must lie in 0 to {height * width - 1}")
        out = np.empty((len(owner), self._classes), np.float32)
        owner, position = np.ascontiguousarray(owner, np.int64), np.ascontiguousarray(position, np.int64)
        levels, order = np.ascontiguousarray(levels), _order(owner, position, levels, height * width)
        with self._lock:
            while len(self._scratch) < self._threads:
                self._scratch.append(self._room())

            def run(thread: int) -> int:
                return evaluate(
                    self._network, state, self._scratch[thread], order, owner, position, levels,
                    thread, self._threads, out,
                )  # fmt: skip

            done = map(run, range(1)) if self._threads == 1 else pool(self._threads).map(run, range(self._threads))
            self.multiply_adds += sum(done)
        return out

    @property
    def dense_operations(self) -> int:
        """Multiply-adds of one whole image."""
        layers = self._network.layers
        return int((layers[:, SITES] * layers[:, TAPS] * layers[:, IN] * layers[:, OUT]).sum())

    def operations(self, pixels: int) -> float:
        """Multiply-adds of a candidate of k pixels: the touched sites of every layer, with all their channels.

        The mean over fixed random placements; less where a ReLU does not move.
        """
        if pixels not in self._operations:
            self._operations[pixels] = float(np.mean([self._touched(pixels, seed) for seed in range(PLACEMENTS)]))
        return self._operations[pixels]

    def _touched(self, pixels: int, seed: int) -> int:
        network, total = self._network, 0
        count = self._shape[1] * self._shape[2]
        sites = np.random.default_rng(seed).choice(count, min(pixels, count), replace=False)
        for inputs, outputs, _, _, _, table in network.layers:
            pairs = [network.pairs[network.starts[table + s] : network.starts[table + s + 1], 0] for s in sites]
            touched = np.concatenate([np.empty(0, np.int32), *pairs])  # strides may leave a site out
            total += len(touched) * int(inputs) * int(outputs)
            sites = np.unique(touched)
        return total

    def _room(self) -> Scratch:
        layers = self._network.layers
        channels, pixels = self._shape[0], self._shape[1] * self._shape[2]
        outputs = int(layers[:, OUT].max())
        entries = GROUP * max(pixels, int(layers[:, SITES].max()))
        floats = GROUP * max(pixels * channels, int((layers[:, SITES] * layers[:, OUT]).max()))
        floats = _padded(floats + ROWS * outputs)  # what fills up a push of ROWS goes behind the entries
        pushes = int(((GROUP * layers[:, SITES] + ROWS) * layers[:, TAPS]).max())
        return Scratch(
            rows=_aligned(np.zeros((2, floats), np.float32)),
            moved=np.zeros((2, floats), np.uint32),
            count=np.zeros((2, entries), np.int64),
            site=np.zeros((2, entries), np.int64),
            clean=np.zeros(entries, np.int64),
            slot=np.full(entries // GROUP, -1, np.int64),
            begin=np.zeros(GROUP + 1, np.int64),
            first=np.zeros(GROUP, np.int64),
            size=np.zeros(GROUP, np.int64),
            image=np.zeros(GROUP, np.int64),
            end=np.zeros(int(layers[:, TAPS].max()), np.int64),
            source=np.zeros(pushes, np.int64),
            target=np.zeros(pushes, np.int64),
            chosen=np.zeros((2, ROWS), np.int64),
            every=np.arange(max(channels, outputs), dtype=np.uint32),
            total=np.zeros(outputs, np.float32),
        )


def _padded(length: int) -> int:
    return -(-length // LANES) * LANES


def _order(owner: np.ndarray, position: np.ndarray, levels: np.ndarray, pixels: int) -> np.ndarray:
    """An order in which candidates of one pixel that change the same one, to near levels, follow each other."""
    if position.shape[1] != 1:
        return np.arange(len(owner))
    key = (owner * pixels + position[:, 0]) * 256 + levels[:, 0, 0]
    return np.arange(len(key)) if (key[1:] >= key[:-1]).all() else np.argsort(key)


def _flatten(chain: Chain, shape: tuple[int, int, int]) -> tuple[Network, int]:
    rows: list[list[int]] = []
    starts: list[int] = []
    pairs: list[tuple[int, int]] = []
    weights: list[np.ndarray] = []
    inputs, (_, height, width) = shape[0], shape
    offset = table = 0
    for layer in chain.layers:
        out, real, kernel_h, kernel_w = layer.weight.shape
        out_h, out_w = _size(layer, height, width)
        padded_out = _padded(out)
        block = np.zeros((kernel_h * kernel_w, inputs, padded_out), np.float32)
        block[:, :real, :out] = layer.weight.permute(2, 3, 1, 0).reshape(-1, real, out).numpy()
        first = [len(pairs)]
        for row in range(height):
            for column in range(width):
                for ky in range(kernel_h):
                    y, off_y = divmod(row + layer.padding[0] - ky * layer.dilation[0], layer.stride[0])
                    if off_y or not 0 <= y < out_h:
                        continue
                    for kx in range(kernel_w):
                        x, off_x = divmod(column + layer.padding[1] - kx * layer.dilation[1], layer.stride[1])
                        if not off_x and 0 <= x < out_w:
                            pairs.append((y * out_w + x, ky * kernel_w + kx))
                first.append(len(pairs))
        rows.append([inputs, padded_out, out_h * out_w, kernel_h * kernel_w, offset, table])
        starts += first
        weights.append(block.reshape(-1))
        offset, table = offset + block.size, table + len(first)
        inputs, height, width = padded_out, out_h, out_w
    flat = _aligned(np.concatenate(weights))
    lists = np.array(starts, np.int32), np.array(pairs, np.int32).reshape(-1, 2)
    values = torch.arange(256) / 255 / chain.std[:, None]
    return Network(np.array(rows, np.int64), flat, *lists, values.numpy()), int(chain.layers[-1].weight.shape[0])


def _size(layer: Layer, height: int, width: int) -> tuple[int, int]:
    sides = (height, width)
    rows, columns = (
        (side + 2 * layer.padding[axis] - layer.dilation[axis] * (layer.weight.shape[2 + axis] - 1) - 1)
        // layer.stride[axis]
        + 1
        for axis, side in enumerate(sides)
    )
    return rows, columns


def _pad(array: np.ndarray, axis: int, multiple: int) -> np.ndarray:
    missing = -array.shape[axis] % multiple
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, missing)
    return np.pad(array, widths)


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins on a cache line."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
