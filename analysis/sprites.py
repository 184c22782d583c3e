"""Thumbnails as one PNG, so that a page of many images has one picture to decode."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["CHANGES", "Sheet", "change_picture", "picture", "reduced"]

_NONE = 127
"""The level of no change; 0 is the strongest lowering, 254 the strongest raising."""


def _palette() -> np.ndarray:
    share = ((np.arange(255) - _NONE) / _NONE)[:, None]
    ground, raised, lowered = (np.array(c, dtype=np.float64) for c in ((40, 40, 44), (255, 150, 40), (60, 150, 255)))
    towards = np.where(share > 0, raised, lowered)
    return np.rint(ground + np.abs(share) * (towards - ground)).astype(np.uint8)


CHANGES = _palette()
"""The colours of `change_picture`'s levels, uint8 ``[255, 3]``: lowered blue, unchanged dark, raised orange."""


@dataclass(frozen=True)
class Sheet:
    """Thumbnails in a grid.

    Attributes:
        uri: the grid as a PNG data URI.
        columns: thumbnails in a row.
        rows: rows of thumbnails.
        width, height: of a thumbnail in image pixels.
    """

    uri: str
    columns: int
    rows: int
    width: int
    height: int

    @classmethod
    def of(
        cls, pictures: Sequence[np.ndarray], *, columns: int | None = None, palette: np.ndarray | None = None
    ) -> "Sheet":
        """Lays out pictures of one size, left to right and top to bottom.

        Args:
            pictures: uint8, ``[H, W]`` grey or levels of the palette, or ``[H, W, 3]``.
            columns: thumbnails in a row; what makes the sheet about square when None (browsers limit its sides).
            palette: uint8 ``[n, 3]``.
        """
        height, width = pictures[0].shape[:2]
        columns = min(columns or round((len(pictures) * height / width) ** 0.5) or 1, len(pictures))
        rows = -(-len(pictures) // columns)
        grid = np.zeros((rows * height, columns * width, *pictures[0].shape[2:]), dtype=np.uint8)
        for number, picture in enumerate(pictures):
            top, left = number // columns * height, number % columns * width
            grid[top : top + height, left : left + width] = picture
        image, buffer = Image.fromarray(grid), io.BytesIO()
        if palette is not None:
            image.putpalette(palette.tobytes())
        image.save(buffer, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        return cls(uri, columns, rows, width, height)

    def position(self, number: int) -> str:
        """The CSS ``background-position`` that shows a thumbnail."""
        column, row = number % self.columns, number // self.columns
        x = 100 * column / (self.columns - 1) if self.columns > 1 else 0
        y = 100 * row / (self.rows - 1) if self.rows > 1 else 0
        return f"{x:.4f}% {y:.4f}%"


def picture(image: np.ndarray) -> np.ndarray:
    """A uint8 image ``[C, H, W]`` as ``[H, W, 3]``, with fewer than three channels its first as ``[H, W]``.

    Channels beyond the third are not shown.
    """
    return np.ascontiguousarray(image[:3].transpose(1, 2, 0)) if len(image) >= 3 else image[0]


def change_picture(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """What changed between uint8 images ``[C, H, W]``, as levels of `CHANGES`, uint8 ``[H, W]``.

    Channels are averaged, and the largest change of the image takes the full colour.
    """
    change = (adversarial.astype(np.float64) - clean).mean(axis=0)
    share = change / max(float(np.abs(change).max()), 1.0)
    return np.rint(_NONE * (1 + share)).astype(np.uint8)


def reduced(picture: np.ndarray, factor: int, *, change: bool = False) -> np.ndarray:
    """A picture at a whole fraction of its size; at the edge the last block may be smaller.

    Args:
        picture: as `picture` or `change_picture` gives it.
        factor: the side of the block that becomes one pixel: its mean, of a change the strongest of it.
        change: whether it is a change.
    """
    if factor == 1:
        return picture
    if not change:
        return np.asarray(Image.fromarray(picture).reduce(factor))
    height, width = (-(-side // factor) for side in picture.shape)
    padded = np.full((height * factor, width * factor), _NONE, dtype=np.int16)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    blocks = padded.reshape(height, factor, width, factor).transpose(0, 2, 1, 3).reshape(height, width, -1)
    strongest = np.abs(blocks - _NONE).argmax(axis=2)
    return np.take_along_axis(blocks, strongest[:, :, None], axis=2)[:, :, 0].astype(np.uint8)
