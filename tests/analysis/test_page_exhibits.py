"""Exhibits on a page: themed figures, marks that stand for rows, tables, and files."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from pyarrow.csv import read_csv

from analysis.exhibits import Drawing, Exhibit
from analysis.figures.style import BAD, CLASSES, COLOURS, GOOD, new_figure, styled
from analysis.page.exhibits import ROWS, exhibit_views, themed


def scatter(key: str, counts: Sequence[int], *, lost: bool = False) -> Drawing:
    """Groups ``rows-i`` of so many marks each."""
    with styled():
        figure = new_figure()
        axes = figure.add_subplot()
        for group, count in enumerate(counts):
            y = np.arange(count, dtype=float)
            if lost:
                y[-1] = np.nan
            axes.scatter(np.arange(count), y, color=(BAD, GOOD)[group % 2]).set_gid(f"rows-{group}")
        axes.plot([0, 1], [0, 1], marker="o", color=CLASSES[0])
        axes.set_xlabel("a < b & 'c'")
    rows = {f"rows-{group}": [f"{group}/{row}" for row in range(count)] for group, count in enumerate(counts)}
    return Drawing(key, 'what is "seen" < here', figure, rows)


@pytest.mark.parametrize("counts", [(1,), (2, 1), (40, 7)])
def test_marks_have_the_numbers_of_their_rows(counts: tuple[int, ...]) -> None:
    numbers = {f"{group}/{row}": 100 * group + row for group, count in enumerate(counts) for row in range(count)}
    left_out = numbers.pop("0/0")
    root = ET.fromstring(themed(scatter("points", counts), numbers))
    assert sorted(int(mark.get("data-row", "")) for mark in root.iter() if mark.get("data-row")) == sorted(
        numbers.values()
    )
    groups = {element.get("id"): element for element in root.iter() if element.get("id")}
    for group, count in enumerate(counts):
        marks = [mark for mark in groups[f"points--rows-{group}"].iter() if mark.get("data-row")]
        assert len(marks) == count - (group == 0)
        if len(marks) > 1:  # drawn from left to right
            across = [float(mark.get("x", "nan")) for mark in marks]
            assert across == sorted(across)
    assert left_out == 0


def test_a_mark_that_is_not_drawn_is_an_error_not_another_row() -> None:
    with pytest.raises(ValueError, match="rows-0 has 4 marks for 5 rows"):
        themed(scatter("points", (5,), lost=True), {})


def test_figures_have_the_pages_colours_and_ids_of_their_own() -> None:
    first, second = (themed(scatter(key, (9, 9)), {}) for key in ("one", "two"))
    for text in (first, second):
        assert not re.search(rf"(?<!, )({'|'.join(COLOURS)})", text)
        for name in ("--accent", "--good", "--ink"):
            assert f"var({name}, #" in text
        root = ET.fromstring(text)
        assert root.tag.endswith("svg")
        assert "<style" not in text  # it would be the page's
        assert "<metadata" not in text
        assert (root.get("role"), root.get("aria-label")) == ("img", 'what is "seen" < here')
        ids = {element.get("id") for element in root.iter() if element.get("id")}
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        assert used
        assert used <= ids
        assert not text.startswith("<?xml")
    found = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, second)]
    assert not found[0] & found[1]


def test_tables_are_shown_in_part_and_kept_whole() -> None:
    table = pa.table(
        {
            "name": [f"<b>{n}" for n in range(ROWS + 5)],
            "share": [None, 0.123456, *np.ones(ROWS + 3)],
            "ok": [True] * (ROWS + 5),
        }
    )
    view = exhibit_views([Exhibit("t", "T", "f", table=table)], command="brittle report")[0]
    assert len(view.rows) == ROWS
    assert view.rows[1] == ["<b>1", "0.1235", "yes"]
    assert view.rows[0][1] == "–"
    assert view.columns == [("name", False), ("share", True), ("ok", False)]
    content = base64.b64decode(view.csv.removeprefix("data:text/csv;base64,"))
    assert read_csv(io.BytesIO(content)).to_pylist() == table.to_pylist()
    assert view.command == "brittle report"
    assert exhibit_views([Exhibit("t", "T", "f", command="own")], command="brittle report")[0].command == "own"


def test_keys_differ() -> None:
    with pytest.raises(ValueError, match="keys must differ on a page, got a, a"):
        exhibit_views([Exhibit("a", "A", "f"), Exhibit("a", "B", "f")])
    with pytest.raises(ValueError, match="keys must differ"):
        exhibit_views([Exhibit(key, "A", "f", [scatter("same", (2,))]) for key in "ab"])
