"""Progress for anything over a second or two: a live bar on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tqdm import tqdm

__all__ = ["Part", "Parts", "Progress", "progress", "say"]

LINE_SECONDS = 5.0


class Progress:
    """Counts towards a total and shows how far it is.

    Args:
        total: what `advance` adds up to.
        title: what is being done.
        unit: what is counted, in the plural.
    """

    def __init__(self, total: int, title: str, unit: str) -> None:
        self._total, self._title, self._unit = total, title, unit
        self._done, self._figures = 0, ""
        self._started = self._said = time.monotonic()
        # A job's log is no terminal: tqdm's carriage returns would pile up there, so plain lines are printed.
        self._bar = tqdm(total=total, desc=title, unit=f" {unit}", dynamic_ncols=True) if sys.stderr.isatty() else None

    def advance(self, amount: int, figures: str = "") -> None:
        """Adds to what is done, and shows it with some figures beside it; 0 only shows that time passes."""
        self._done += amount
        self._figures = figures or self._figures
        if self._bar is not None:
            self._bar.set_postfix_str(self._figures, refresh=False)
            self._bar.update(amount)
            if not amount:
                self._bar.refresh()
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._line()

    def expect(self, total: int) -> None:
        """Changes what `advance` adds up to."""
        self._total = total
        if self._bar is not None:
            self._bar.total = total

    def close(self) -> None:
        """Ends the bar; a line is left for anything that took long enough to have shown one."""
        if self._bar is not None:
            self._bar.close()
        elif time.monotonic() - self._started >= LINE_SECONDS and self._done:
            self._line()

    def _line(self) -> None:
        self._said = time.monotonic()
        elapsed = self._said - self._started
        left = f"{elapsed / self._done * (self._total - self._done):.0f} s left" if self._done else "none done yet"
        if self._done >= self._total:
            left = f"{elapsed:.0f} s"
        parts = [f"{self._done}/{self._total} {self._unit}", self._figures, left]
        say(f"{self._title}: " + ", ".join(part for part in parts if part))


@contextmanager
def progress(total: int, title: str, unit: str = "images") -> Iterator[Progress]:
    """A `Progress` that is closed at the end, whatever happens."""
    shown = Progress(total, title, unit)
    try:
        yield shown
    finally:
        shown.close()


def say(line: str) -> None:
    """Tells the user something that is not a result: one line on standard error."""
    with suppress(OSError):  # a terminal that was closed, a disk that is full
        print(line, file=sys.stderr, flush=True)


@dataclass
class Part:
    """What one part of the work took, in seconds."""

    wall: float = 0.0
    cpu: float = 0.0


@dataclass
class Parts:
    """What each part of the work took; one at a time."""

    seconds: dict[str, Part] = field(default_factory=dict)
    _open: tuple[str, float, float] | None = None

    def begin(self, name: str) -> None:
        """Ends the part before and begins another; its time adds to what it had."""
        self.end()
        self._open = name, time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Ends the part that is open, if one is."""
        if self._open:
            name, wall, cpu = self._open
            part = self.seconds.setdefault(name, Part())
            part.wall += time.perf_counter() - wall
            part.cpu += time.process_time() - cpu
            self._open = None

    @property
    def wall(self) -> float:
        """Seconds of all parts."""
        return sum(part.wall for part in self.seconds.values())

    def table(self) -> list[str]:
        """A line for each part."""
        width = max(map(len, self.seconds), default=0)
        return [f"{name:<{width}} {part.wall:8.1f} s" for name, part in self.seconds.items()]
