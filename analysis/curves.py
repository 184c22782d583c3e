"""Success against queries, and the difference between two searches on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import binomtest, bootstrap

from analysis.statistics import Rate
from analysis.summary import asked_rows, failed_rows, success_rate

__all__ = ["Difference", "paired_difference", "paired_rows", "success_by_queries"]

RESAMPLES = 9999
AT_ONCE = 256
"""Resamples held at a time."""


@dataclass(frozen=True)
class Difference:
    """A difference of two success rates on the same images, with its 95 % interval by image.

    The interval is the bootstrap's, but no narrower than what McNemar's exact test leaves room for: of a few images
    that only one search succeeds on, resampling alone is too sure. So one that leaves out 0 never stands beside a p of
    that test of .05 or more.

    Attributes:
        low, high: first minus second, in [−1, 1]: one number twice, but for rows without an answer, of which `low` has
            those of the first as failures and those of the second as successes, and `high` the reverse.
        interval: lower and upper bound.
        images: how many images both were asked about.
    """

    low: float
    high: float
    interval: tuple[float, float]
    images: int

    @property
    def value(self) -> float | None:
        """First minus second; None where rows without an answer leave it open."""
        return self.low if self.low == self.high else None

    def __str__(self) -> str:
        low, high = self.interval
        value = f"{100 * self.low:+.1f}" + f" to {100 * self.high:+.1f}" * (self.value is None)
        return f"{value} points ({100 * low:+.1f} to {100 * high:+.1f}, {self.images} images)"


def success_by_queries(rows: pa.Table, budgets: Sequence[int]) -> list[Rate]:
    """The share of the rows asked about that succeeded with at most so many queries, for each budget.

    A search that ended without success succeeds at no budget. Read from rows of one search whose own budget
    is the largest of these or more: what succeeded late is what a smaller budget would have missed.

    Args:
        rows: of one search, in the schema of results.
        budgets: numbers of queries.

    Raises:
        ValueError: when the rows have an image and target twice, as those of several budgets have.
    """
    asked = _asked(rows)
    return [success_rate(asked, _hits(asked, budget)) for budget in budgets]


def paired_difference(first: pa.Table, second: pa.Table, *, queries: int | None = None, seed: int = 0) -> Difference:
    """How much more often the first search succeeds within so many queries, on the rows that both were asked about.

    Rows are paired by image and target; images are resampled whole, with all of their targets (percentile
    interval).

    Args:
        first, second: rows of one search each, in the schema of results.
        queries: the budget; what each search had when None.
        seed: of the resampling.

    Raises:
        ValueError: when both were asked about fewer than two images, or a search has a row twice.
    """
    least, most, targets = _gains(first, second, queries)
    if len(targets) < 2:
        raise ValueError(f"an interval needs at least 2 images that both searched, got {len(targets)}")
    ends = [_interval(gained, targets, seed) for gained in (least, most)]
    low, high = (float(gained.sum() / targets.sum()) for gained in (least, most))
    return Difference(low, high, (ends[0][0], ends[1][1]), len(targets))


def _interval(gained: np.ndarray, targets: np.ndarray, seed: int) -> tuple[float, float]:
    """Of the mean gain a row, images resampled, widened to what McNemar's exact test leaves room for."""

    def mean(gained: np.ndarray, targets: np.ndarray, axis: int) -> np.ndarray:
        return gained.sum(axis=axis) / targets.sum(axis=axis)

    found = bootstrap(
        (gained, targets), mean, paired=True, vectorized=True, method="percentile",
        n_resamples=RESAMPLES, batch=AT_ONCE, rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = map(float, found.confidence_interval)
    if apart := int((gained != 0).sum()):  # of these the share gained, Clopper-Pearson, at what one of them is worth
        share = binomtest(int((gained > 0).sum()), apart).proportion_ci()
        worth = float(np.abs(gained).sum() / targets.sum())
        low, high = min(low, worth * (2 * share.low - 1)), max(high, worth * (2 * share.high - 1))
    return low, high


def paired_rows(first: pa.Table, second: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that both were asked about, failed ones among them, side by side, by image and then by target.

    Raises:
        ValueError: when a search has a row twice.
    """
    tables = _asked(first), _asked(second)
    places = [{key: row for row, key in enumerate(_keys(table))} for table in tables]
    both = sorted(places[0].keys() & places[1].keys())
    one, other = (
        table.take(pa.array([place[key] for key in both], pa.int64()))
        for table, place in zip(tables, places, strict=True)
    )
    return one, other


def _gains(first: pa.Table, second: pa.Table, queries: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image, the successes that the first has more, at least and at most, and the rows that both have."""
    one, other = paired_rows(first, second)
    _, image, counts = np.unique(np.asarray(one["image_id"]), return_inverse=True, return_counts=True)
    sure = [_hits(rows, queries) & ~failed_rows(rows) for rows in (one, other)]
    may = [hits | failed_rows(rows) for hits, rows in zip(sure, (one, other), strict=True)]
    least, most = (
        np.bincount(image, mine.astype(int) - theirs, minlength=len(counts)).astype(np.int64)
        for mine, theirs in ((sure[0], may[1]), (may[0], sure[1]))
    )
    return least, most, counts


def _hits(rows: pa.Table, queries: int | None) -> np.ndarray:
    """bool ``[n]``: which rows succeeded within so many queries."""
    success = np.asarray(rows["success"], dtype=bool)
    return success if queries is None else success & (np.asarray(rows["queries"]) <= queries)


def _keys(rows: pa.Table) -> list[tuple[int, int]]:
    """Image and target, −1 when untargeted."""
    columns = (pc.fill_null(rows[name], -1).to_pylist() for name in ("image_id", "target"))
    return list(zip(*columns, strict=True))


def _asked(rows: pa.Table) -> pa.Table:
    asked = asked_rows(rows)
    if len(asked.group_by(["image_id", "target"]).aggregate([])) < len(asked):
        raise ValueError("the rows must be of one search: an image and target comes more than once")
    return asked
