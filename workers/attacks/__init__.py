"""The attacks by name. Importing this package needs no torch, so that ``--help`` answers at once."""

from workers.attacks.adaptive import Adaptive
from workers.attacks.apgd import APGD
from workers.attacks.attack import Attack
from workers.attacks.cmaes import CMAES
from workers.attacks.corner_search import CornerSearch
from workers.attacks.ddn import DDN
from workers.attacks.de import DifferentialEvolution
from workers.attacks.exact import OnePixelExact, TwoPixelExact
from workers.attacks.fgsm import FGSM, IterativeFGSM
from workers.attacks.jsma import JSMA
from workers.attacks.noise import Noise
from workers.attacks.pgd import PGD
from workers.attacks.pixel_beam import PixelBeam
from workers.attacks.random_pixels import RandomPixels
from workers.attacks.rays import RayS
from workers.attacks.sparse_rs import SparseRS
from workers.attacks.square import Square
from workers.attacks.toolkits import TOOLKITS, toolkit_attack
from workers.errors import WrongInput

__all__ = [
    "APGD",
    "ATTACKS",
    "CMAES",
    "DDN",
    "FGSM",
    "JSMA",
    "PGD",
    "TOOLKITS",
    "Adaptive",
    "Attack",
    "CornerSearch",
    "DifferentialEvolution",
    "IterativeFGSM",
    "Noise",
    "OnePixelExact",
    "PixelBeam",
    "RandomPixels",
    "RayS",
    "SparseRS",
    "Square",
    "TwoPixelExact",
    "attack_named",
]

ATTACKS: dict[str, type[Attack]] = {
    attack.NAME: attack
    for attack in (
        FGSM,
        IterativeFGSM,
        PGD,
        APGD,
        DDN,
        Adaptive,
        Square,
        RayS,
        Noise,
        JSMA,
        DifferentialEvolution,
        OnePixelExact,
        TwoPixelExact,
        PixelBeam,
        RandomPixels,
        SparseRS,
        CornerSearch,
        CMAES,
    )
}
"""Every attack by the name that the command line and the results use."""


def attack_named(name: str) -> type[Attack]:
    """The attack of a name: one of `ATTACKS`, or ``torchattacks:CLASS`` or ``foolbox:CLASS``.

    Raises:
        WrongInput: when there is none, or its toolkit is not installed.
    """
    if name.partition(":")[0] in TOOLKITS:
        return toolkit_attack(name)
    if name not in ATTACKS:
        toolkits = ", ".join(f"{toolkit}:NAME" for toolkit in TOOLKITS)
        raise WrongInput(f"unknown attack {name}: expected one of {', '.join(ATTACKS)}, {toolkits}")
    return ATTACKS[name]
