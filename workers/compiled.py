"""numba's compiler, and where what it compiled is kept: found by what the source says, wherever it lies."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.extending import register_jitable as jitable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["jitable", "kernel", "on_host", "pool", "spread"]

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
_VERSION = hashlib.sha256(b"\0".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:16]


def kernel(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function as ``numba.njit`` does with these options, and keeps it in a folder named by the sources.

    numba's own folders are named by the path of the function's file: a working directory that is shipped to a node
    has a new one each time and would compile anew, and an edit of what the file imports would go unseen. The folder
    is below numba's ``NUMBA_CACHE_DIR`` where that is set, else in the user's cache; where it cannot be written to,
    numba's own is taken.
    """

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        found = njit(**options)(function)
        found._cache = _Cache(found.py_func)
        return found

    return compiled


class _Locator(_CacheLocator):  # type: ignore[misc]
    def get_cache_path(self) -> str:
        return str(Path(config.CACHE_DIR or platformdirs.user_cache_dir("brittle")) / "kernels" / _VERSION)

    def get_source_stamp(self) -> str:
        return _VERSION

    def get_disambiguator(self) -> str:
        return _VERSION

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> "_Locator | None":
        locator = cls()
        try:
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


class _Files(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator, *CompileResultCacheImpl._locator_classes)


class _Cache(FunctionCache):  # type: ignore[misc]
    _impl_class = _Files


def on_host(tensor: "Tensor") -> bool:
    """Whether kernels can read the tensor; where not, torch operations do the same on its device."""
    return tensor.device.type == "cpu"


GRAIN = 4096
"""Items that a thread takes at least: fewer cost more to hand over than to do."""

_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}


def pool(threads: int) -> ThreadPoolExecutor:
    """This process's pool of so many threads for kernels that run without the GIL."""
    key = os.getpid(), threads  # a forked child has no threads of its parent's
    if key not in _POOLS:
        _POOLS[key] = ThreadPoolExecutor(threads)
    return _POOLS[key]


def spread(kernel: Callable[..., None], count: int, *arguments: Any) -> None:
    """Calls ``kernel(start, stop, *arguments)`` for parts of ``count`` items, on as many threads as torch uses.

    The kernel runs without the GIL, and what it writes for an item does not depend on the others.
    """
    import torch

    threads = min(torch.get_num_threads(), count // GRAIN)
    if threads <= 1:
        kernel(0, count, *arguments)
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    list(pool(threads).map(lambda part: kernel(bounds[part], bounds[part + 1], *arguments), range(threads)))
