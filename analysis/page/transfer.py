"""What transfers from which model to which as one self-contained page."""

from analysis.page.environment import templates
from analysis.transfer import TransferReport

__all__ = ["render_transfer"]


def render_transfer(report: TransferReport) -> str:
    """Renders the page.

    Args:
        report: all that is known.

    Returns:
        HTML that needs no network.
    """
    names = {victim.name for victim in report.victims}
    surrogates = any(source not in names for source in report.sources)
    template = templates().get_template("transfer.html.j2")
    return template.render(report=report, names=names, surrogates=surrogates, sheet=None)
