"""Exhibits as parts of a page: figures in the page's own colours, and the tables behind them."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from markupsafe import Markup
from pyarrow.csv import write_csv

from analysis.exhibits import Drawing, Exhibit
from analysis.figures.style import COLOURS, svg

__all__ = ["ROWS", "ExhibitView", "exhibit_views", "themed"]

ROWS = 60
"""Shown of an exhibit's table; the file behind it has all."""

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_COLOUR = re.compile("|".join(COLOURS), re.IGNORECASE)

_INHERITED = "stroke-linejoin: round; stroke-linecap: butt"
"""In place of matplotlib's style sheet, which would be one for the whole page."""


@dataclass(frozen=True)
class FigureView:
    """A drawing on the page: its SVG, and how wide it is at the most, as CSS."""

    drawing: Drawing
    svg: Markup
    width: str


@dataclass(frozen=True)
class ExhibitView:
    """An exhibit as the templates need it.

    Attributes:
        exhibit: what it is of.
        anchor: the id of its section.
        figures: its drawings.
        columns: names, and whether they are numbers.
        rows: the first `ROWS` of its table, as text.
        csv: the whole table as a data URI; empty without one.
        command: what reproduces it, empty when nothing is known to.
    """

    exhibit: Exhibit
    anchor: str
    figures: Sequence[FigureView]
    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[str]]
    csv: str
    command: str


def exhibit_views(
    exhibits: Sequence[Exhibit], *, numbers: Mapping[str, int] | None = None, command: str = ""
) -> list[ExhibitView]:
    """Readies exhibits for a page.

    Args:
        exhibits: in the order shown.
        numbers: of the page's rows by their key, which marks of figures may stand for.
        command: what reproduces those that name no command.

    Raises:
        ValueError: when two share a key, or a figure has not a mark for each of its rows.
    """
    keys = [drawing.key for exhibit in exhibits for drawing in exhibit.drawings]
    for taken in (keys, [exhibit.key for exhibit in exhibits]):
        if len(set(taken)) != len(taken):
            raise ValueError(f"keys must differ on a page, got {', '.join(sorted(taken))}")
    found = []
    for exhibit in exhibits:
        table = exhibit.table
        found.append(
            ExhibitView(
                exhibit,
                f"exhibit-{exhibit.key}",
                [_figure(drawing, numbers or {}) for drawing in exhibit.drawings],
                [] if table is None else [(field.name, _is_number(field.type)) for field in table.schema],
                [] if table is None else [[_cell(v) for v in row.values()] for row in table.slice(0, ROWS).to_pylist()],
                "" if table is None else _csv(table),
                exhibit.command or command,
            )
        )
    return found


def _figure(drawing: Drawing, numbers: Mapping[str, int]) -> FigureView:
    width = f"{72 * drawing.figure.get_figwidth():.1f}pt"
    return FigureView(drawing, Markup(themed(drawing, numbers)), width)  # noqa: S704  ElementTree has escaped it


def themed(drawing: Drawing, numbers: Mapping[str, int]) -> str:
    """The figure as an ``<svg>`` element for a page: colours as the page's variables, ids its own.

    A mark that stands for a row of the page has its number as ``data-row``.

    Raises:
        ValueError: when a group has not a mark for each of its rows.
    """
    root = ET.fromstring(svg(drawing.figure, drawing.key, ground=False))  # noqa: S314  matplotlib wrote it
    for element in [*root.iter()]:
        for inside in [*element]:
            if inside.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                element.remove(inside)
    root.set("style", _INHERITED)
    groups = {element.get("id"): element for element in root.iter()}
    for gid, keys in drawing.rows.items():
        marks = _marks(groups[gid]) if gid in groups else []
        if len(marks) != len(keys):
            raise ValueError(f"{drawing.key}: group {gid} has {len(marks)} marks for {len(keys)} rows")
        for mark, key in zip(marks, keys, strict=True):
            if key in numbers:
                mark.set("data-row", str(numbers[key]))
    prefix = f"{drawing.key}--"
    for element in root.iter():
        for name, value in element.items():
            if name == "id":
                value = prefix + value
            elif name in (_HREF, "href") and value.startswith("#"):
                value = f"#{prefix}{value[1:]}"
            elif name in ("style", "clip-path", "fill", "stroke"):
                value = value.replace("url(#", f"url(#{prefix}")
                value = value.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
                value = _COLOUR.sub(lambda found: f"var({COLOURS[found[0].lower()]}, {found[0]})", value)
            element.set(name, value)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", drawing.caption)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return ET.tostring(root, encoding="unicode")


def _marks(group: ET.Element) -> list[ET.Element]:
    """The marks that matplotlib drew for a group: uses of a shape, or, of few, the shapes themselves."""
    defined = {id(inside) for defs in group.iter(f"{{{_SVG}}}defs") for inside in defs.iter()}
    shown = [element for element in group.iter() if id(element) not in defined]
    uses = [element for element in shown if element.tag == f"{{{_SVG}}}use"]
    return uses or [element for element in shown if element.tag == f"{{{_SVG}}}path"]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)


def _csv(table: pa.Table) -> str:
    buffer = io.BytesIO()
    write_csv(table, buffer)
    return "data:text/csv;base64," + base64.b64encode(buffer.getvalue()).decode()
