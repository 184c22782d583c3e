"""The attacks by name. Importing this package needs no torch, so that ``--help`` answers at once."""

from workers.attacks.apgd import APGD
from workers.attacks.attack import Attack
from workers.attacks.cmaes import CMAES
from workers.attacks.corner_search import CornerSearch
from workers.attacks.ddn import DDN
from workers.attacks.de import DifferentialEvolution
from workers.attacks.exact import OnePixelExact, TwoPixelExact
from workers.attacks.fgsm import FGSM, IterativeFGSM
from workers.attacks.jsma import JSMA
from workers.attacks.pgd import PGD
from workers.attacks.pixel_beam import PixelBeam
from workers.attacks.random_pixels import RandomPixels
from workers.attacks.sparse_rs import SparseRS
from workers.attacks.square import Square

__all__ = [
    "APGD",
    "ATTACKS",
    "CMAES",
    "DDN",
    "FGSM",
    "JSMA",
    "PGD",
    "Attack",
    "CornerSearch",
    "DifferentialEvolution",
    "IterativeFGSM",
    "OnePixelExact",
    "PixelBeam",
    "RandomPixels",
    "SparseRS",
    "Square",
    "TwoPixelExact",
]

ATTACKS: dict[str, type[Attack]] = {
    attack.NAME: attack
    for attack in (
        FGSM,
        IterativeFGSM,
        PGD,
        APGD,
        DDN,
        Square,
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
