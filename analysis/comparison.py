"""Two searches of the same images: which breaks more of them, which is nearer, which is cheaper."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest

from analysis.curves import Difference, paired_difference, paired_rows
from analysis.robustness import bound
from analysis.statistics import Estimate, Rate, median
from analysis.summary import asked_rows, failed_rows, success_rate
from workers.results import Status

__all__ = ["Comparison", "Paired", "compare", "to_json", "to_table", "with_misclassified"]

MEASURED = ("l0", "l2", "linf", "queries")
"""What is compared beside success: distances where both succeeded, queries of all."""


@dataclass(frozen=True)
class Paired:
    """One quantity of the rows that both have.

    Attributes:
        name: of its column.
        first, second: medians over the rows.
        difference: the median over images of second minus first, with its bootstrap interval; of an image with
            several targets the median over these counts.
        images: that this rests on.
    """

    name: str
    first: float
    second: float
    difference: Estimate
    images: int


@dataclass(frozen=True)
class Comparison:
    """Two searches on the rows (image and target) that both were asked about.

    Whether one is better is decided by the interval of the difference, which is no narrower than McNemar's test. With
    several rows an image the test may tell apart what the interval does not: it counts images, whatever they gain.

    Attributes:
        name: at which budget; empty where there is one.
        first, second: the share of these rows that each succeeded on.
        difference: second minus first, with an interval that resamples images.
        both, only_first, only_second, neither: rows by who succeeded, of those that both have an answer for.
        unknown: rows that one of them failed on.
        p: of these rows, McNemar's test, exact and two-sided (McNemar, 1947): how likely the counts of images that one
            and that the other search does better on are to lie so far apart when neither is better. An image with one
            row is one of `only`, one with several rows counts once, for the search that succeeded on more of them.
        paired: of each measured quantity; none where no image has it.
        unpaired: rows that only one of both was asked about, as (first, second).
    """

    name: str
    first: Rate
    second: Rate
    difference: Difference
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float
    paired: Mapping[str, Paired] = field(default_factory=dict)
    unpaired: tuple[int, int] = (0, 0)
    unknown: int = 0

    @property
    def apart(self) -> Rate:
        """The rows that only one succeeded on."""
        return Rate(self.only_first + self.only_second, self.first.total, self.first.images, self.unknown)


def compare(first: pa.Table, second: pa.Table, *, name: str = "", seed: int = 0) -> Comparison:
    """Compares two searches, each row with that of the same image and target.

    Args:
        first, second: rows of one search each; of the schema of results the columns image_id, target, status,
            success and, where they are compared, `MEASURED`.
        name: at which budget.
        seed: of the resampling.

    Raises:
        ValueError: when both were asked about fewer than two images, or a search has a row twice.
    """
    difference = paired_difference(second, first, seed=seed)
    one, other = paired_rows(first, second)
    rates = [success_rate(rows) for rows in (one, other)]
    known = ~failed_rows(one) & ~failed_rows(other)
    won, also = (np.asarray(rows["success"], dtype=bool) & known for rows in (one, other))
    images = one["image_id"].to_numpy()
    only_first, only_second = int((won & ~also).sum()), int((also & ~won).sum())
    better = np.sign(np.bincount(np.unique(images, return_inverse=True)[1], also.astype(int) - won))
    apart = int((better != 0).sum())
    paired = {}
    for column in MEASURED:
        chosen = known if column == "queries" else won & also
        if column in one.column_names and column in other.column_names and chosen.any():
            values = [rows[column].to_numpy()[chosen].astype(np.float64) for rows in (one, other)]
            paired[column] = _paired(column, values[0], values[1], images[chosen])
    return Comparison(
        name=name,
        first=rates[0],
        second=rates[1],
        difference=difference,
        both=int((won & also).sum()),
        only_first=only_first,
        only_second=only_second,
        neither=int((known & ~won & ~also).sum()),
        p=float(binomtest(int((better > 0).sum()), apart).pvalue) if apart else 1.0,
        paired=paired,
        unpaired=(len(asked_rows(first)) - len(one), len(asked_rows(second)) - len(one)),
        unknown=int((~known).sum()),
    )


def with_misclassified(rows: pa.Table) -> pa.Table:
    """Rows of a search in which an image that is misclassified as it is counts as broken; without distances.

    Accuracy that a model has lost is then success against it, and what only one of two searches was asked about is what
    the other has no row of. Rows whose target is the label ask nothing, whatever came of them, and are left out.
    """
    rows = rows.filter(pc.fill_null(pc.not_equal(rows["target"], rows["label"]), True))
    wrong = pc.equal(rows["status"].cast(pa.string()), str(Status.ALREADY_WRONG))
    return pa.table(
        {
            "image_id": rows["image_id"],
            "target": rows["target"],
            "status": pc.if_else(wrong, str(Status.SUCCESS), rows["status"].cast(pa.string())),
            "success": pc.or_(wrong, rows["success"]),
        }
    )


def _paired(name: str, first: np.ndarray, second: np.ndarray, images: np.ndarray) -> Paired:
    order = np.argsort(images, kind="stable")
    starts = np.unique(images[order], return_index=True)[1][1:]
    of_image = np.array([np.median(part) for part in np.split((second - first)[order], starts)])
    return Paired(name, float(np.median(first)), float(np.median(second)), median(of_image), len(of_image))


def to_table(comparisons: "list[Comparison]") -> pa.Table:
    """A row for each."""
    records = []
    for one in comparisons:
        record: dict[str, Any] = {"at": one.name, "images": one.difference.images, "rows": one.first.total}
        for name, rate in (("first", one.first), ("second", one.second)):
            low, high = rate.interval or (None, None)
            record |= {f"{name}_success": rate.value, f"{name}_low": low, f"{name}_high": high}
        low, high = one.difference.interval
        record |= {"difference": one.difference.value, "difference_low": low, "difference_high": high}
        counts = ("both", "only_first", "only_second", "neither", "unknown", "p")
        record |= {name: getattr(one, name) for name in counts}
        for column in MEASURED:
            found = one.paired.get(column)
            values = (found.first, found.second, found.difference.value, *found.difference.interval) if found else ()
            names = ("first", "second", "difference", "difference_low", "difference_high")
            record |= dict.fromkeys((f"{column}_{name}" for name in names), None)
            record |= {f"{column}_{name}": value for name, value in zip(names, values, strict=bool(found))}
        records.append(record)
    return pa.Table.from_pylist(records)


def to_json(comparison: Comparison) -> dict[str, Any]:
    """As ``comparison.json`` has it; what has no finite interval has None."""
    return {
        "at": comparison.name,
        "images": comparison.difference.images,
        "first": bound(comparison.first),
        "second": bound(comparison.second),
        "difference": {"value": comparison.difference.value, "interval": list(comparison.difference.interval)},
        "both": comparison.both,
        "only_first": comparison.only_first,
        "only_second": comparison.only_second,
        "neither": comparison.neither,
        "unknown": comparison.unknown,
        "apart": bound(comparison.apart),
        "mcnemar_p": comparison.p,
        "unpaired": {"first": comparison.unpaired[0], "second": comparison.unpaired[1]},
        "paired": {
            name: {
                "first": found.first,
                "second": found.second,
                "difference": found.difference.value,
                "interval": list(found.difference.interval) if np.isfinite(found.difference.interval).all() else None,
                "images": found.images,
            }
            for name, found in comparison.paired.items()
        },
    }
