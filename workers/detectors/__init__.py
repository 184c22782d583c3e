"""The detectors by name."""

from collections.abc import Mapping
from typing import Any

from workers.detectors.controls import MaxSoftmax, MedianFilter, RandomScore
from workers.detectors.defense_gan import DefenseGAN
from workers.detectors.detector import Detector, DetectorRecipe
from workers.detectors.disagreement import RBFDisagreement, SynthesisDisagreement
from workers.detectors.feature_squeezing import FeatureSqueezing
from workers.detectors.lid import LID
from workers.detectors.magnet import MagNet
from workers.detectors.user import UserDetector
from workers.detectors.vae import VAEKL, ClassifierJSD, ClassifierKL, VAEBernoulliKL, VAEError, VAENormalisedKL
from workers.errors import WrongInput

__all__ = ["DETECTORS", "Detector", "DetectorRecipe", "detector_named", "detector_recipe"]

DETECTORS: dict[str, type[DetectorRecipe]] = {
    recipe.NAME: recipe
    for recipe in (
        VAEKL,
        VAENormalisedKL,
        VAEBernoulliKL,
        VAEError,
        ClassifierKL,
        ClassifierJSD,
        MagNet,
        DefenseGAN,
        FeatureSqueezing,
        LID,
        RBFDisagreement,
        SynthesisDisagreement,
        RandomScore,
        MedianFilter,
        MaxSoftmax,
    )
}
"""Every detector by the name that the command line and the results use."""


def detector_named(name: str, **parameters: Any) -> DetectorRecipe:
    """The detector of a name: one of `DETECTORS`, or ``module:function``.

    Raises:
        WrongInput: when there is none, or a parameter is wrong.
    """
    if ":" in name:
        return UserDetector(function=name, **parameters)
    if name not in DETECTORS:
        raise WrongInput(f"unknown detector {name}: expected one of {', '.join(DETECTORS)}, or module:function")
    return DETECTORS[name](**parameters)


def detector_recipe(described: Mapping[str, Any]) -> DetectorRecipe:
    """The recipe of ``{"name": …, "parameters": {…}}``.

    Raises:
        WrongInput: when it is unknown or a parameter wrong.
    """
    if described["name"] == UserDetector.NAME:
        return UserDetector(**described["parameters"])
    return detector_named(described["name"], **described["parameters"])
