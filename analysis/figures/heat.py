"""A matrix of shares as a heat map with its numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle

from analysis.figures.style import BAD, INK, LINE, WIDTH, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["heat_map"]

DEEPEST = 0.5
"""The opacity of a share of 1: text in `INK` is readable on it in light and dark."""

MOST = 12
"""Columns up to which a number fits into a cell."""


def heat_map(
    shares: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row_axis: str,
    column_axis: str,
    outlined: Sequence[tuple[int, int]] = (),
) -> "Figure":
    """Draws it, each cell with its share in per cent.

    Args:
        shares: float ``[R, C]`` in [0, 1]; NaN where there is nothing to show.
        rows, columns: names.
        row_axis, column_axis: what they are.
        outlined: cells that are something else than the others, with a border.
    """
    height, width = shares.shape
    with styled():
        cell = min(0.36, (WIDTH - 1.2) / width)
        wordy = 0.08 * max(map(len, columns), default=0) > (WIDTH - 1.2) / width  # else they run into each other
        tall = min(cell if width > 5 else 0.36, 6 / max(height, 1)) * height
        figure = new_figure(height=max(1.3, tall + 0.6 + 0.065 * wordy * max(map(len, columns), default=0)))
        axes = figure.subplots()
        axes.set(xlim=(0, width), ylim=(height, 0), xlabel=column_axis, ylabel=row_axis)
        for row, column in np.ndindex(height, width):
            share = shares[row, column]
            if np.isnan(share):
                continue
            axes.add_patch(
                Rectangle((column, row), 1, 1, facecolor=(BAD, DEEPEST * share), edgecolor=LINE, linewidth=0.6)
            )
            if (row, column) in outlined:
                axes.add_patch(
                    Rectangle((column + 0.03, row + 0.05), 0.94, 0.9, fill=False, edgecolor=BAD, linewidth=1.2)
                )
            if width <= MOST:
                text = f"{100 * share:.0f}"
                axes.text(column + 0.5, row + 0.53, text, ha="center", va="center", color=INK, fontsize=8)
        every = -(-width // 25)
        axes.set_xticks(np.arange(0, width, every) + 0.5, columns[::every], rotation=40 * wordy, fontsize=8)
        if wordy:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        every = -(-height // 25)
        axes.set_yticks(np.arange(0, height, every) + 0.5, rows[::every], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure
