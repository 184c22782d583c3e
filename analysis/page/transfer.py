"""What transfers from which model to which as one self-contained page."""

from collections.abc import Sequence

from analysis.exhibits import Exhibit
from analysis.page.environment import render_page, script, templates
from analysis.page.exhibits import exhibit_views
from analysis.transfer import TransferReport

__all__ = ["render_transfer"]


def render_transfer(report: TransferReport, *, exhibits: Sequence[Exhibit] = (), command: str = "") -> str:
    """Renders the page.

    Args:
        report: all that is known.
        exhibits: shown behind the verdicts, in that order.
        command: what makes the page, as typed.

    Returns:
        HTML that needs no network.
    """
    names = {victim.name for victim in report.victims}
    surrogates = any(source not in names for source in report.sources)
    return render_page(
        templates(),
        "transfer.html.j2",
        scripts=[script("exhibits.js")] if exhibits else [],
        report=report,
        names=names,
        surrogates=surrogates,
        sheets={},
        exhibits=exhibit_views(exhibits, command=command),
        command=command,
    )
