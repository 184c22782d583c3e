"""Detectors and what became of them as one self-contained page."""

from collections.abc import Sequence

import numpy as np

from analysis.detection import DetectorReport, Example, OverSeeds
from analysis.exhibits import Exhibit
from analysis.page.environment import render_page, script, templates
from analysis.page.exhibits import exhibit_views
from analysis.sprites import Sheet, picture

__all__ = ["render_detection"]

EXAMPLES = 12
"""Shown a detector."""


def render_detection(
    reports: Sequence[DetectorReport] | DetectorReport,
    *,
    model: str = "",
    data: str = "",
    trainings: Sequence[OverSeeds] = (),
    exhibits: Sequence[Exhibit] = (),
    command: str = "",
) -> str:
    """Renders the page.

    Args:
        reports: of detectors that guard one model on one data set, in the order shown.
        model, data: what they are called.
        trainings: of the detectors that were trained several times.
        exhibits: shown behind the verdicts, in that order.
        command: what makes the page, as typed.

    Returns:
        HTML that needs no network.
    """
    reports = [reports] if isinstance(reports, DetectorReport) else reports
    pictures: list[np.ndarray] = []
    sections = []
    for report in reports:
        examples = [(example, _sprites(example, pictures)) for example in report.examples[:EXAMPLES]]
        sections.append({"report": report, "examples": examples})
    sheet = Sheet.of(pictures, columns=24) if pictures else None
    return render_page(
        templates(),
        "detection.html.j2",
        scripts=[script("exhibits.js")] if exhibits else [],
        sections=sections,
        sheets={} if sheet is None else {"image": sheet},
        sheet=sheet,
        model=model or "classifier",
        data=data,
        trainings=trainings,
        exhibits=exhibit_views(exhibits, command=command),
        command=command,
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
