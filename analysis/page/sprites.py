"""Thumbnails as one PNG, so that a page of many images has one picture to decode."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

__all__ = ["Sheet", "change_picture", "picture"]


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
    def of(cls, pictures: Sequence[np.ndarray], *, columns: int = 24) -> "Sheet":
        """Lays out uint8 pictures ``[H, W, 3]`` of one size, left to right and top to bottom."""
        height, width = pictures[0].shape[:2]
        columns = min(columns, len(pictures))
        rows = -(-len(pictures) // columns)
        grid = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
        for number, picture in enumerate(pictures):
            top, left = number // columns * height, number % columns * width
            grid[top : top + height, left : left + width] = picture
        buffer = io.BytesIO()
        Image.fromarray(grid).save(buffer, "PNG", optimize=True)
        return cls(
            "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), columns, rows, width, height
        )

    def position(self, number: int) -> str:
        """The CSS ``background-position`` that shows a thumbnail."""
        column, row = number % self.columns, number // self.columns
        x = 100 * column / (self.columns - 1) if self.columns > 1 else 0
        y = 100 * row / (self.rows - 1) if self.rows > 1 else 0
        return f"{x:.4f}% {y:.4f}%"


def picture(image: np.ndarray) -> np.ndarray:
    """A uint8 image ``[C, H, W]`` as ``[H, W, 3]``; channels beyond the third are not shown."""
    shown = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return np.ascontiguousarray(shown.transpose(1, 2, 0))


def change_picture(clean: np.ndarray, adversarial: np.ndarray) -> np.ndarray:
    """What changed, uint8 ``[H, W, 3]``: raised pixels orange, lowered ones blue, unchanged ones dark.

    Channels are averaged, and the largest change of the image takes the full colour.
    """
    change = (adversarial.astype(np.float64) - clean).mean(axis=0)
    share = change / max(float(np.abs(change).max()), 1.0)
    ground, raised, lowered = (np.array(c, dtype=np.float64) for c in ((40, 40, 44), (255, 150, 40), (60, 150, 255)))
    towards = np.where(share[:, :, None] > 0, raised, lowered)
    return np.rint(ground + np.abs(share)[:, :, None] * (towards - ground)).astype(np.uint8)
