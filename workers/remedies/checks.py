"""A check of an attack's validity: its name, what came of it, and what was done about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from workers.remedies.remedies import NONE, Remedies

__all__ = ["ANSWERING", "ANSWERS", "LOOK", "UNPROBED", "Check", "Probe", "State", "unlooked"]


ANSWERS = ("finite answers", "other images of a call")
"""The checks on whether an image has an answer of its own: where one fails, it is not even sure what is broken."""


ANSWERING = ("randomised model", "other images of a call")
"""The checks whose remedies concern what the model's answer is (`Remedies.answering`), not what is searched."""


LOOK = "model"
"""The check that stands for all of them where the model could not be looked at."""


class State(StrEnum):
    """What came of a check.

    ``passed``: nothing speaks against the attack. ``remedied``: something did, and no longer does. ``failed``: it still
    does: what the attack left need not be robust. ``not run``: there was no need, no means or no budget.
    """

    PASSED = "passed"
    REMEDIED = "remedied"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what is looked for.
        state: what came of it.
        reason: what was seen, a clause.
        remedy: what was done about it; empty for nothing.
        seconds: wall time of the check and its remedy; those made together share theirs out.
    """

    name: str
    state: State
    reason: str
    remedy: str = ""
    seconds: float = 0.0

    @property
    def unlooked(self) -> bool:
        """Whether it says that the model could not be looked at, so that none of the others was made."""
        return self.name == LOOK and self.state == State.NOT_RUN

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return vars(self) | {"state": str(self.state)}

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Check":
        """What `describe` gave.

        Raises:
            KeyError, TypeError, ValueError: for something else.
        """
        return cls(**{**described, "state": State(described["state"])})

    def __str__(self) -> str:
        done = f"; remedy: {self.remedy}" if self.remedy else ""
        return f"{self.name}: {self.state}: {self.reason}{done}"


@dataclass(frozen=True)
class Probe:
    """What was found out about a model.

    Attributes:
        checks: in the order in which they are made.
        remedies: what to search in the model's place; nothing for a model that hides nothing.
        differentiable: whether the model as given has a gradient to search by.
        searchable: whether it has one under the remedies.
    """

    checks: tuple[Check, ...] = ()
    remedies: Remedies = NONE
    differentiable: bool = True
    searchable: bool = True

    def told(self, searched: Remedies) -> list[str]:
        """What was found and what was done about it, a sentence each; of what passed, none.

        Args:
            searched: the remedies that the model was searched under, which need not be those found.
        """
        return [
            f"{check.name}: found, and not remedied, the model was searched as given: {check.reason}"
            if check.state == State.REMEDIED and not self._remedied(check, searched)
            else str(check)
            for check in self.checks
            if check.state != State.PASSED
        ]

    def blinding(self, searched: Remedies) -> list[str]:
        """Why what was not found proves nothing: checks that failed, remedies not taken, a look that came to no end."""
        return [
            f"{check.name} not remedied"
            for check in self.checks
            if check.state == State.FAILED or (check.state == State.REMEDIED and not self._remedied(check, searched))
        ] + [f"its {check.name} {check.reason}" for check in self.checks if check.unlooked]

    def _remedied(self, check: Check, searched: Remedies) -> bool:
        if check.name in ANSWERING:
            return searched.answering == self.remedies.answering
        return searched == self.remedies

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "checks": [check.describe() for check in self.checks],
            "remedies": self.remedies.describe(),
            "differentiable": self.differentiable,
            "searchable": self.searchable,
        }

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Probe":
        """What `describe` gave.

        Raises:
            KeyError, TypeError, ValueError: for something else.
        """
        checks = tuple(Check.of(check) for check in described["checks"])
        flags = described["differentiable"], described["searchable"]
        return cls(checks, Remedies.of(described["remedies"]), *flags)


UNPROBED = Probe()
"""Of a model that nothing was found out about."""


def unlooked(reason: str) -> Probe:
    """Of a model that could not be looked at: it is searched as it is, and a search says what befalls each image."""
    return Probe((Check(LOOK, State.NOT_RUN, f"could not be looked at: {reason}"),))
