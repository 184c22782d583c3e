"""What a page shows of one question: the answer in a sentence, the figures, and the table behind them."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

from workers.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawing", "Exhibit", "key_of", "row_key", "write_exhibits"]

KEY = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class Drawing:
    """One figure.

    Attributes:
        key: names its files; lower case, digits and hyphens.
        caption: what is seen, axes and units included; it is also the text for those who cannot see it.
        figure: at most `analysis.figures.style.WIDTH` inches wide, in the colours of that module.
        rows: for each group of marks that stand for single rows, by its gid (``Artist.set_gid``), the `row_key` of
            each mark in the order drawn: the page opens that image when a mark is chosen.
    """

    key: str
    caption: str
    figure: "Figure"
    rows: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_key(self.key)


@dataclass(frozen=True)
class Exhibit:
    """The answer to one question.

    Attributes:
        key: names its anchor and its table's files; lower case, digits and hyphens.
        title: the question, or what is shown, in a few words.
        finding: what was found, in one sentence with its numbers.
        drawings: the figures, in order.
        table: the numbers behind them, None where there are none beside the finding.
        notes: what a reader must know to read it right, a sentence each.
        by_run: the finding of each run alone, by its name, where that of all mixes several.
        command: what reproduces it, as typed; empty when that of the whole page does.
    """

    key: str
    title: str
    finding: str
    drawings: Sequence[Drawing] = ()
    table: pa.Table | None = None
    notes: Sequence[str] = ()
    by_run: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        _require_key(self.key)


def key_of(*words: str) -> str:
    """A key of names that may hold anything; an ``x`` where nothing of them can be kept."""
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words))) or "x"


def row_key(run: str, row: Mapping[str, Any]) -> str:
    """Names one row on a page.

    Args:
        run: the name of the run's folder.
        row: with ``image_id``, ``target`` (None when untargeted) and ``params_hash``.
    """
    target = "" if row["target"] is None else row["target"]
    return f"{run}/{row['image_id']}/{target}/{row['params_hash'][:8]}"


def _require_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise ValueError(f"a key has lower-case letters, digits and hyphens, got {key!r}")


def write_exhibits(exhibits: Sequence[Exhibit], folder: Path) -> list[Path]:
    """Writes each figure as PNG and SVG and each table as Parquet and CSV, ``KEY.*``; returns the files.

    Raises:
        OSError: when a file cannot be written.
    """
    from analysis.figures.style import png, svg

    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def keep(name: str, content: bytes) -> None:
        write_whole(folder / name, content)
        written.append(folder / name)

    for exhibit in exhibits:
        for drawing in exhibit.drawings:
            keep(f"{drawing.key}.png", png(drawing.figure))
            keep(f"{drawing.key}.svg", svg(drawing.figure, drawing.key).encode())
        if exhibit.table is not None:
            for ending, write in (("parquet", pq.write_table), ("csv", write_csv)):
                buffer = io.BytesIO()
                write(exhibit.table, buffer)
                keep(f"{exhibit.key}.{ending}", buffer.getvalue())
    return written
