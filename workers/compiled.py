"""numba's compiler, and where what it compiled is kept.

Compiled kernels are kept in the user's cache, in a folder named by the sources of all of them: numba itself does
not notice that a function of another file was edited. At a new path, as of a shipped working directory, it
compiles anew (7 s).
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["jitable", "njit", "on_host", "spread"]

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


GRAIN = 4096
"""Items that a thread takes at least: fewer cost more to hand over than to do."""

_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}


def spread(kernel: Callable[..., None], count: int, *arguments: Any) -> None:
    """Calls ``kernel(start, stop, *arguments)`` for parts of ``count`` items, on as many threads as torch uses.

    The kernel runs without the GIL, and what it writes for an item does not depend on the others.
    """
    import torch

    threads = min(torch.get_num_threads(), count // GRAIN)
    if threads <= 1:
        kernel(0, count, *arguments)
        return
    pool = os.getpid(), threads  # a forked child has no threads of its parent's
    if pool not in _POOLS:
        _POOLS[pool] = ThreadPoolExecutor(threads)
    bounds = [count * part // threads for part in range(threads + 1)]
    list(_POOLS[pool].map(lambda part: kernel(bounds[part], bounds[part + 1], *arguments), range(threads)))
