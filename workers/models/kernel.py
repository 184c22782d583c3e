"""A kernel machine: a linear classifier over an image's likeness to some others."""

import math

import torch
from torch import Tensor, nn

__all__ = ["KernelMachine"]


class KernelMachine(nn.Module):
    """Logits linear in exp(−γ·‖x − c_j‖²), c_j being images that it keeps; made by `workers.training.kernel`.

    Args:
        channels, height, width: the image's shape.
        classes: the number of logits.
        centres: how many images it keeps.
    """

    centres: Tensor
    gamma: Tensor

    def __init__(
        self, channels: int = 1, height: int = 28, width: int = 28, classes: int = 10, centres: int = 500
    ) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(centres, math.prod((channels, height, width))))
        self.register_buffer("gamma", torch.ones(()))
        self.linear = nn.Linear(centres, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of float images ``[n, C, H, W]`` in [0, 1]."""
        flat = images.flatten(1)
        apart = flat.square().sum(dim=1, keepdim=True) - 2 * flat @ self.centres.T + self.centres.square().sum(dim=1)
        logits: Tensor = self.linear(torch.exp(-self.gamma * apart))
        return logits
