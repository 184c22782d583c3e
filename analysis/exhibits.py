"""What a page shows of one question: the answer in a sentence, the figures, and the table behind them."""

import io
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import write_csv

from workers.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Drawing", "Exhibit", "each_run", "key_of", "keys_of", "row_key", "write_exhibits"]

WRITTEN = "exhibits.json"
"""Lists the files of exhibits in a folder."""

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
        command: what reproduces it, as typed; empty when that of the whole page does.
        by_run: the finding of each run alone, by its name, where that of all mixes several.
    """

    key: str
    title: str
    finding: str
    drawings: Sequence[Drawing] = ()
    table: pa.Table | None = None
    notes: Sequence[str] = ()
    command: str = ""
    by_run: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_key(self.key)


def each_run(by_run: Mapping[str, str]) -> str | None:
    """The findings of one run or two, one behind the other; None of more: a reader would not hold them together.

    Runs are not pooled: where the attack of one mostly succeeds and that of another mostly fails, a difference between
    successes and failures would be one between attacks.
    """
    if len(by_run) > 2:
        return None
    return " ".join(f"{run}: {said}" if len(by_run) > 1 else said for run, said in by_run.items())


def key_of(*words: str) -> str:
    """A key of names that may hold anything; an ``x`` where nothing of them can be kept."""
    return "-".join(filter(None, (re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words))) or "x"


def keys_of(names: Sequence[str]) -> list[str]:
    """A key of each name, no two alike: of names that come to the same, each but the first has a number behind."""
    found: list[str] = []
    for key in map(key_of, names):
        number, free = 1, key
        while free in found:
            number += 1
            free = f"{key}-{number}"
        found.append(free)
    return found


def row_key(run: str, row: Mapping[str, Any]) -> str:
    """Names one row on a page.

    Args:
        run: the run's name, which no other run of the page has.
        row: with ``image_id``, ``target`` (None when untargeted) and ``params_hash``.
    """
    target = "" if row["target"] is None else row["target"]
    return f"{run}/{row['image_id']}/{target}/{row['params_hash'][:8]}"


def _require_key(key: str) -> None:
    if not KEY.fullmatch(key):
        raise ValueError(f"a key has lower-case letters, digits and hyphens, got {key!r}")


def write_exhibits(exhibits: Sequence[Exhibit], folder: Path) -> list[Path]:
    """Writes each figure as PNG and SVG and each table as Parquet and CSV, ``KEY.*``; returns the files.

    What is there already, the same bytes, is left as it is. What an earlier call wrote into the folder and this one
    does not is removed: the names of the files, and of no others, are in `WRITTEN` beside them.

    Raises:
        OSError: when a file cannot be written.
    """
    from analysis.figures.style import png, svg

    files: dict[str, bytes] = {}
    for exhibit in exhibits:
        for drawing in exhibit.drawings:
            files[f"{drawing.key}.png"] = png(drawing.figure)
            files[f"{drawing.key}.svg"] = svg(drawing.figure, drawing.key).encode()
        if exhibit.table is not None:
            for ending, write in (("parquet", pq.write_table), ("csv", write_csv)):
                buffer = io.BytesIO()
                write(exhibit.table, buffer)
                files[f"{exhibit.key}.{ending}"] = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    earlier = _written(folder)
    if not files.keys() <= earlier:  # before them: a file that is not listed would never be removed
        _list(folder, files.keys() | earlier)
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)
    if gone := earlier - files.keys():
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        _list(folder, files)
    return [folder / name for name in files]


def _written(folder: Path) -> set[str]:
    """The names of the files that an earlier call wrote; none where it is not known."""
    try:
        names = json.loads((folder / WRITTEN).read_text())["files"]
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _list(folder: Path, names: Collection[str]) -> None:
    write_whole(folder / WRITTEN, (json.dumps({"files": sorted(names)}, indent=1) + "\n").encode())
