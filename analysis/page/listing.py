"""The rows of a page: those of all its runs that it lists, and the pictures of as many as it can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.exhibits import row_key
from analysis.replay import stored_images
from analysis.run_view import RunView
from analysis.sprites import CHANGES, Sheet, change_picture, picture, reduced
from workers.images import Dataset
from workers.results import SEARCHED, Status

__all__ = ["FIELDS", "Listing", "fair_shares"]

LISTED, PICTURED = 10_000, 2_000
"""Rows of a page, and how many of them have pictures."""

VALUES, SIDE = 10_000_000, 512
"""The most channel values of all pictures, which no PNG makes larger than 15 MB of page, and a picture's side."""

CARDS = 10
"""Pictures of a run that need no script."""

FIELDS = (
    "image_id", "label", "target", "status", "clean_prediction", "clean_confidence", "adversarial_prediction",
    "adversarial_confidence", "l0", "l0_features", "l1", "l2", "linf", "queries", "gradients", "generations", "seconds",
    "seed", "worker", "error",
)  # fmt: skip
"""What a page has of a row, in this order: the run before, the pictures' numbers behind."""

_FIRST = {Status.SUCCESS: 0, Status.CERTIFIED: 1, Status.EXHAUSTED: 1}
"""Which rows get pictures first; any other after these."""


@dataclass(frozen=True)
class Card:
    """A row with its pictures: their numbers on the sheets of images and of changes."""

    number: int
    row: Mapping[str, Any]
    clean: int
    change: int
    adversarial: int


@dataclass(frozen=True)
class Listing:
    """All that a page lists.

    Attributes:
        rows: each ``[run, *FIELDS, clean, change, adversarial]``; of the last three, numbers on the sheets, those
            that the page has no picture of are None.
        numbers: of the rows by `row_key`.
        cards: for each run, the first with pictures.
        sheets: ``image`` and ``change``, none without a picture.
        notes: what is left out, a sentence each.
    """

    rows: Sequence[Sequence[Any]]
    numbers: Mapping[str, int]
    cards: Sequence[Sequence[Card]]
    sheets: Mapping[str, Sheet]
    notes: Sequence[str]

    @classmethod
    def of(
        cls, runs: Sequence[RunView], dataset: Dataset, *, listed: int = LISTED, pictured: int = PICTURED
    ) -> "Listing":
        """Lists runs on a data set.

        Args:
            runs: in the order shown.
            dataset: theirs.
            listed: the most rows; each run has its fair share.
            pictured: the most rows with pictures, likewise; successes come first.
        """
        tables = [run.table for run in runs]
        tables = [t.slice(0, n) for t, n in zip(tables, fair_shares(map(len, tables), listed), strict=True)]
        shares = fair_shares(map(len, tables), pictured)
        chosen = [_pictured(table, share) for table, share in zip(tables, shares, strict=True)]
        pictures = _Pictures(dataset, [t.take(c) for t, c in zip(tables, chosen, strict=True)])
        rows: list[list[Any]] = []
        numbers: dict[str, int] = {}
        cards = []
        for number, (run, table, places) in enumerate(zip(runs, tables, chosen, strict=True)):
            start = len(rows)
            for row in table.select([*FIELDS, "params_hash"]).to_pylist():
                numbers[row_key(run.name, row)] = len(rows)
                rows.append([number, *(_short(row[name]) for name in FIELDS), None, None, None])
            for place, sprites in zip(places, pictures.of_run(number), strict=True):
                rows[start + place][-3:] = sprites
            shown = [start + p for p in places if _row(rows[start + p])["status"] in SEARCHED][:CARDS]
            cards.append([Card(n, _row(rows[n]), *rows[n][-3:]) for n in shown])
        total = sum(len(run.table) for run in runs)
        notes = []
        if len(rows) < total:
            notes.append(f"The page lists {len(rows):,} of {total:,} rows, each run its fair share from its start.")
        if (kept := sum(map(len, chosen))) < len(rows):
            notes.append(f"{kept:,} rows have pictures, each run its fair share, successes first.")
        if pictures.factor > 1:
            height, width = dataset.images.shape[2:]
            notes.append(
                f"Pictures of {height}×{width} are shown at 1/{pictures.factor} of their size; "
                "of a change, each shown pixel is the strongest of its block."
            )
        return cls(rows, numbers, cards, pictures.sheets(), notes)


def fair_shares(counts: Any, total: int) -> list[int]:
    """How many each may have of a total: all that it has, where others leave it room, else as many as any other."""
    counts = list(counts)
    shares, left = [0] * len(counts), total
    for rank, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], left // (len(counts) - rank))
        left -= shares[index]
    return shares


class _Pictures:
    """The pictures of the rows that get some, each clean image once, at a whole fraction of their size."""

    def __init__(self, dataset: Dataset, tables: Sequence[pa.Table]) -> None:
        self._images: list[np.ndarray] = []
        self._changes: list[np.ndarray] = []
        self._clean: dict[int, int] = {}
        self._sprites: list[list[tuple[int, int | None, int | None]]] = []
        ids = [table["image_id"].to_pylist() for table in tables]
        channels, height, width = dataset.shape
        channels = 3 if channels >= 3 else 1
        rows = sum(map(len, ids))
        self.factor = max(1, -(-max(height, width) // SIDE))
        count = channels * (rows + len(set().union(*ids))) + rows
        while count * -(-height // self.factor) * -(-width // self.factor) > VALUES:
            self.factor += 1
        for table, named in zip(tables, ids, strict=True):
            has = table["adversarial"].is_valid().to_pylist()
            found = iter(stored_images(table.filter(table["adversarial"].is_valid())) if any(has) else ())
            self._sprites.append(
                [
                    self._add(dataset, image, next(found) if there else None)
                    for image, there in zip(named, has, strict=True)
                ]
            )

    def _add(self, dataset: Dataset, image: int, found: np.ndarray | None) -> tuple[int, int | None, int | None]:
        if image not in self._clean:
            self._clean[image] = len(self._images)
            self._images.append(reduced(picture(dataset.images[image]), self.factor))
        if found is None:
            return self._clean[image], None, None
        change = change_picture(dataset.images[image], found)
        self._changes.append(reduced(change, self.factor, change=True))
        self._images.append(reduced(picture(found), self.factor))
        return self._clean[image], len(self._changes) - 1, len(self._images) - 1

    def of_run(self, number: int) -> list[tuple[int, int | None, int | None]]:
        """For each row of the run's table the numbers of its clean image, its change and its adversarial image."""
        return self._sprites[number]

    def sheets(self) -> dict[str, Sheet]:
        found = {"image": Sheet.of(self._images)} if self._images else {}
        return found | ({"change": Sheet.of(self._changes, palette=CHANGES)} if self._changes else {})


def _pictured(table: pa.Table, count: int) -> list[int]:
    """The places of the rows that get pictures."""
    status = table["status"].cast(pa.string()).to_pylist()
    return sorted(range(len(status)), key=lambda row: _FIRST.get(Status(status[row]), 2))[:count]


def _row(listed: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(FIELDS, listed[1:], strict=False))


def _short(value: Any) -> Any:
    """A number as long as it is worth on a page; what is not finite, as text."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else str(value)
