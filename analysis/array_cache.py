"""Arrays that took long to compute, kept by what they were computed from."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workers.files import write_whole

__all__ = ["ArrayCache"]


class ArrayCache:
    """Named arrays in ``.npz`` files, one for each set of inputs; no pickles.

    Args:
        folder: of the files; comes to be with the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self, what: str, made_from: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays that `make` gives, made once for the same inputs.

        Args:
            what: names the kind of arrays, and begins the file's name.
            made_from: all that decides the arrays, as JSON takes it: content hashes, parameters, versions.
            make: computes them; called where no readable file has them.
        """
        digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{what}-{digest[:16]}.npz"
        try:
            with path.open("rb") as file:  # opened here, because numpy leaves a broken archive open
                return dict(np.load(file, allow_pickle=False))
        except Exception:  # absent or broken, for which numpy and zipfile raise a dozen kinds: it is made again
            arrays = dict(make())
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getvalue())
        return arrays
