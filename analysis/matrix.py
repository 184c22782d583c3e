"""From which class to which: a run's successes and what they cost, by source and target."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.summary import searched_rows

__all__ = ["SourceTargetMatrix", "source_target_matrix"]


@dataclass(frozen=True)
class SourceTargetMatrix:
    """What became of the targeted searches, ``[K, K]`` by the image's label and the target.

    Attributes:
        totals: int64, searches that came to an end.
        successes: int64, those that reached the target.
        features: float64, the mean share of the image's features that a success changed; NaN without any.
    """

    totals: np.ndarray
    successes: np.ndarray
    features: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """float64 ``[K, K]``: successes a search; NaN without any search."""
        return _ratio(self.successes, self.totals)


def source_target_matrix(table: pa.Table, classes: int | None = None) -> SourceTargetMatrix:
    """Counts rows of results by label and target.

    Rows without a target are left out, and those whose image was not searched to an end (already misclassified,
    the target its own label, or failed).

    Args:
        table: rows in the schema of results.
        classes: K; None for as many as the rows name.

    Raises:
        ValueError: where a row names a class that is not below K.
    """
    rows = searched_rows(table.filter(pc.is_valid(table["target"])))
    source, target = rows["label"].to_numpy(), rows["target"].to_numpy()
    named = int(max(source.max(), target.max())) + 1 if len(rows) else 0
    if classes is None:
        classes = named
    elif named > classes:
        raise ValueError(f"the rows name class {named - 1}, expected classes 0 to {classes - 1}")
    success = rows["success"].to_numpy()
    share = rows["l0_features"].to_numpy() / np.prod(rows["shape"].to_pylist(), axis=1) if len(rows) else np.zeros(0)
    cell = source.astype(np.int64) * classes + target

    def count(chosen: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        picked = None if weights is None else weights[chosen]
        return np.bincount(cell[chosen], picked, minlength=classes**2).reshape(classes, classes)

    totals, successes = count(np.ones_like(success)), count(success)
    return SourceTargetMatrix(totals, successes, _ratio(count(success, share), successes))


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
