"""The attacks by name. Importing this package needs no torch, so that ``--help`` answers at once."""

from workers.attacks.attack import Attack
from workers.attacks.de import DifferentialEvolution
from workers.attacks.exact import OnePixelExact, TwoPixelExact
from workers.attacks.fgsm import FGSM, IterativeFGSM
from workers.attacks.jsma import JSMA
from workers.attacks.pixel_beam import PixelBeam

__all__ = [
    "ATTACKS",
    "FGSM",
    "JSMA",
    "Attack",
    "DifferentialEvolution",
    "IterativeFGSM",
    "OnePixelExact",
    "PixelBeam",
    "TwoPixelExact",
]

ATTACKS: dict[str, type[Attack]] = {
    attack.NAME: attack
    for attack in (FGSM, IterativeFGSM, JSMA, DifferentialEvolution, OnePixelExact, TwoPixelExact, PixelBeam)
}
"""Every attack by the name that the command line and the results use."""
