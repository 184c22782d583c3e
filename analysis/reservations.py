"""What is to be said beside a run's numbers: certificates that rest on ties, searches that missed derivatives."""

import numpy as np
import pyarrow as pa

from analysis.statistics import percent
from workers.results import Status

__all__ = ["reservations", "tied"]

_KEY = ("image_id", "target")


def tied(table: pa.Table, beside: pa.Table | None) -> str:
    """How many certified rows of a run have changes that tie, in a sentence; empty where none has.

    A change ties where its highest logits are equal: the prediction is then the lowest of their classes, and the
    certificate rests on that.

    Args:
        table: the rows at one budget, of them ``image_id``, ``target`` and ``status``.
        beside: what the attack left beside them; None where it left nothing.
    """
    if beside is None or "ties" not in beside.column_names:
        return ""
    certified = {key for key, status in zip(_keys(table), _texts(table["status"]), strict=True) if status in _CERTIFIED}
    counts = [count for key, count in zip(_keys(beside), beside["ties"].to_pylist(), strict=True) if key in certified]
    images, changes = sum(map(bool, counts)), sum(filter(None, counts))
    if not changes:
        return ""
    return (
        f"{images} of {len(certified)} certificates rest on ties: {changes} changes in all have equal highest logits, "
        "and are held because the prediction is the lowest class of these"
    )


_CERTIFIED = (str(Status.CERTIFIED),)


def reservations(table: pa.Table, beside: pa.Table | None) -> list[str]:
    """The same in sentences, and for how many images derivatives were not finite; none where there is nothing to say.

    Args:
        table, beside: as of `tied`.
    """
    said = [sentence] if (sentence := tied(table, beside)) else []
    if beside is not None and "gradients_not_finite" in beside.column_names:
        shares = np.array([share or 0.0 for share in beside["gradients_not_finite"].to_pylist()])
        if (shares > 0).any():
            count, share = int((shares > 0).sum()), percent(float(shares[shares > 0].mean()))
            said.append(
                f"finite gradients: in {count} searches {share} of the derivatives were not finite: they counted as 0"
            )
    return said


def _keys(table: pa.Table) -> list[tuple[int, int | None]]:
    return list(zip(*(table[name].to_pylist() for name in _KEY), strict=True))


def _texts(column: pa.ChunkedArray) -> list[str]:
    return column.cast(pa.string()).to_pylist()
