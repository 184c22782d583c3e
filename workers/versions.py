"""What decides the bits of a result besides its inputs: the versions of what computes it."""

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["code_hash", "version_of", "versions"]

_COMPUTE = ("torch", "numpy", "numba")


@cache
def code_hash() -> str:
    """SHA-256 of the source of everything that a worker runs."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def version_of(package: str) -> str:
    """The installed version of a package; ``not installed`` where there is none, as in a bare source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions(*more: str) -> dict[str, str]:
    """By name what workers and driver must have in common: Python, what computes, and brittle's own code.

    Args:
        more: packages besides, such as the toolkit that an attack is of.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    packages = {package: version_of(package) for package in (*_COMPUTE, *more)}
    return {"python": python, **packages, "brittle's code": code_hash()}
