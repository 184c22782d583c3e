"""The defenses by name. Importing this module needs no torch, so that ``--help`` answers at once."""

from typing import Any

from workers.errors import WrongInput
from workers.training.defense import Defense
from workers.training.distillation import Distillation
from workers.training.fgsm import FGSMTraining
from workers.training.fgsm_rs import FGSMRandomStart
from workers.training.null_class import NullClass
from workers.training.pgd import PGDTraining
from workers.training.plain import Plain
from workers.training.rbf import RBF
from workers.training.synthesis import Synthesis
from workers.training.trades import TRADES

__all__ = ["DEFENSES", "defense_kind", "defense_named"]

DEFENSES: dict[str, type[Defense]] = {
    defense.NAME: defense
    for defense in (Plain, FGSMTraining, FGSMRandomStart, PGDTraining, TRADES, Distillation, NullClass, RBF, Synthesis)
}
"""Every defense by the name that the command line and the model folders use; ``none`` is plain training."""


def defense_kind(name: str) -> type[Defense]:
    """The defense of a name.

    Raises:
        WrongInput: when there is none.
    """
    if name not in DEFENSES:
        raise WrongInput(f"--defense: unknown defense {name}: expected one of {', '.join(DEFENSES)}")
    return DEFENSES[name]


def defense_named(name: str, **parameters: Any) -> Defense:
    """The defense of a name with its parameters.

    Raises:
        WrongInput: when there is none, or a parameter is wrong.
    """
    return defense_kind(name)(**parameters)
