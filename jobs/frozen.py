"""What is frozen in a folder, held against what a start asks for."""

from itertools import zip_longest
from typing import Any

from workers.errors import WrongInput

__all__ = ["require_same"]

_LONGEST, _SHOWN = 50, 12


def require_same(where: object, what: str, have: dict[str, Any], want: dict[str, Any]) -> None:
    """Refuses to go on with something else than what is there.

    Args:
        where: the folder, as ``--out`` names it.
        what: is in the folder: a run, an evaluation.
        have: the fields frozen there; of a field that is a dict itself its own are compared.
        want: the same of this start.

    Raises:
        WrongInput: naming the first field that differs, with both values, long ones cut to where they differ.
    """
    for field in want | have:
        one, other = have.get(field), want.get(field)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            require_same(where, what, one, other)
        one, other = _shown(str(one), str(other))
        raise WrongInput(f"--out {where}: that {what} has {field} {one}, this start {other}; name another folder")


def _shown(*texts: str) -> tuple[str, ...]:
    """Two values, cut to where they differ when one of them is long."""
    if max(map(len, texts)) < _LONGEST:
        return texts
    at = next((i for i, (one, other) in enumerate(zip_longest(*texts)) if one != other), 0)
    start = 0 if at < _SHOWN else at
    cut = [text[start : start + _SHOWN] + "…" * (len(text) > start + _SHOWN) for text in texts]
    return tuple("…" * (start > 0) + text for text in cut)
