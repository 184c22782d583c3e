"""The errors that mean: what was given cannot be used, and: where results lie cannot be reached."""

from pydantic import ValidationError

__all__ = ["Failed", "Interrupted", "StorageError", "WrongInput", "first_problem", "in_one_line"]


class WrongInput(ValueError):
    """Something the user gave is wrong; the message says in one line what was expected and what came.

    The command line prints the message on standard error and ends with exit code 2.
    """


class Failed(RuntimeError):
    """What was asked for began and cannot be brought to its end; the message says why, and what can be done.

    The command line prints the message and ends with exit code 1.
    """


class Interrupted(Exception):
    """The user or the scheduler asked to stop; what is done is kept, and the message says how to go on."""


class StorageError(OSError):
    """A results folder cannot be read or written: the message names the place and the reason.

    Neither the search nor its input is at fault: a full disk, a bucket whose access was withdrawn.
    """


def in_one_line(error: object) -> str:
    """What an error says, without its line breaks; the name of its kind when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line that names the flag."""
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, WrongInput):  # refused by a model inside this one: it has said all
        return str(cause)
    name = "--" + "-".join(str(part) for part in problem["loc"]).replace("_", "-")
    if problem["type"] == "extra_forbidden":
        return f"unknown parameter {name}"
    if problem["type"] == "missing":
        return f"{name} is required"
    said = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{name}: {said}, got {problem['input']!r}"
