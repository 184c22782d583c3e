"""The templates, and how numbers look on a page."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.statistics import Estimate, Rate

__all__ = ["templates"]


def templates() -> Environment:
    """The pages' templates; what is put into them is escaped."""
    environment = Environment(
        loader=PackageLoader("analysis.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "interval": _interval, "number": _number}
    return environment


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}".replace("%", " %")


def _interval(found: Rate | Estimate) -> str:
    if found.interval is None:
        return "–"
    return f"{100 * found.interval[0]:.1f}–{100 * found.interval[1]:.1f} %"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
