"""A lease: one driver at a time in a folder of a remote filesystem, where no lock ends with its process."""

import contextlib
import json
import os
import re
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter

from workers.errors import StorageError, WrongInput
from workers.places import Place

__all__ = ["Lease", "leased"]

BEAT_SECONDS = 2.0
"""How often a holder changes its lease."""

PATIENCE_SECONDS = 15.0
"""How long a lease must stand still before its holder counts as dead."""

_NAME = re.compile(r"\.lease-(\d{6,})")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine is suspended


@dataclass(frozen=True)
class _Process:
    """A process among all that ever were: its host, boot, namespace of process ids, id and start time."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> "_Process":
        boot, namespace = "", ""
        with contextlib.suppress(OSError):  # no Linux
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = str(Path("/proc/self/ns/pid").readlink())
        return cls(os.uname().nodename, boot, namespace, os.getpid(), _started(os.getpid()))

    def gone(self) -> bool:
        """Whether it ran where this process runs, and has ended; False where that cannot be known."""
        here = _Process.current()
        place = ("host", "boot", "namespace")
        if not here.boot or any(getattr(self, name) != getattr(here, name) for name in place):
            return False
        return _started(self.pid) != self.started


@dataclass(frozen=True)
class _Content:
    """What a lease says; whoever cannot read one can still see whether it changes."""

    token: str
    beat: int
    process: _Process

    @classmethod
    def of(cls, written: bytes | None) -> "_Content | None":
        """What was written; None when it says something else, or nothing."""
        try:
            return None if written is None else TypeAdapter(cls).validate_json(written)
        except ValueError:
            return None


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; empty when there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Lease:
    """Holds a remote folder for this process, as a context.

    The lease is an object whose name has a generation. Its holder changes its content every few seconds. Who
    comes later watches it, by a clock of its own, since clocks differ and change: it moves, and the newcomer is
    refused; or it stands still, or its holder ran on this host and has ended, and the newcomer creates the next
    generation, by a conditional write that one of several wins. A holder that was only slow finds the newer
    generation and stops. What it wrote meanwhile does no harm: a part's name and rows are given by the plan.

    Args:
        folder: the place to hold.

    Raises:
        WrongInput: when another process holds it, or it cannot be written to.
    """

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._token, self._process = secrets.token_hex(8), _Process.current()
        self._own, self._beats = folder, 0
        self._ended, self._lost = threading.Event(), False
        self._thread = threading.Thread(target=self._hold, name="lease", daemon=True)
        self._confirmed = 0.0

    def __enter__(self) -> Self:
        try:
            newest = _newest(self.folder)
            if newest is not None and _moves(newest):
                raise WrongInput(f"--out {self.folder}: another brittle is writing there")
            generation = 1 if newest is None else _generation(newest.name) + 1
            self._own = self.folder / f".lease-{generation:06d}"
            if not self._own.create(self._content()):
                raise WrongInput(f"--out {self.folder}: another brittle is starting there")
            for name in _leases(self.folder):
                if _generation(name) < generation:
                    (self.folder / name).remove()
        except StorageError as error:
            raise WrongInput(f"--out {error}") from None
        self._confirmed = time.clock_gettime(_CLOCK)
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(StorageError):  # it stands still from now on
            self._withdraw()

    def check(self) -> None:
        """Costs nothing: what the last heartbeat found.

        Raises:
            StorageError: when another process has taken the folder over.
        """
        if self._lost:
            raise StorageError(
                f"{self.folder}: another brittle took this folder over, because this one was silent for a while; "
                "what is done is kept"
            )

    def confirm(self) -> None:
        """Asks the filesystem, unless a heartbeat has just done so; for what must not happen without the lease.

        Raises:
            StorageError: when another process has taken the folder over, or it cannot be reached.
        """
        if not self._lost and time.clock_gettime(_CLOCK) - self._confirmed > 2 * BEAT_SECONDS:
            self._look()
        self.check()

    def _hold(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(StorageError):  # out of reach for now: only a newer generation ends the lease
                self._look()
                if self._lost:
                    self._withdraw()
                    return
                self._own.write(self._content())

    def _look(self) -> None:
        now = time.clock_gettime(_CLOCK)
        if self._is_own():
            self._confirmed = now
        else:
            self._lost = True

    def _is_own(self) -> bool:
        """Whether the newest lease is there and is this one."""
        newest = _newest(self.folder)
        return newest is not None and newest.name == self._own.name and self._is_there()

    def _is_there(self) -> bool:
        """Whether this lease is there, be it the newest or not."""
        content = _Content.of(_read(self._own))
        return content is not None and content.token == self._token

    def _withdraw(self) -> None:
        """Removes this lease: a heartbeat that was slow may have written it again after a newcomer removed it."""
        if self._is_there():
            self._own.remove()

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps(asdict(_Content(self._token, self._beats, self._process))).encode()


def leased(folder: Place) -> bool:
    """Whether a process holds the folder now; may watch its lease for a while, and changes nothing there."""
    newest = _newest(folder)
    return newest is not None and _moves(newest)


def _leases(folder: Place) -> list[str]:
    return [name for name in folder.names() if _NAME.fullmatch(name)]


def _generation(name: str) -> int:
    return int(name.rpartition("-")[2])


def _newest(folder: Place) -> Place | None:
    newest = max(_leases(folder), key=_generation, default=None)
    return None if newest is None else folder / newest


def _read(lease: Place) -> bytes | None:
    """What was written to a lease; None when it is gone."""
    try:
        return lease.read()
    except FileNotFoundError:
        return None


def _moves(lease: Place) -> bool:
    """Whether somebody is at the other end."""
    first = _read(lease)
    content = _Content.of(first)
    if first is None or (content is not None and content.process.gone()):
        return False
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 4)
        now = _read(lease)
        if now != first:
            return now is not None
    return False
