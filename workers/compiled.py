"""numba's compiler, and where what it compiled is kept.

Compiled kernels are kept in the user's cache, in a folder named by the sources of all of them: numba itself does
not notice that a function of another file was edited. At a new path, as of a shipped working directory, it
compiles anew (7 s).
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["jitable", "njit", "on_host"]

_SOURCES = [
    Path(__file__).parent / name
    for name in (
        "attacks/de_kernel.py",
        "draws.py",
        "evaluation/kernel.py",
        "evaluation/scores.py",
        "evaluation/vectors.py",
    )
]
_VERSION = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(platformdirs.user_cache_dir("brittle")) / "kernels" / _VERSION))

from numba import njit  # noqa: E402
from numba.extending import register_jitable as jitable  # noqa: E402


def on_host(tensor: "Tensor") -> bool:
    """Whether kernels can read the tensor; where not, torch operations do the same on its device."""
    return tensor.device.type == "cpu"
