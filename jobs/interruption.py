"""Ctrl-C, and the signals that mean the same."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from workers.errors import Interrupted, StorageError
from workers.places import Place

__all__ = ["interruptible", "keeping"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; `ray job stop` and schedulers; a terminal or ssh that is closed."""

ENDING_SECONDS = 20.0
"""How long after one of them others change nothing: workers and Ray are being ended, and results put down."""

_FROZEN = {"run.json", "plan.parquet", "evaluation.json", "detection.json", "transfer.json"}
"""What says only what a folder is to hold."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes one of `SIGNALS` a KeyboardInterrupt, once in `ENDING_SECONDS`; those that are ignored stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not ending or time.monotonic() - ending[-1] > ENDING_SECONDS:
            ending.append(time.monotonic())
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as under nohup, or behind a shell's &
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():  # a process that was interrupted is about to end, whatever comes
            if handler is not None:
                signal.signal(number, signal.SIG_IGN if ending else handler)


@contextmanager
def keeping(out: Path | Place) -> Iterator[None]:
    """Ends an interrupted command with a line that says whether the folder keeps anything of it.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt:
        if _finished(Place.of(out)):
            said = f"interrupted: {out} keeps what is finished; run the same command again to go on"
        else:
            said = "interrupted before anything was finished; run the same command again"
        raise Interrupted(said) from None


def _finished(place: Place) -> bool:
    """Whether more is there than a frozen plan; True where that cannot be seen."""
    if place.local:
        names = {path.name for path in place.path.rglob("*") if path.is_file()} if place.path.is_dir() else set()
    else:
        try:
            names = {*place.names(), *(place / "parts").names()} - {"parts"}
        except (StorageError, OSError):
            return True
    return any(not name.startswith(".") and name not in _FROZEN for name in names)
