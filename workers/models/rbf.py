"""A network of radial basis functions behind the CNN."""

import torch
from torch import Tensor, nn

from workers.models.cnn import CNN

__all__ = ["RBFNetwork"]


class RBFNetwork(nn.Module):
    """Gaussian units over the CNN's class probabilities, and a linear layer without bias to the logits.

    Unit j answers exp(−β_j·‖p − c_j‖²); its centre c_j is drawn uniformly from [0, 1], its β_j is the same for all at
    first, and both are learned.

    Args:
        channels, height, width: the image's shape.
        classes: the number of logits.
        units: Gaussian units.
        beta: β_j at first.
    """

    def __init__(
        self,
        channels: int = 1,
        height: int = 28,
        width: int = 28,
        classes: int = 10,
        units: int = 300,
        beta: float = 2.0,
    ) -> None:
        super().__init__()
        self.base = CNN(channels, height, width, classes)
        self.centres = nn.Parameter(torch.rand(units, classes))
        self.betas = nn.Parameter(torch.full((units,), beta))
        self.linear = nn.Linear(units, classes, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)

    def units(self, images: Tensor) -> Tensor:
        """Answers of the units, ``[n, units]`` in (0, 1] while no β is below 0, to float images ``[n, C, H, W]``."""
        probabilities = self.base(images).softmax(dim=1)
        apart = (probabilities[:, None, :] - self.centres).square().sum(dim=2)
        return torch.exp(-self.betas * apart)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of float images ``[n, C, H, W]`` in [0, 1]."""
        logits: Tensor = self.linear(self.units(images))
        return logits
