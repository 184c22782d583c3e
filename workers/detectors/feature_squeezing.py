"""Feature squeezing: how much the classifier's answer changes when detail is taken out of the image."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.detectors.detector import Detector, DetectorRecipe

__all__ = ["FeatureSqueezing", "FeatureSqueezingDetector", "median_filter", "reduce_depth"]


def reduce_depth(images: Tensor, bits: int) -> Tensor:
    """Images in [0, 1] rounded to the nearest of 2^bits levels; the gradient passes straight through the rounding."""
    return _Rounded.apply(images, 2**bits - 1)  # type: ignore[no-untyped-call]


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, steps: int) -> Tensor:
        return images.mul(steps).round_().div_(steps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def median_filter(images: Tensor, side: int) -> Tensor:
    """Each pixel of ``[n, C, H, W]`` replaced by the median of the side×side window around it, channel by channel.

    As scipy.ndimage.median_filter: images continue by reflection about their edges; the window of an even side
    begins side/2 before the pixel, and the median of an even number of values is the upper of the middle two. The
    gradient goes to the pixel that is the median.
    """
    for dimension in (2, 3):
        size = images.shape[dimension]
        place = torch.arange(-(side // 2), size + (side - 1) // 2, device=images.device) % (2 * size)
        images = images.index_select(dimension, torch.where(place < size, place, 2 * size - 1 - place))
    windows = images.unfold(2, side, 1).unfold(3, side, 1).flatten(4)
    return windows.kthvalue(side * side // 2 + 1, dim=4).values


class FeatureSqueezingDetector(Detector):
    """Scores an image by the largest L1 distance from its softmax outputs to those of its squeezed forms, 0 to 2.

    Args:
        classifier: what is guarded.
        bits: of the form with fewer levels.
        window: side of the median filter's window.
    """

    def __init__(self, classifier: nn.Module, bits: int, window: int) -> None:
        super().__init__(classifier)
        self.bits, self.window = bits, window

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        squeezed = (reduce_depth(images, self.bits), median_filter(images, self.window))
        own, *others = (self.classifier(form).softmax(dim=1) for form in (images, *squeezed))
        return torch.stack([(own - other).abs().sum(dim=1) for other in others]).amax(dim=0)


class FeatureSqueezing(DetectorRecipe):
    """Change of the classifier's answer under fewer levels of grey and a median filter.

    As it stands the paper's joint detector for MNIST. For CIFAR-10 the paper takes 5 bits and adds smoothing by
    non-local means, which is left out here.
    """

    NAME: ClassVar[str] = "feature-squeezing"
    PAPER: ClassVar[str] = "Xu, Evans & Qi 2018"

    bits: int = Field(1, ge=1, le=7, description="Bits of a channel that are left.")
    window: int = Field(2, ge=2, le=9, description="Side of the median filter's window.")

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> FeatureSqueezingDetector:
        return FeatureSqueezingDetector(classifier, self.bits, self.window)
