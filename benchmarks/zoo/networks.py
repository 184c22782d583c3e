"""Architectures that brittle does not have, for MNIST's images: float ``[n, 1, 28, 28]`` to logits ``[n, 10]``."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Trees"]


def convolutional(
    widths: Sequence[int] = (8, 16),
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    first: Callable[[], nn.Module] | None = None,
    normalised: bool = False,
    pooling: Callable[[int], nn.Module] = nn.MaxPool2d,
    dropout: float = 0.0,
    encoding: nn.Module | None = None,
    channels: int = 1,
) -> nn.Sequential:
    """A convolution, an activation and a pooling to half the side for each width; then a linear layer.

    Args:
        widths: filters of each convolution.
        activation: after each, but for the first where that has one of its own.
        first: the activation after the first convolution.
        normalised: batch normalisation before each activation.
        pooling: given the side of its window.
        dropout: share of the last features that is dropped in training.
        encoding: what the image goes through before.
        channels: after the encoding.
    """
    layers = [] if encoding is None else [encoding]
    side = 28
    for number, width in enumerate(widths):
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] * normalised
        layers += [first() if first and not number else activation(), pooling(2)]
        channels, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * side * side, 10))


class Residual(nn.Module):
    """Adds what its layers make of an activation to it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)


def residual(width: int = 8) -> nn.Sequential:
    """Two residual blocks behind a strided convolution."""

    def block() -> nn.Module:
        return Residual(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    start = [nn.Conv2d(1, width, 5, stride=2, padding=2), nn.ReLU()]
    return nn.Sequential(*start, block(), nn.ReLU(), block(), nn.ReLU(), nn.Flatten(), nn.Linear(width * 14 * 14, 10))


class KWinners(nn.Module):
    """Keeps the largest activations of an image and sets the others to 0 (Xiao, Zhong & Zheng, 2020).

    Args:
        share: of the activations that are kept.
    """

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(1)
        smallest = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= smallest)).view_as(hidden)


class Step(nn.Module):
    """1 above 0, else 0; learned with the derivative of a clamp, and without a derivative once trained."""

    def forward(self, hidden: Tensor) -> Tensor:
        step = (hidden > 0).to(hidden.dtype)
        if not self.training:
            return step
        slope = (hidden + 0.5).clamp(0, 1)
        return slope + (step - slope).detach()


class Thermometer(nn.Module):
    """A channel for each threshold that a pixel may exceed (Buckman, Roy, Raffel & Goodfellow, 2018).

    Args:
        thresholds: in [0, 1).
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        super().__init__()
        self.thresholds = thresholds

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([(images > threshold).to(images.dtype) for threshold in self.thresholds], dim=1)


class Trees(nn.Module):
    """Decision trees that vote with the shares of the classes in their leaves, computed by numpy: no derivative.

    Args:
        feature: int64 ``[trees, nodes]``, the pixel that a node looks at.
        threshold: float32, likewise; a pixel that is at most this goes left.
        left, right: int64, likewise, the node that follows; a leaf follows itself.
        value: float32 ``[trees, nodes, 10]``, in [0, 1].
        depth: of the deepest leaf, int64 ``[1]``.
    """

    def __init__(self, **tables: Tensor) -> None:
        super().__init__()
        for name, table in tables.items():
            self.register_buffer(name, table)

    def forward(self, images: Tensor) -> Tensor:
        names = ("feature", "threshold", "left", "right", "value")
        feature, threshold, left, right, value = (getattr(self, name).numpy() for name in names)
        pixels = images.detach().flatten(1).numpy()
        votes = 0
        for tree in range(len(feature)):
            node = torch.zeros(len(pixels), dtype=torch.int64).numpy()
            for _ in range(int(self.depth)):  # type: ignore[arg-type]
                seen = pixels[range(len(pixels)), feature[tree, node]]
                node = (seen <= threshold[tree, node]).choose([right[tree, node], left[tree, node]])
            votes = votes + value[tree, node]
        return torch.from_numpy(votes / len(feature))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "average-pool": lambda: convolutional(pooling=nn.AvgPool2d),
    "batch-norm": lambda: convolutional(normalised=True),
    "binary": lambda: convolutional(encoding=Thermometer([0.5])),
    "dropout": lambda: convolutional(dropout=0.5),
    "gelu": lambda: convolutional(activation=nn.GELU),
    "k-winners": lambda: convolutional(activation=KWinners),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    "max-pool": convolutional,
    "narrow": lambda: convolutional((3, 6)),
    "one-hidden-layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10)),
    "residual": residual,
    "sigmoid": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 200), nn.Sigmoid(), nn.Linear(200, 10)),
    "step": lambda: convolutional(first=Step),
    "tanh": lambda: convolutional(activation=nn.Tanh),
    "thermometer": lambda: convolutional(encoding=Thermometer([i / 10 for i in range(10)]), channels=10),
    "wide": lambda: convolutional((24, 32)),
}
"""By name, each with random weights drawn from torch's own stream."""
