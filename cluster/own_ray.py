"""A Ray that this process has started for itself: whether it lives, and the folder that it leaves."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from workers.errors import Failed

__all__ = ["OwnRay"]

LOOK_SECONDS = 0.2
"""How often it is seen whether Ray lives: without that Ray ends this process, at once or after up to a minute."""

LAST_WORD = (
    "brittle: failed: it was ended from without, by Ray, which does so when an agent of its dies, or by a signal: "
    "run the same command again to go on"
)

KEPT_LOGS = 4
"""Sessions whose logs stay; older ones go when a new session starts."""

_MARK = ".brittle"
"""A file in the folder of a session of ours, locked for as long as its driver lives."""

_AGENTS = {
    "dashboard agent": ("ray::DashboardAgent", "dashboard/agent.py"),
    "agent for runtime environments": ("ray::RuntimeEnvAgent", "runtime_env/agent/main.py"),
}
"""What they are called once they run, and at their start."""

_NAMES = {"gcs_server": "control service (GCS)", "raylet": "raylet"}


class OwnRay:
    """The processes and the folder of the Ray that `ray.init` has just started in this process."""

    def __init__(self) -> None:
        from ray._private import worker

        self._node: Any = worker.global_worker.node
        self._folder = Path(self._node.get_session_dir_path())
        self._mark = (self._folder / _MARK).open("w")
        fcntl.flock(self._mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._keep_logs = False
        # Ray may end this process without a word, and before anything could be done about it here.
        sentence = ["sh", "-c", 'read -r _ || printf "%s\\n" "$0" >&2', LAST_WORD]
        self._last_word = subprocess.Popen(
            sentence, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._agents = _agents_of([info.process.pid for info in self._node.all_processes.get("raylet", ())])
        _sweep(self._folder.parent)

    def keep_logs(self) -> None:
        """Leaves Ray's logs where they are at the end: something failed, and they may say why."""
        self._keep_logs = True

    @property
    def logs(self) -> Path:
        """The folder of its logs."""
        return self._folder / "logs"

    def death(self) -> str:
        """Which of its processes has died, and how; empty while all live."""
        for kind, name in _NAMES.items():
            for info in self._node.all_processes.get(kind, ()):
                if (code := info.process.poll()) is not None:
                    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                    return f"Ray's {name} {how}"
        dead = next((name for process, name in self._agents.items() if not _lives(process)), "")
        return f"Ray's {dead} died" if dead else ""

    def require_alive(self) -> None:
        """Raises `Failed`, naming what died."""
        if death := self.death():
            self.keep_logs()
            raise Failed(f"{death}: run the same command again to go on (Ray's logs: {self.logs})")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Raises `Failed` in the main thread, wherever it is, once a process of Ray's has died."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        main, over = threading.main_thread().ident, threading.Event()
        assert main

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                if self.death():
                    signal.pthread_kill(main, signal.SIGUSR1)
                    return

        def fail(number: int, frame: FrameType | None) -> None:
            if not over.is_set():
                self.require_alive()

        before = signal.signal(signal.SIGUSR1, fail)
        thread = threading.Thread(target=look, name="brittle-watches-ray", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            signal.signal(signal.SIGUSR1, before)

    def end(self, shut_down: Callable[[], None]) -> None:
        """Ends Ray and clears its folder away, but for the logs where something failed.

        Args:
            shut_down: Ray's own; it takes ten seconds where its control service has died.
        """
        dead = self.death()
        if dead:
            self._node.kill_all_processes(check_alive=False)
            for process in self._agents:  # which a raylet that is killed leaves
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        with _errors_to(self.logs / "driver-at-its-end.err") if dead else contextlib.nullcontext():
            shut_down()
        with contextlib.suppress(BrokenPipeError):
            self._last_word.communicate(b"ended in order\n")
        self._mark.close()
        _clear(self._folder, logs=self._keep_logs)


@contextmanager
def _errors_to(file: Path) -> Iterator[None]:
    """What this process writes on standard error, Ray's own threads included, goes into a file meanwhile."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with contextlib.suppress(OSError), file.open("ab") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _agents_of(raylets: list[int]) -> dict[int, str]:
    """The agents that raylets have started, by process id: a raylet does not outlive one, and says nothing of it."""
    found: dict[int, str] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):  # none where there is no /proc
        with contextlib.suppress(OSError):
            if int(file.read_text().rpartition(")")[2].split()[1]) in raylets:
                title = (file.parent / "cmdline").read_bytes().decode(errors="replace")
                found |= {
                    int(file.parent.name): name for name, signs in _AGENTS.items() if any(s in title for s in signs)
                }
    return found


def _lives(process: int) -> bool:
    """Whether a process is there, and more than what its parent has not yet been told."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Clears away what sessions of ours left whose driver was killed, and logs that others have followed.

    A session that lives holds its mark; one that has none is not ours.
    """
    ended = []
    for session in sorted(folder.glob("session_*"), reverse=True):
        try:
            with (session / _MARK).open() as mark:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                ended.append(session)
        except OSError:
            continue
    for place, session in enumerate(ended):
        _clear(session, logs=place < KEPT_LOGS)


def _clear(session: Path, *, logs: bool) -> None:
    """Removes the folder of a session, or all but its logs; processes that are just ending may still write there."""
    for _ in range(5):
        for path in [session] if not logs else session.iterdir() if session.is_dir() else ():
            if logs and path.name in ("logs", _MARK):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if logs or not session.exists():
            break
        time.sleep(0.2)
    latest = session.parent / "session_latest"
    with contextlib.suppress(OSError):
        if not logs and latest.readlink().name == session.name:
            latest.unlink()
