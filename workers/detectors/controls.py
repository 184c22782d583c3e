"""Controls: what a detector has to be better than."""

from typing import ClassVar

from torch import Tensor, nn

from workers.detectors.detector import Detector, DetectorRecipe
from workers.detectors.feature_squeezing import median_filter

__all__ = [
    "MaxSoftmax",
    "MaxSoftmaxDetector",
    "MedianFilter",
    "MedianFilterDetector",
    "RandomScore",
    "RandomScoreDetector",
]


class RandomScoreDetector(Detector):
    """Scores an image by a draw, whatever it shows."""

    noise = (1,)
    differentiable = False

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        return noise[:, 0]


class MedianFilterDetector(Detector):
    """Scores an image by its mean absolute difference from itself under a 3×3 median filter."""

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return (images - self.reconstruct(images)).abs().flatten(1).mean(dim=1)

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return median_filter(images, 3)


class MaxSoftmaxDetector(Detector):
    """Scores an image by the log-odds against the classifier's prediction, log((1 − p)/p), p its probability.

    The order of 1 − p, so that every rate is the same, without its rounding: in float32 1 − p is 0 for most clean
    images, without an order among them and without a gradient.
    """

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        logits = self.classifier(images).sort(dim=1, descending=True).values
        return logits[:, 1:].logsumexp(dim=1) - logits[:, 0]


class RandomScore(DetectorRecipe):
    """A standard normal draw: no detector at all, its area under the curve is a half."""

    NAME: ClassVar[str] = "random"

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> RandomScoreDetector:
        return RandomScoreDetector(classifier)


class MedianFilter(DetectorRecipe):
    """Distance of the image from itself under a 3×3 median filter: how rough it is, knowing no training image."""

    NAME: ClassVar[str] = "median-filter"

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> MedianFilterDetector:
        return MedianFilterDetector(classifier)


class MaxSoftmax(DetectorRecipe):
    """How unsure the classifier is of its own prediction (the baseline of Hendrycks & Gimpel, 2017)."""

    NAME: ClassVar[str] = "max-softmax"

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> MaxSoftmaxDetector:
        return MaxSoftmaxDetector(classifier)
