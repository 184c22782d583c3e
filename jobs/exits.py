"""How a command ends, and how it says why."""

from enum import IntEnum

from cyclopts import CycloptsError, UnknownOptionError
from pydantic import ValidationError

from workers.errors import first_problem, in_one_line

__all__ = ["DEFENSE_PARAMETERS", "PARAMETERS", "Exit", "one_line"]

PARAMETERS = "Attack"
"""The group of flags that are an attack's own; an unknown flag is answered with them."""

DEFENSE_PARAMETERS = "Defense"
"""Likewise, those that are a defense's own."""


class Exit(IntEnum):
    """The exit codes."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    INTERRUPTED = 130


def one_line(error: BaseException) -> str:
    """What an error says, in one line that names the flag."""
    problem = error.__cause__ if isinstance(error, CycloptsError) else error
    if isinstance(problem, ValidationError):
        return first_problem(problem)
    said = in_one_line(error)
    if isinstance(error, UnknownOptionError):
        for group in (PARAMETERS, DEFENSE_PARAMETERS):
            own = [a.name for a in error.argument_collection if a.name != "*" and group in _groups(a.parameter.group)]
            said += f" The {group.lower()} takes {', '.join(own)}." if own else ""
    return said


def _groups(given: object) -> list[str]:
    return [getattr(group, "name", "") for group in given] if isinstance(given, tuple) else []
