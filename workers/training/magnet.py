"""The training of MagNet's autoencoders."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.budgets import Amount, Number
from workers.models.magnet import MagNetAutoencoder
from workers.training.networks import OneLossNetwork

__all__ = ["MagNetNetwork"]


class MagNetNetwork(OneLossNetwork):
    """An autoencoder of MagNet: Adam on the mean squared error between the image and what is made of a noisy one.

    Gaussian noise is added to the input, which is then clamped to [0, 1]; it is drawn anew at every step.
    """

    NAME: ClassVar[str] = "magnet"

    autoencoder: Literal["I", "II"] = Field("I", description="Autoencoder I or II of the paper's Table 1 for MNIST.")
    noise: Amount = Field(0.1, ge=0, le=1, description="Standard deviation of the noise, on pixels in [0, 1].")
    batch_size: int = Field(256, ge=1, description="Images a step; an incomplete last batch is left out.")
    learning_rate: Number = Field(1e-2, gt=0, le=1, description="Of the optimizer.")

    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        return MagNetAutoencoder(shape[0], self.autoencoder)

    def optimizers(self, model: nn.Module) -> Sequence[torch.optim.Optimizer]:
        return [torch.optim.Adam(model.parameters(), lr=self.learning_rate)]

    def loss(self, model: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
        noisy = (images + self.noise * torch.randn(images.shape, generator=generator)).clamp_(0, 1)
        return nn.functional.mse_loss(model(noisy), images)
