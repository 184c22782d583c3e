"""Which remedies a model is searched under."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["NONE", "Remedies", "Way"]

Way = Literal["operations", "input"]
"""What is passed straight through: single operations; or all that leads to the last tensor of an image's size too."""


@dataclass(frozen=True)
class Remedies:
    """What is done to a model before it is searched; nothing by default.

    Attributes:
        draws: how many answers of a randomised model are averaged, each of draws of its own: expectation over
            transformation (Athalye, Carlini & Wagner, 2018, "Obfuscated gradients give a false sense of security",
            section 4.2); 0 for a model that is not.
        alone: whether each image is asked about in a call of its own, because others in it change the answer.
        inside: which tensor on the way to the answer stands for the logits, counted from the last; 0 for the answer.
        logarithm: whether the answer is of probabilities, whose logarithm is taken.
        straight_through: which steps without a gradient are given one; None for none.
        scale: what logits are multiplied by, a power of two, so that no exponential over- or underflows.
    """

    draws: int = 0
    alone: bool = False
    inside: int = 0
    logarithm: bool = False
    straight_through: Way | None = None
    scale: float = 1.0

    def __bool__(self) -> bool:
        return self != NONE

    @property
    def answering(self) -> "Remedies":
        """Those that concern what the model's answer is, not what is searched."""
        return Remedies(draws=self.draws, alone=self.alone)

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> "Remedies":
        """What `describe` gave.

        Raises:
            TypeError: for an unknown field.
        """
        return cls(**described)

    def __str__(self) -> str:
        said = [
            f"EOT over {self.draws} draws" * bool(self.draws),
            "each image asked alone" * self.alone,
            "logits found inside the model" * bool(self.inside),
            "the logarithm of its probabilities" * self.logarithm,
            {"operations": "a straight-through gradient", "input": "a gradient straight through to the input"}.get(
                self.straight_through or "", ""
            ),
            f"logits times {self.scale:.3g}" * (self.scale != 1),
        ]
        return ", ".join(filter(None, said)) or "nothing"


NONE = Remedies()
"""A model is searched as it was given."""
