"""A run as figures and pages take it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from analysis.statistics import Rate
from workers.attacks.attack import Attack
from workers.budgets import spelled
from workers.places import Place

__all__ = ["RunView"]


@dataclass(frozen=True)
class RunView:
    """A run at one of its budgets.

    Attributes:
        place: its folder.
        name: what it is called, which no other run beside it is.
        key: likewise, for names of files and drawings: lower case, digits and hyphens.
        attack: the method with its parameters.
        target: as the user gave it, None when untargeted.
        planned: rows in the plan.
        table: the rows that are done.
        checks: what was found out about the model and did not pass, a sentence each.
        by_products: what the attack left beside the rows, by the same key; None where it leaves nothing.
        command: what makes the run, as typed; empty when it is not known.
        command_of_row: what searches one of its images again, as typed, without ``--ids``, ``--target`` and ``--out``.
        left: of all images, the robust accuracy that it and the runs before it left, each of which searched what those
            before it had left; None for a run that is not one of several such.
    """

    place: Place
    name: str
    key: str
    attack: Attack
    target: str | None
    planned: int
    table: pa.Table
    checks: Sequence[str] = ()
    by_products: pa.Table | None = None
    command: str = ""
    command_of_row: str = ""
    left: Rate | None = None

    @property
    def title(self) -> str:
        """The attack and its goal, for example ``jsma → 6``."""
        return f"{self.attack.title} → {self.target}" if self.target is not None else f"{self.attack.title}, untargeted"

    @property
    def parameters(self) -> list[str]:
        """Every parameter that is set, each as a flag."""
        given = self.attack.model_dump().items()
        return [_flag(name.replace("_", "-"), value) for name, value in given if value is not None]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {spelled(value) if isinstance(value, float) else value}"
