"""The training of a generative adversarial network, as `train_network` runs it."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.budgets import Number
from workers.models.gan import GAN
from workers.training.networks import Network

__all__ = ["GANNetwork"]


class GANNetwork(Network):
    """A Wasserstein GAN with gradient penalty (Gulrajani et al., 2017, Algorithm 1): Adam, β = (0, 0.9).

    A step trains the critic on one part of its batch after another, then the generator once. Its loss is the distance
    of Wasserstein between real and generated images as the critic estimates it, which falls as the generator learns.
    """

    NAME: ClassVar[str] = "gan"

    epochs: int = Field(20, ge=1, le=10_000, description="Passes over the training images.")
    batch_size: int = Field(192, ge=1, description="Images a step, shared among the critic's updates.")
    learning_rate: Number = Field(5e-4, gt=0, le=1, description="Of both optimizers.")
    code_size: int = Field(64, ge=1, le=1024, description="Numbers in a code.")
    filters: int = Field(16, ge=1, le=1024, description="Of the critic's first layer; all others follow from it.")
    critic_updates: int = Field(3, ge=1, le=100, description="Updates of the critic for one of the generator.")
    penalty: Number = Field(10.0, ge=0, le=1e6, description="λ, the weight of the gradient penalty.")

    def build(self, shape: tuple[int, int, int]) -> nn.Module:
        return GAN(*shape, code_size=self.code_size, filters=self.filters)

    def optimizers(self, model: nn.Module) -> Sequence[torch.optim.Optimizer]:
        assert isinstance(model, GAN)
        return [
            torch.optim.Adam(part.parameters(), lr=self.learning_rate, betas=(0.0, 0.9))
            for part in (model.generator, model.critic)
        ]

    def step(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        images: Tensor,
        generator: torch.Generator,
    ) -> float:
        assert isinstance(model, GAN)
        of_generator, of_critic = optimizers
        parts, distances = torch.chunk(images, self.critic_updates), []
        for real in parts:
            codes = torch.randn(len(real), self.code_size, generator=generator)
            mix = torch.rand(len(real), 1, 1, 1, generator=generator)
            loss, distance = model.critic_loss(real, codes, mix, self.penalty)
            of_critic.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            of_critic.step()
            distances.append(distance)
        codes = torch.randn(len(parts[0]), self.code_size, generator=generator)
        of_generator.zero_grad()
        (-model.critic(model(codes)).mean()).backward()
        of_generator.step()
        return float(torch.stack(distances).mean())
