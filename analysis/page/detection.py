"""Detectors and what became of them as one self-contained page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.detection import DetectorReport, Example, FalseAlarms, OverSeeds
from analysis.page.environment import templates
from analysis.page.sprites import Sheet, picture

__all__ = ["render_detection"]

BINS = 60

EXAMPLES = 12
"""Shown a detector."""


@dataclass(frozen=True)
class Strip:
    """One population's histogram: an SVG path over a box of `BINS` by 1, and how many scores it has."""

    name: str
    path: str
    count: int
    unscored: int


@dataclass(frozen=True)
class Mark:
    """A threshold on the histograms: where it stands, 0 to `BINS`, and its false-alarm rate."""

    position: float
    rate: float
    value: float


@dataclass(frozen=True)
class Histogram:
    """Populations over one axis of scores; what lies beyond the axis is in its first and last bin."""

    low: float
    high: float
    strips: tuple[Strip, ...]
    marks: tuple[Mark, ...]
    bins: int = BINS


def render_detection(
    reports: Sequence[DetectorReport] | DetectorReport,
    *,
    model: str = "",
    data: str = "",
    trainings: Sequence[OverSeeds] = (),
) -> str:
    """Renders the page.

    Args:
        reports: of detectors that guard one model on one data set, in the order shown.
        model, data: what they are called.
        trainings: of the detectors that were trained several times.

    Returns:
        HTML that needs no network.
    """
    reports = [reports] if isinstance(reports, DetectorReport) else reports
    pictures: list[np.ndarray] = []
    sections = []
    for report in reports:
        examples = [(example, _sprites(example, pictures)) for example in report.examples[:EXAMPLES]]
        sections.append({"report": report, "histogram": _histogram(report.scores, report.alarms), "examples": examples})
    return (
        templates()
        .get_template("detection.html.j2")
        .render(
            sections=sections,
            sheet=Sheet.of(pictures) if pictures else None,
            model=model or "classifier",
            data=data,
            trainings=trainings,
        )
    )


def _sprites(example: Example, pictures: list[np.ndarray]) -> list[tuple[str, int]]:
    """Adds the example's pictures; what each is and its number on the sheet."""
    shown = {"clean": example.clean, "adversarial": example.adversarial, "reconstruction": example.reconstruction}
    found = []
    for name, image in shown.items():
        if image is not None:
            found.append((name, len(pictures)))
            pictures.append(picture(image))
    return found


def _histogram(scores: Mapping[str, np.ndarray], alarms: Sequence[FalseAlarms]) -> Histogram | None:
    """The populations between the pooled percentiles 0.5 and 99.5, widened to the thresholds; None without scores.

    The whole range would put all of a heavy-tailed score into one bin.
    """
    finite = {name: values[np.isfinite(values)] for name, values in scores.items()}
    pooled = np.concatenate([np.empty(0), *finite.values()])
    if not len(pooled):
        return None
    marks = [found.threshold for found in alarms if np.isfinite(found.threshold.value)]
    low, high = np.percentile(pooled, [0.5, 99.5])
    ends = [low, high, *(mark.value for mark in marks)]
    low, high = min(ends), max(ends)
    margin = 0.02 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return float(BINS * (value - low) / (high - low))

    strips = []
    for name, values in finite.items():
        share = np.histogram(values.clip(low, high), BINS, (low, high))[0] / max(len(values), 1)
        height = share / (share.max() or 1)
        steps = "".join(f"V{1 - top:.4f}h1" for top in height)
        strips.append(Strip(name, f"M0 1{steps}V1", len(scores[name]), len(scores[name]) - len(values)))
    return Histogram(
        float(low), float(high), tuple(strips), tuple(Mark(at(mark.value), mark.rate, mark.value) for mark in marks)
    )
