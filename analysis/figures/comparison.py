"""The figures of a comparison of two searches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from analysis.comparison import Comparison, to_table
from analysis.exhibits import Drawing, Exhibit
from analysis.figures.style import BAD, INK, OTHER, QUIET, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["comparison_exhibits"]


def comparison_exhibits(comparisons: Sequence[Comparison], first: str, second: str, what: str) -> list[Exhibit]:
    """One exhibit: the two shares and their paired difference at each budget; none without a comparison.

    Args:
        comparisons: at each budget.
        first, second: what the two are called.
        what: is a share of, for example success.
    """
    if not comparisons:
        return []
    lines = [f"{one.name}: {_said(one)}" if one.name else _said(one) for one in comparisons]
    each = Drawing(
        "comparison-shares",
        f"{what} of {first} and of {second} on the rows that both were asked about, with 95% intervals of each alone.",
        _shares(comparisons, first, second, what),
    )
    apart = Drawing(
        "comparison-difference",
        f"{what}: {second} less {first}, in points, with the paired 95% interval that resamples images.",
        _differences(comparisons),
    )
    finding = f"{what}, {second} less {first}: {'; '.join(lines)}."
    note = "The interval of a difference is of pairs: it may tell two apart whose own intervals overlap."
    return [Exhibit("comparison", f"{first} and {second}", finding, [each, apart], to_table(list(comparisons)), [note])]


def _said(one: Comparison) -> str:
    return f"{one.difference}, McNemar p = {one.p:.2g}{' by image' * one.first.clustered}"


def _shares(comparisons: Sequence[Comparison], first: str, second: str, what: str) -> "Figure":
    with styled():
        figure = new_figure(height=1.15 + 0.34 * len(comparisons))
        axes = figure.subplots()
        for shift, name, colour, rates in (
            (-0.13, first, BAD, [one.first for one in comparisons]),
            (0.13, second, OTHER, [one.second for one in comparisons]),
        ):
            value = np.array([100 * (rate.low or 0) for rate in rates])
            ends = 100 * np.array([rate.interval for rate in rates])
            place = np.arange(len(rates)) + shift
            around = np.abs(ends.T - value)
            axes.errorbar(
                value, place, xerr=around, color=colour, linestyle="", marker="o", markersize=4, capsize=3, label=name
            )  # fmt: skip
        axes.set(xlabel=f"{what} (%)", xlim=(-2, 102))
        _named(axes, comparisons)
        figure.legend(loc="outside lower left")
    return figure


def _differences(comparisons: Sequence[Comparison]) -> "Figure":
    with styled():
        figure = new_figure(height=0.85 + 0.28 * len(comparisons))
        axes = figure.subplots()
        value = np.array([50 * (one.difference.low + one.difference.high) for one in comparisons])
        ends = 100 * np.array([one.difference.interval for one in comparisons])
        around = np.abs(ends.T - value)
        axes.axvline(0, color=QUIET, linewidth=0.9)
        place = np.arange(len(value))
        axes.errorbar(value, place, xerr=around, color=INK, linestyle="", marker="o", markersize=4, capsize=3)
        reach = max(1.0, 1.1 * float(np.abs(ends).max()))
        axes.set(xlabel="difference (points)", xlim=(-reach, reach))
        axes.xaxis.set_major_locator(MaxNLocator(7))
        _named(axes, comparisons)
    return figure


def _named(axes: "Axes", comparisons: Sequence[Comparison]) -> None:
    axes.set_yticks(range(len(comparisons)), [one.name for one in comparisons], fontsize=8)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
