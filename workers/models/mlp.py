"""A multilayer perceptron."""

import math

import torch
from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """Two hidden layers with ReLU over the pixels, and a linear layer to the logits; it knows nothing of neighbours.

    Args:
        channels, height, width: the image's shape.
        classes: the number of logits.
        hidden: units of each hidden layer.
    """

    def __init__(
        self, channels: int = 1, height: int = 28, width: int = 28, classes: int = 10, hidden: int = 200
    ) -> None:
        super().__init__()
        self.first = nn.Linear(math.prod((channels, height, width)), hidden)
        self.second = nn.Linear(hidden, hidden)
        self.linear = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of float images ``[n, C, H, W]`` in [0, 1]."""
        hidden = torch.relu(self.first(images.flatten(1)))
        logits: Tensor = self.linear(torch.relu(self.second(hidden)))
        return logits
