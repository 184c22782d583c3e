"""Detectors that hold an image against its reconstruction by a variational autoencoder."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.detectors.detector import Detector, DetectorRecipe
from workers.models.vae import VAE
from workers.training.networks import Network, VAENetwork

__all__ = [
    "SCORES",
    "VAEKL",
    "ClassifierJSD",
    "ClassifierKL",
    "VAEBernoulliKL",
    "VAEDetector",
    "VAEError",
    "VAENormalisedKL",
]

Score = Literal["kl", "normalised-kl", "bernoulli-kl", "error", "classifier-kl", "classifier-jsd"]

OFFSET = 1e-5
"""The seed adds it to every pixel, as logarithms of zero have no value."""


def _kl(image: Tensor, other: Tensor) -> Tensor:
    """The seed's score: mean of p·log(p/q) over raw pixels plus 1e-5. No divergence, as neither sums to one."""
    p, q = image.flatten(1) + OFFSET, other.flatten(1) + OFFSET
    return (p * (p / q).log()).mean(dim=1)


def _normalised_kl(image: Tensor, other: Tensor) -> Tensor:
    """KL divergence between images scaled to sum to one."""
    p, q = image.flatten(1) + OFFSET, other.flatten(1) + OFFSET
    p, q = p / p.sum(dim=1, keepdim=True), q / q.sum(dim=1, keepdim=True)
    return (p * (p / q).log()).sum(dim=1)


def _bernoulli_kl(image: Tensor, other: Tensor) -> Tensor:
    """KL divergence between pixels taken for independent Bernoulli probabilities, summed."""
    p, q = image.flatten(1).clamp(OFFSET, 1 - OFFSET), other.flatten(1).clamp(OFFSET, 1 - OFFSET)
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=1)


def _error(image: Tensor, other: Tensor) -> Tensor:
    """Mean squared error of reconstruction."""
    return (image - other).square().flatten(1).mean(dim=1)


def _classifier_kl(logits: Tensor, other: Tensor) -> Tensor:
    """KL divergence from the classifier's answer to the one it gives for the reconstruction."""
    p, q = logits.log_softmax(dim=1), other.log_softmax(dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


def _classifier_jsd(logits: Tensor, other: Tensor) -> Tensor:
    """Jensen–Shannon divergence between the classifier's answers for the image and for the reconstruction."""
    p, q = logits.log_softmax(dim=1), other.log_softmax(dim=1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return ((p.exp() * (p - middle)).sum(dim=1) + (q.exp() * (q - middle)).sum(dim=1)) / 2


SCORES = {
    "kl": _kl,
    "normalised-kl": _normalised_kl,
    "bernoulli-kl": _bernoulli_kl,
    "error": _error,
    "classifier-kl": _classifier_kl,
    "classifier-jsd": _classifier_jsd,
}
"""How an image and its reconstruction (for the last two: the classifier's logits of both) are held together."""


class VAEDetector(Detector):
    """Reconstructs an image from a sampled code and scores the difference.

    Args:
        classifier: what is guarded.
        vae: the autoencoder.
        measure: a name of `SCORES`.
    """

    def __init__(self, classifier: nn.Module, vae: VAE, measure: Score) -> None:
        super().__init__(classifier)
        self.vae, self.measure, self.noise = vae, measure, (vae.code_size,)

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        again = self.reconstruct(images, noise)
        if self.measure.startswith("classifier"):
            return SCORES[self.measure](self.classifier(images), self.classifier(again))
        return SCORES[self.measure](images, again)

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        found: Tensor = self.vae(images, noise)
        return found


class _VAERecipe(DetectorRecipe):
    MEASURE: ClassVar[Score]

    code_size: int = Field(2, ge=1, le=1024, description="Numbers in the autoencoder's code.")
    epochs: int = Field(30, ge=1, le=10_000, description="Of the autoencoder's training.")
    training_seed: int = Field(42, ge=0, lt=2**31, description="Of the autoencoder's training.")

    def networks(self) -> dict[str, Network]:
        return {"vae": VAENetwork(code_size=self.code_size, epochs=self.epochs, seed=self.training_seed)}

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> VAEDetector:
        return VAEDetector(classifier, VAE(*shape, code_size=self.code_size), self.MEASURE)


class VAEKL(_VAERecipe):
    """The seed's score, exactly: mean(p·log(p/q)) over raw pixels plus 1e-5, q reconstructed from a sampled code."""

    NAME, MEASURE, PAPER = "vae-kl", "kl", "Dahal 2019"


class VAENormalisedKL(_VAERecipe):
    """KL divergence between image and reconstruction, both scaled to sum to one."""

    NAME, MEASURE = "vae-normalised-kl", "normalised-kl"


class VAEBernoulliKL(_VAERecipe):
    """KL divergence between image and reconstruction, pixels taken for Bernoulli probabilities."""

    NAME, MEASURE = "vae-bernoulli-kl", "bernoulli-kl"


class VAEError(_VAERecipe):
    """Mean squared error of reconstruction."""

    NAME, MEASURE = "vae-error", "error"


class ClassifierKL(_VAERecipe):
    """KL divergence from the classifier's answer for the image to the one for its reconstruction."""

    NAME, MEASURE = "classifier-kl", "classifier-kl"


class ClassifierJSD(_VAERecipe):
    """Jensen–Shannon divergence between the classifier's answers for image and reconstruction."""

    NAME, MEASURE = "classifier-jsd", "classifier-jsd"
