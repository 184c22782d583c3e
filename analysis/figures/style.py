"""How figures look: one size and one palette, so that a page can show them in light and dark.

A figure is drawn in the light colours. The page swaps each colour named here for the CSS variable of its name, so no
figure uses a colour that is not named here (rasterised marks excepted: those must be readable on both grounds).
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

__all__ = ["BAD", "CLASSES", "COLOURS", "FILL", "GOOD", "GROUND", "HEIGHT", "INK", "LINE", "OTHER", "QUIET",
           "STYLES", "WIDTH", "new_figure", "png", "settled", "styled", "svg"]  # fmt: skip

WIDTH, HEIGHT = 4.9, 3.6
"""Of a figure in inches; the page shows it at 72 points to the inch and narrows it to 350 pixels at the least."""

INK, QUIET, GROUND, LINE = "#1c1d21", "#5c5f69", "#fbfbfa", "#dcdde1"
BAD, GOOD, OTHER, FILL = "#b8480b", "#226b3f", "#2b62b4", "#f3c9ad"
"""Successful attacks; what held; a second series; areas under `BAD`."""

COLOURS = {
    INK: "--ink", QUIET: "--quiet", GROUND: "--ground", LINE: "--line",
    BAD: "--accent", GOOD: "--good", OTHER: "--other", FILL: "--fill",
}  # fmt: skip
"""The CSS variable for each colour."""

STYLES: Sequence[tuple[str, Any]] = (
    (BAD, "-"), (OTHER, "--"), (GOOD, "-."), (QUIET, ":"), (INK, (0, (5, 1, 1, 1, 1, 1))),
)  # fmt: skip
"""Colours and dashes of the lines of a figure: no more lines than these in one."""

CLASSES = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#b6992d", "#b07aa1", "#ff9da7", "#9c755f", "#8a8784")
"""Ten classes, readable on both grounds; a class is always written out as well."""

_STYLE: Any = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET, "xtick.color": QUIET, "ytick.color": QUIET,
    "axes.titlecolor": INK, "legend.edgecolor": LINE, "legend.facecolor": GROUND, "grid.color": LINE,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "font.family": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a user's names are no formulas; a log axis, whose labels are, sets its own
    "axes.prop_cycle": cycler(color=[BAD, OTHER, GOOD, QUIET, INK]),
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Within it matplotlib draws in brittle's style; figures are both made and saved inside."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(*, width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure, laid out by constrained layout; call inside `styled`. It belongs to no pyplot state."""
    return Figure(figsize=(width, height), layout="constrained")


def settled(figure: Figure) -> Figure:
    """Lays a finished figure out once and for all; else each saving does it again, a third of its time."""
    with styled():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def png(figure: Figure) -> bytes:
    """The figure at 200 dots an inch, on the light ground."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=200, facecolor=GROUND, metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, key: str, *, ground: bool = True) -> str:
    """The figure as SVG, the same bytes each time.

    Args:
        figure: drawn in the style.
        key: keeps the ids of one figure apart from those of another on the same page.
        ground: whether it stands on the light ground or on none.
    """
    buffer = io.StringIO()
    with styled(), mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", facecolor=GROUND if ground else "none", metadata={"Date": None})
    return buffer.getvalue()
