"""Files that are whole or absent, and folders that belong to one process at a time."""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from workers.errors import WrongInput

__all__ = ["exclusive", "held", "require_place", "write_whole"]

LOCK_SECONDS = 1.0
"""How long a lock is tried for: `held` takes it for an instant, and must not turn a starting driver away."""


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is either whole or absent, whatever is killed meanwhile, a power cut included.

    The hidden temporary file has a name of its own, so that two writers of one file cannot mix.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename itself survive
    finally:
        os.close(folder)


def require_place(folder: Path) -> None:
    """Refuses a folder that cannot be created or written to, before work is spent on what it is to hold.

    Raises:
        WrongInput: naming what stands in the way.
    """
    place = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not place.is_dir():
        raise WrongInput(f"--out {folder}: {place} is not a folder")
    if not os.access(place, os.W_OK):
        raise WrongInput(f"--out {folder}: {place} cannot be written to")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a folder for this process, by a lock on its ``.lock`` that a kill -9 frees at once.

    The folder comes to be. In the end ``.lock`` goes, and so do folders that were made for it if they are empty.

    Raises:
        WrongInput: when another process holds it, or it cannot be written to.
    """
    path, deadline = folder / ".lock", time.monotonic() + LOCK_SECONDS
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and time.monotonic() < deadline:
                continue  # its last holder, who had made it, has just removed it
            raise WrongInput(f"--out {folder}: cannot be written to: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WrongInput(f"--out {folder}: another brittle is writing there") from None
                time.sleep(0.05)
                continue
            if not _is_at(path, file):  # its last holder removed it: lock the one that is there
                continue
            try:
                yield
            finally:
                if _is_at(path, file):  # else somebody removed it, and the one that is there is another's
                    path.unlink()
                for place in made:
                    with contextlib.suppress(OSError):  # somebody has put something there
                        place.rmdir()
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def held(folder: Path) -> bool:
    """Whether a process holds the folder now; changes nothing there."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
