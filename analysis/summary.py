"""One run in one row of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.statistics import Rate
from workers.results import SEARCHED, Status

__all__ = ["SUMMARISED", "Summary", "searched_rows", "summarise"]

SUMMARISED = ("image_id", "status", "success", "l0", "l2", "linf", "queries", "seconds", "error")
"""The columns that a summary needs."""


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        counts: rows by status.
        success: successes among the rows whose image was searched to an end.
        l0, l2, linf: medians over the successes, None without any.
        queries: median over the searched rows, None without any.
        seconds: worker time in all.
        first_error: the first failed row's image and reason, None without any.
    """

    counts: Mapping[Status, int]
    success: Rate
    l0: float | None
    l2: float | None
    linf: float | None
    queries: float | None
    seconds: float
    first_error: str | None


def searched_rows(table: pa.Table) -> pa.Table:
    """Those rows of a run whose search came to an end."""
    return table.filter(pc.is_in(table["status"].cast(pa.string()), pa.array(map(str, SEARCHED))))


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
        success=Rate.of(searched["success"].to_numpy(), searched["image_id"].to_numpy()),
        l0=_median(distances["l0"]),
        l2=_median(distances["l2"]),
        linf=_median(distances["linf"]),
        queries=_median(searched["queries"]),
        seconds=pc.sum(table["seconds"]).as_py() or 0.0,
        first_error=f"image {broken[0]['image_id']}: {broken[0]['error']}" if broken else None,
    )


def _median(column: Any) -> float | None:
    return float(np.median(column.to_numpy())) if len(column) else None
