"""From which class to which: a run's successes and what they cost, by source and target."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.statistics import Rate
from analysis.summary import asked_rows, failed_rows

__all__ = ["SourceTargetMatrix", "source_target_matrix"]


@dataclass(frozen=True)
class SourceTargetMatrix:
    """What became of the targeted searches, ``[K, K]`` by the image's label and the target.

    Attributes:
        totals: int64, searches asked for, as of every rate.
        successes: int64, those that reached the target.
        failed: int64, those that failed and so have no answer.
        features: float64, the mean share of the image's features that a success changed; NaN without any.
    """

    totals: np.ndarray
    successes: np.ndarray
    failed: np.ndarray
    features: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """float64 ``[K, K]``: successes a search; NaN without any search, and where one failed."""
        return np.where(self.failed > 0, np.nan, _ratio(self.successes, self.totals))

    def rate(self, source: int, target: int) -> Rate:
        """Of one cell."""
        cell = source, target
        return Rate(int(self.successes[cell]), int(self.totals[cell]), unknown=int(self.failed[cell]))


def source_target_matrix(table: pa.Table, classes: int | None = None) -> SourceTargetMatrix:
    """Counts rows of results by label and target.

    Rows without a target are left out, and those that were not asked about (already misclassified, or the target its
    own label).

    Args:
        table: rows in the schema of results.
        classes: K; None for as many as the rows name.

    Raises:
        ValueError: where a row names a class that is not below K.
    """
    rows = asked_rows(table.filter(pc.is_valid(table["target"])))
    source, target = rows["label"].to_numpy(), rows["target"].to_numpy()
    named = int(max(source.max(), target.max())) + 1 if len(rows) else 0
    if classes is None:
        classes = named
    elif named > classes:
        raise ValueError(f"the rows name class {named - 1}, expected classes 0 to {classes - 1}")
    success, failed = np.asarray(rows["success"], dtype=bool), failed_rows(rows)
    share = np.zeros(len(rows))
    if success.any():  # a failed row may have no shape
        won = rows.filter(pa.array(success))
        share[success] = won["l0_features"].to_numpy() / np.prod(won["shape"].to_pylist(), axis=1)
    cell = source.astype(np.int64) * classes + target

    def count(chosen: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        picked = None if weights is None else weights[chosen]
        return np.bincount(cell[chosen], picked, minlength=classes**2).reshape(classes, classes)

    totals, successes = count(np.ones_like(success)), count(success)
    return SourceTargetMatrix(totals, successes, count(failed), _ratio(count(success, share), successes))


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
