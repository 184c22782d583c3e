"""The figure of an evaluation: what each stage left of the robust accuracy, and what that took."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from analysis.exhibits import Drawing, Exhibit
from analysis.figures.style import BAD, GOOD, new_figure, styled
from analysis.robustness import Robustness
from analysis.statistics import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["robustness_exhibits"]


def robustness_exhibits(known: Robustness) -> list[Exhibit]:
    """Robust accuracy after each stage, by stage and against worker time; none before a stage has rows."""
    if not known.tallies:
        return []
    names = list(known.tallies)
    tallies = [known.tallies[name] for name in names]
    left = [Rate(tally.remaining, len(known.ids)) for tally in tallies]
    seconds = np.cumsum([tally.seconds for tally in tallies])
    certified = known.at_least if known.certified.any() else None
    columns = {
        "stage": names,
        "searched": [tally.searched for tally in tallies],
        "broken": [tally.broken for tally in tallies],
        "remaining": [rate.hits for rate in left],
        "images": [rate.total for rate in left],
        "robust_accuracy": [rate.value for rate in left],
        "low": [_ends(rate)[0] for rate in left],
        "high": [_ends(rate)[1] for rate in left],
        "queries": [tally.queries for tally in tallies],
        "gradients": [tally.gradients for tally in tallies],
        "seconds": [tally.seconds for tally in tallies],
    }
    took = f"{seconds[-1]:.0f} seconds of worker time"
    finding = f"After {len(names)} stages and {took} robust accuracy is at most {left[-1]}"
    if certified:
        finding += f", and at least {certified} by certificates"
    drawings = [
        Drawing(
            "stages",
            "Robust accuracy that is left after each stage, in order, with 95% intervals"
            + (", and what is certified (dashed)." if certified else "."),
            _by_stage(names, left, certified),
        ),
    ]
    if len(names) > 1 and seconds[-1] > 0:
        caption = "Robust accuracy that is left against the worker time of all stages so far, with 95% intervals."
        drawings.append(Drawing("stages-seconds", caption, _by_seconds(seconds, left)))
    notes = ["Attacks bound robust accuracy from above only: a stage that breaks nothing proves nothing."]
    return [Exhibit("stages", "What each stage left", f"{finding}.", drawings, pa.table(columns), notes)]


def _by_stage(names: list[str], left: list[Rate], certified: Rate | None) -> "Figure":
    with styled():
        figure = new_figure(height=0.9 + 0.24 * len(names))
        axes = figure.subplots()
        value, around = _per_cent(left)
        place = np.arange(len(names))
        axes.errorbar(value, place, xerr=around, color=BAD, linestyle="", marker="o", markersize=4, capsize=3)
        if certified:
            axes.axvline(100 * (certified.low or 0), color=GOOD, linestyle="--")
        axes.set_yticks(place, names, fontsize=8)
        axes.set(xlabel="robust accuracy at most (%)", xlim=(-2, 102), ylim=(len(names) - 0.5, -0.5))
        axes.grid(axis="x")
    return figure


def _by_seconds(seconds: np.ndarray, left: list[Rate]) -> "Figure":
    with styled():
        figure = new_figure(height=2.6)
        axes = figure.subplots()
        value, around = _per_cent(left)
        axes.errorbar(
            seconds, value, around, color=BAD, marker="o", markersize=4, capsize=3, drawstyle="steps-post"
        )  # fmt: skip
        axes.set(xlabel="worker time (s)", ylabel="robust accuracy at most (%)", ylim=(-2, 102))
        axes.set_xlim(left=0)
    return figure


def _per_cent(rates: list[Rate]) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[n]``, and how far their intervals reach below and above, ``[2, n]``."""
    value = np.array([100 * (rate.low or 0) for rate in rates])
    ends = 100 * np.array([_ends(rate) for rate in rates])
    return value, np.abs(ends.T - value)


def _ends(rate: Rate) -> tuple[float, float]:
    return rate.interval or (0.0, 1.0)
