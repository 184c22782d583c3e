"""The seed's convolutional network."""

import torch
from torch import Tensor, nn

__all__ = ["CNN"]


class CNN(nn.Module):
    """Three convolutions with ReLU and one linear layer, for any image of at least 7×7.

    Convolution of 16 filters (3×3, stride 1, zero padding that keeps the size), of 32 and of 64 filters
    (3×3, stride 2, no padding), a ReLU after each, then a linear layer to the logits. Glorot-uniform
    weights (Glorot & Bengio, 2010, Eq. 16), zero biases.

    Args:
        channels, height, width: the image's shape.
        classes: the number of logits.
    """

    def __init__(self, channels: int = 1, height: int = 28, width: int = 28, classes: int = 10) -> None:
        super().__init__()
        if min(height, width) < 7:
            raise ValueError(f"the CNN needs images of at least 7×7, got {height}×{width}")
        side = [((side - 1) // 2 - 1) // 2 for side in (height, width)]
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2)
        self.conv3 = nn.Conv2d(32, 64, 3, stride=2)
        self.linear = nn.Linear(64 * side[0] * side[1], classes)
        for layer in (self.conv1, self.conv2, self.conv3, self.linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of float images ``[n, C, H, W]`` in [0, 1]."""
        hidden = torch.relu(self.conv1(images))
        hidden = torch.relu(self.conv2(hidden))
        hidden = torch.relu(self.conv3(hidden))
        return self.linear(hidden.flatten(1))
