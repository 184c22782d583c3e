"""A user's code in a command's own process: it neither prints among the results nor ends the process without a word."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import NoReturn

__all__ = ["contained"]


@contextmanager
def contained() -> Iterator[None]:
    """Within it standard output, as libraries and child processes know it, is standard error, and ``os._exit`` raises.

    What Python code of a user prints goes aside by `workers.models.foreign.prints_aside`; this is for the rest, which
    writes to the descriptor. Nothing is redirected where ``sys.stdout`` is not the process's own, as in a notebook.

    Raises:
        SystemExit: for ``os._exit`` in the main thread of this process, with its code.
    """
    with _descriptor_apart(), _exits_raised():
        yield


@contextmanager
def _descriptor_apart() -> Iterator[None]:
    plain = sys.stdout
    try:
        kept = os.dup(1) if isinstance(plain, TextIOWrapper) and plain.fileno() == 1 else None
    except (OSError, ValueError):  # closed, or no file at all
        kept = None
    if kept is None or not isinstance(plain, TextIOWrapper):
        yield
        return
    plain.flush()
    with suppress(OSError):  # a closed standard error takes nothing
        os.dup2(2, 1)
    told = TextIOWrapper(
        os.fdopen(kept, "wb", buffering=0 if plain.write_through else -1),
        encoding=plain.encoding,
        errors=plain.errors,
        line_buffering=plain.line_buffering,
        write_through=plain.write_through,
    )
    sys.stdout = told
    try:
        yield
        told.flush()
    finally:
        os.dup2(kept, 1)
        sys.stdout = plain
        with suppress(OSError):
            told.close()


@contextmanager
def _exits_raised() -> Iterator[None]:
    leave, process = os._exit, os.getpid()

    def raised(status: int) -> NoReturn:
        if os.getpid() != process or threading.current_thread() is not threading.main_thread():
            leave(status)
        raise SystemExit(status)

    os._exit = raised
    try:
        yield
    finally:
        os._exit = leave
