"""Success against queries, and the difference between two searches on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import bootstrap

from analysis.statistics import Rate
from analysis.summary import searched_rows

__all__ = ["Difference", "paired_difference", "paired_rows", "success_by_queries"]

RESAMPLES = 9999
AT_ONCE = 256
"""Resamples held at a time."""


@dataclass(frozen=True)
class Difference:
    """A difference of two success rates on the same images, with its 95 % bootstrap interval by image.

    Attributes:
        value: first minus second, in [−1, 1].
        interval: lower and upper bound.
        images: how many images both searched.
    """

    value: float
    interval: tuple[float, float]
    images: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}, {self.images} images)"


def success_by_queries(rows: pa.Table, budgets: Sequence[int]) -> list[Rate]:
    """The share of the searched rows that succeeded with at most so many queries, for each budget.

    A search that ended without success failed at every budget. Read from rows of one search whose own budget
    is the largest of these or more: what succeeded late is what a smaller budget would have missed.

    Args:
        rows: of one search, in the schema of results.
        budgets: numbers of queries.

    Raises:
        ValueError: when the rows have an image and target twice, as those of several budgets have.
    """
    searched = _searched(rows)
    return [Rate.of(_hits(searched, budget), searched["image_id"].to_numpy()) for budget in budgets]


def paired_difference(first: pa.Table, second: pa.Table, *, queries: int | None = None, seed: int = 0) -> Difference:
    """How much more often the first search succeeds within so many queries, on the rows that both searched.

    Rows are paired by image and target; images are resampled whole, with all of their targets (percentile
    interval).

    Args:
        first, second: rows of one search each, in the schema of results.
        queries: the budget; what each search had when None.
        seed: of the resampling.

    Raises:
        ValueError: when fewer than two images were searched by both, or a search has a row twice.
    """
    gained, targets = _gains(first, second, queries)
    if len(gained) < 2:
        raise ValueError(f"an interval needs at least 2 images that both searched, got {len(gained)}")

    def mean(gained: np.ndarray, targets: np.ndarray, axis: int) -> np.ndarray:
        return gained.sum(axis=axis) / targets.sum(axis=axis)

    found = bootstrap(
        (gained, targets), mean, paired=True, vectorized=True, method="percentile",
        n_resamples=RESAMPLES, batch=AT_ONCE, rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = found.confidence_interval
    return Difference(float(gained.sum() / targets.sum()), (float(low), float(high)), len(gained))


def paired_rows(first: pa.Table, second: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that both searched to an end, one beside the other, by image and then by target.

    Raises:
        ValueError: when a search has a row twice.
    """
    tables = _searched(first), _searched(second)
    places = [{key: row for row, key in enumerate(_keys(table))} for table in tables]
    both = sorted(places[0].keys() & places[1].keys())
    one, other = (
        table.take(pa.array([place[key] for key in both], pa.int64()))
        for table, place in zip(tables, places, strict=True)
    )
    return one, other


def _gains(first: pa.Table, second: pa.Table, queries: int | None) -> tuple[np.ndarray, np.ndarray]:
    """For each image, the successes that the first has more, and the rows that both have."""
    one, other = paired_rows(first, second)
    gains = _hits(one, queries).astype(np.int64) - _hits(other, queries)
    _, image, counts = np.unique(one["image_id"].to_numpy(), return_inverse=True, return_counts=True)
    return np.bincount(image, gains, minlength=len(counts)).astype(np.int64), counts


def _hits(rows: pa.Table, queries: int | None) -> np.ndarray:
    """bool ``[n]``: which rows succeeded within so many queries."""
    success = np.asarray(rows["success"], dtype=bool)
    return success if queries is None else success & (np.asarray(rows["queries"]) <= queries)


def _keys(rows: pa.Table) -> list[tuple[int, int]]:
    """Image and target, −1 when untargeted."""
    columns = (pc.fill_null(rows[name], -1).to_pylist() for name in ("image_id", "target"))
    return list(zip(*columns, strict=True))


def _searched(rows: pa.Table) -> pa.Table:
    searched = searched_rows(rows)
    if len(searched.group_by(["image_id", "target"]).aggregate([])) < len(searched):
        raise ValueError("the rows must be of one search: an image and target comes more than once")
    return searched
