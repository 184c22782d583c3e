"""MagNet: autoencoders that hold an image against the training images, and repair it."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.budgets import Number
from workers.detectors.detector import Detector, DetectorRecipe, OnStep
from workers.detectors.vae import SCORES
from workers.models.magnet import MagNetAutoencoder
from workers.training.magnet import MagNetNetwork
from workers.training.networks import Network

__all__ = ["MagNet", "MagNetDetector"]

AT_ONCE = 500
"""Images in one pass of `MagNetDetector.fit`."""


class MagNetDetector(Detector):
    """Scores an image by how far it is from its reconstructions, and classifies a reconstruction in its place.

    The paper gives each of its detectors a threshold of its own, which rejects a small share of validation images,
    and rejects what any of them rejects. To be one number, the score is the largest of the detectors' values, each
    divided by that threshold: at a score of 1 the decision is the paper's, and another threshold moves all of them
    by the same factor.

    Args:
        classifier: what is guarded.
        first: autoencoder I, the reformer too. Its detector is the L2 norm of the reconstruction error.
        second: autoencoder II. Its detector is the L1 norm of the reconstruction error.
        temperatures: each adds a detector: the Jensen–Shannon divergence between the classifier's answers for the
            image and for its reconstruction by autoencoder I, logits divided by the temperature.
        rejected: share of training images above each detector's threshold.
    """

    repairs = True
    scales: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        first: MagNetAutoencoder,
        second: MagNetAutoencoder,
        temperatures: Sequence[float] = (),
        rejected: float = 0.001,
    ) -> None:
        super().__init__(classifier)
        self.first, self.second = first, second
        self.temperatures, self.rejected = tuple(temperatures), rejected
        self.register_buffer("scales", torch.ones(2 + len(self.temperatures)))

    def values(self, images: Tensor) -> Tensor:
        """What each detector says, ``[n, detectors]``: L2 of I, L1 of II, divergence at each temperature."""
        again = self.first(images)
        found = [
            torch.linalg.vector_norm((images - again).flatten(1), ord=2, dim=1),
            torch.linalg.vector_norm((images - self.second(images)).flatten(1), ord=1, dim=1),
        ]
        if self.temperatures:
            logits, other = self.classifier(images), self.classifier(again)
            found += [SCORES["classifier-jsd"](logits / t, other / t) for t in self.temperatures]
        return torch.stack(found, dim=1)

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return (self.values(images) / self.scales).amax(dim=1)

    def predict(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        logits: Tensor = self.classifier(self.first(images))
        return logits

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        found: Tensor = self.first(images)
        return found

    @torch.no_grad()
    def fit(self, images: Tensor, labels: Tensor, *, seed: int, on_step: OnStep) -> None:
        """Sets the detectors' thresholds; the paper's come of validation images, these of the training images.

        The autoencoders have some hundred weights: they do no better on what they were trained on.
        """
        found = []
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE].to(self.scales.device).float().div(255)
            found.append(self.values(part))
            on_step(start + len(part), len(images), "thresholds")
        quantiles = torch.quantile(torch.cat(found), 1 - self.rejected, dim=0)
        self.scales.copy_(quantiles.clamp(min=1e-12))  # a divergence may be zero for all


class MagNet(DetectorRecipe):
    """Reconstruction errors of two autoencoders, and the classifier's answer for a reconstruction.

    The paper's setting for MNIST; `temperatures` adds the detectors that it has for CIFAR-10 besides (10 and 40).
    """

    NAME: ClassVar[str] = "magnet"
    PAPER: ClassVar[str] = "Meng & Chen 2017"

    temperatures: tuple[Annotated[Number, Field(gt=0)], ...] = Field(
        (), description="Temperatures of detectors on the divergence of the classifier's answers; none on MNIST."
    )
    rejected: Number = Field(
        0.001, gt=0, lt=1, description="Share of training images above a detector's threshold, its unit in the score."
    )
    epochs: int = Field(15, ge=1, le=10_000, description="Of each autoencoder's training.")
    training_seed: int = Field(42, ge=0, lt=2**31, description="Of the autoencoders' training.")

    def networks(self) -> dict[str, Network]:
        return {
            "first": MagNetNetwork(autoencoder="I", epochs=self.epochs, seed=self.training_seed),
            "second": MagNetNetwork(autoencoder="II", epochs=self.epochs, seed=self.training_seed),
        }

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> MagNetDetector:
        first, second = MagNetAutoencoder(shape[0], "I"), MagNetAutoencoder(shape[0], "II")
        return MagNetDetector(classifier, first, second, self.temperatures, self.rejected)
