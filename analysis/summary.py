"""One run in one row of numbers, and which rows a rate is a share of.

The denominator of every rate over a run's rows is the rows that were asked about: those searched to an end and those
whose search failed. A failed row has no answer (`Rate.unknown`): a search may fail on the very images that it would not
have broken. Rows of an image that is misclassified as it is, or whose target is its own label, were not asked about. Of
a failed row that may be unknown too; the two ends of the rate hold wherever it belongs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.statistics import Rate
from workers.evaluation.scores import UNANSWERED
from workers.results import SEARCHED, Status

__all__ = [
    "SUMMARISED",
    "Summary",
    "asked_rows",
    "clean_accuracy",
    "failed_rows",
    "searched_rows",
    "success_rate",
    "summarise",
    "unchanged",
]

SUMMARISED = ("image_id", "status", "success", "l0", "l2", "linf", "queries", "seconds", "error")
"""The columns that a summary needs."""


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        counts: rows by status.
        success: of the rows asked about.
        l0, l2, linf: medians over the successes, None without any.
        queries: median over the searched rows, None without any.
        seconds: worker time in all.
        first_error: the first failed row's image and reason, None without any.
        searched: rows searched to an end.
        unchanged: those of them that came back as they were without success or certificate: nothing was tried on them,
            or nothing of it kept, so that they say little of the model.
    """

    counts: Mapping[Status, int]
    success: Rate
    l0: float | None
    l2: float | None
    linf: float | None
    queries: float | None
    seconds: float
    first_error: str | None
    searched: int = 0
    unchanged: int = 0


def searched_rows(table: pa.Table) -> pa.Table:
    """Those rows of a run whose search came to an end."""
    return table.filter(_ended(table, SEARCHED))


def asked_rows(table: pa.Table) -> pa.Table:
    """Those rows that a run's rates are shares of: searched to an end, or failed."""
    return table.filter(_ended(table, (*SEARCHED, Status.FAILED)))


def failed_rows(table: pa.Table) -> np.ndarray:
    """bool ``[n]``: the rows whose search failed, which have no answer."""
    return np.asarray(_ended(table, (Status.FAILED,)))


def success_rate(rows: pa.Table, hits: np.ndarray | None = None) -> Rate:
    """The share of the rows asked about that succeeded.

    Args:
        rows: of one search at one budget; others than those asked about are left out.
        hits: bool ``[n]``, which rows count as successes; None for those that succeeded.
    """
    won = np.asarray(rows["success"], dtype=bool) if hits is None else hits
    failed, asked = failed_rows(rows), np.asarray(_ended(rows, (*SEARCHED, Status.FAILED)))
    return Rate.of(won[asked], np.asarray(rows["image_id"])[asked], ~failed[asked])


def clean_accuracy(predictions: np.ndarray, labels: np.ndarray, images: np.ndarray | None = None) -> Rate:
    """The share of images that a model classifies as labelled, those that it gives no answer to unknown.

    Args:
        predictions: int ``[n]``, `UNANSWERED` of an image without an answer.
        labels: int ``[n]``.
        images: ``[n]``, what image each row is of; None for one of each.
    """
    images = np.arange(len(labels)) if images is None else images
    return Rate.of(predictions == labels, images, predictions != UNANSWERED)


def _ended(table: pa.Table, statuses: Sequence[Status]) -> pa.ChunkedArray:
    return pc.is_in(table["status"].cast(pa.string()), pa.array(map(str, statuses)))


def summarise(table: pa.Table) -> Summary:
    """Summarises the rows of one run at one budget; of their columns it reads `SUMMARISED`."""
    status = table["status"]
    counts = {Status(row["values"]): row["counts"] for row in pc.value_counts(status).to_pylist()}
    distances = table.select(["l0", "l2", "linf"]).filter(table["success"])
    searched = searched_rows(table)
    broken: list[dict[str, Any]] = []
    if Status.FAILED in counts:
        row = pc.index(status.cast(pa.string()), str(Status.FAILED)).as_py()
        broken = table.select(["image_id", "error"]).slice(row, 1).to_pylist()
    return Summary(
        counts=counts,
        success=success_rate(table),
        l0=_median(distances["l0"]),
        l2=_median(distances["l2"]),
        linf=_median(distances["linf"]),
        queries=_median(searched["queries"]),
        seconds=pc.sum(table["seconds"]).as_py() or 0.0,
        first_error=f"image {broken[0]['image_id']}: {broken[0]['error']}" if broken else None,
        searched=len(searched),
        unchanged=unchanged(searched),
    )


def unchanged(rows: pa.Table) -> int:
    """How many rows came back as they were (L0 is 0), of those that neither success nor a certificate ended."""
    searched = searched_rows(rows)
    certified = np.asarray(_ended(searched, (Status.CERTIFIED,)))
    return int((~np.asarray(searched["success"], dtype=bool) & ~certified & (np.asarray(searched["l0"]) == 0)).sum())


def _median(column: Any) -> float | None:
    return float(np.median(column.to_numpy())) if len(column) else None
