"""How a command ends."""

from enum import IntEnum

__all__ = ["Exit", "Interrupted"]


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    INTERRUPTED = 130


class Interrupted(Exception):
    """The user or the scheduler asked to stop; what is done is kept, and the message says how to go on."""
