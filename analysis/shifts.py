"""Harmless shifts: changes that leave an image what it is, which a detector of attacks should let pass."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["SHIFTS", "Shift"]

_Levels = np.ndarray
_Change = Callable[[np.ndarray, list[np.random.Generator]], _Levels]


@dataclass(frozen=True)
class Shift:
    """One harmless shift.

    Attributes:
        name, strength: in words; pixels are in [0, 1] there.
        change: of float64 levels ``[n, C, H, W]``, 0 to 255, given a generator for each image, to new levels.
    """

    name: str
    strength: str
    change: _Change

    def __call__(self, images: np.ndarray, ids: np.ndarray, *, seed: int = 0) -> np.ndarray:
        """The shifted images; an image's draws depend on the seed, its id and the shift, not on its neighbours.

        Args:
            images: uint8 ``[n, C, H, W]``.
            ids: int64 ``[n]``, not negative.
            seed: of every draw, not negative.

        Returns:
            uint8 ``[n, C, H, W]``, rounded to the nearest level.

        Raises:
            ValueError: for images of another dtype or number of axes, or another number of ids.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or len(ids) != len(images):
            raise ValueError(
                f"expected uint8 images [n, C, H, W] and n ids, got {images.dtype} {list(images.shape)}, {len(ids)} ids"
            )
        name = int.from_bytes(f"{self.name} {self.strength}".encode(), "big")
        draws = [np.random.default_rng([seed, int(image), name]) for image in ids]
        return np.rint(np.clip(self.change(images.astype(np.float64), draws), 0, 255)).astype(np.uint8)


def _sign_noise(size: float) -> _Change:
    def change(levels: np.ndarray, draws: list[np.random.Generator]) -> np.ndarray:
        signs = [2 * draw.integers(2, size=levels.shape[1:]) - 1 for draw in draws]
        return levels + 255 * size * np.reshape(signs, levels.shape)

    return change


def _gaussian_noise(deviation: float) -> _Change:
    def change(levels: np.ndarray, draws: list[np.random.Generator]) -> np.ndarray:
        noise = [draw.standard_normal(levels.shape[1:]) for draw in draws]
        return levels + 255 * deviation * np.reshape(noise, levels.shape)

    return change


def _blur(deviation: float) -> _Change:
    return lambda levels, _: ndimage.gaussian_filter(levels, (0, 0, deviation, deviation), mode="nearest")


def _moved(pixels: int) -> _Change:
    def change(levels: np.ndarray, draws: list[np.random.Generator]) -> np.ndarray:
        moved, way = np.empty_like(levels), np.array([draw.integers(4) for draw in draws], dtype=int)
        for number, (down, right) in enumerate(((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))):
            chosen = way == number
            moved[chosen] = ndimage.shift(levels[chosen], (0, 0, down, right), order=0, mode="nearest")
        return moved

    return change


def _turned(degrees: float) -> _Change:
    def change(levels: np.ndarray, draws: list[np.random.Generator]) -> np.ndarray:
        turned, left = np.empty_like(levels), np.array([draw.integers(2) for draw in draws], dtype=bool)
        for chosen, angle in ((left, degrees), (~left, -degrees)):
            turned[chosen] = ndimage.rotate(
                levels[chosen], angle, axes=(-1, -2), reshape=False, order=1, mode="nearest"
            )
        return turned

    return change


def _brightness(factor: float) -> _Change:
    return lambda levels, _: factor * levels


def _contrast(factor: float) -> _Change:
    def change(levels: np.ndarray, _: list[np.random.Generator]) -> np.ndarray:
        mean = levels.mean(axis=(1, 2, 3), keepdims=True)
        return mean + factor * (levels - mean)

    return change


SHIFTS = (
    Shift("sign noise", "±0.3 on every value", _sign_noise(0.3)),
    Shift("Gaussian noise", "σ 0.1", _gaussian_noise(0.1)),
    Shift("blur", "Gaussian, σ 1 pixel", _blur(1.0)),
    Shift("translation", "1 pixel, one of four ways", _moved(1)),
    Shift("translation", "2 pixels, one of four ways", _moved(2)),
    Shift("rotation", "10°, left or right", _turned(10)),
    Shift("brightness", "× 0.8", _brightness(0.8)),
    Shift("brightness", "× 1.2", _brightness(1.2)),
    Shift("contrast", "× 0.7 about the image's mean", _contrast(0.7)),
)
