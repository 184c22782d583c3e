"""The CNN with a NULL class, and what it is once trained: a classifier that rejects."""

import torch
from torch import Tensor, nn

from workers.detectors.detector import Detector
from workers.detectors.guarded import Guarded
from workers.models.cnn import CNN

__all__ = ["NullCNN", "NullDetector", "rejecting"]


class NullCNN(CNN):
    """The seed's CNN with a logit for NULL behind those of the classes, ``[n, classes + 1]``; arguments as of `CNN`."""

    def __init__(self, channels: int = 1, height: int = 28, width: int = 28, classes: int = 10) -> None:
        super().__init__(channels, height, width, classes + 1)
        self.classes = classes


class _Classes(nn.Module):
    """The logits of the classes, ``[n, K]``, of a network that has one for NULL behind them."""

    def __init__(self, network: NullCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits[:, :-1].contiguous()


class NullDetector(Detector):
    """Scores an image by NULL's lead, its logit less the highest of the classes: above 0, NULL is predicted."""

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        logits = self.classifier.network(images)  # type: ignore[operator]
        return logits[:, -1] - logits[:, :-1].amax(dim=1)


def rejecting(network: NullCNN) -> Guarded:
    """A trained network as a classifier behind a detector that flags what is predicted as NULL.

    So an attack succeeds on an image that is misclassified *and* not rejected, and every search knows of the rejection.
    The guides of a search that matches features are one-hot logits: no clean image is at hand here.
    """
    classifier = _Classes(network)
    guides = 10 * torch.eye(network.classes)
    return Guarded(classifier, NullDetector(classifier), threshold=0.0, scale=1.0, guides=guides)
