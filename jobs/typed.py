"""Commands as they are typed."""

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from workers.budgets import spelled

__all__ = ["changed", "command", "flags", "path", "word"]


def word(value: Any) -> str:
    """A parameter's value as it is typed; an amount in whole levels as ``8/255``."""
    return spelled(value) if isinstance(value, float) else str(value)


def path(place: object) -> str:
    """A path or URI as a word of its own; a name that begins with a dash would be taken for a flag."""
    text = str(place)
    return f"./{text}" if text.startswith("-") else text


def command(name: str, *words: str) -> str:
    """``brittle NAME`` with words behind it, quoted for a shell."""
    return shlex.join(["brittle", name, *words])


def changed(*options: BaseModel) -> list[str]:
    """The words that give options of a command the values they have; those at their defaults need none."""
    return [word for each in options for word in flags(each.model_dump(exclude_defaults=True))]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flags(values: Mapping[str, Any], flag_of: Callable[[str], str] = _flag) -> list[str]:
    """The words that give parameters their values; None and empty text, which cannot be typed, are left out.

    Args:
        values: by name; of a list each value is a word.
        flag_of: what a parameter's flag is called.
    """
    words: list[str] = []
    for name, value in values.items():
        flag = flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, Iterable) and not isinstance(value, str):
            words += [flag, *map(word, value)]
        elif value not in (None, ""):
            typed = word(value)
            words += [f"{flag}={typed}"] if typed.startswith("-") else [flag, typed]
    return words
