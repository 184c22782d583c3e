"""A small generative adversarial network of images."""

import torch
from torch import Tensor, nn

__all__ = ["GAN"]


class GAN(nn.Module):
    """A generator of images and a critic that tells them from real ones (Goodfellow et al., 2014).

    Generator: a linear layer to 4·width maps of a quarter of the image's sides, transposed convolutions to 2·width and
    to the image's channels (4×4, stride 2), ReLUs between, a sigmoid. Critic: convolutions of width, 2·width and
    4·width filters (5×5, stride 2), leaky ReLUs of slope 0.2, a linear layer to one number. Neither normalises over a
    batch, so that an image depends on its own code alone. Sides that are no multiple of 4 are generated larger and cut.

    Args:
        channels, height, width: the image's shape.
        code_size: numbers in a code, standard normal.
        filters: of the critic's first layer.
    """

    def __init__(
        self, channels: int = 1, height: int = 28, width: int = 28, code_size: int = 64, filters: int = 16
    ) -> None:
        super().__init__()
        if min(code_size, filters) < 1:
            raise ValueError(f"code size and filters must be at least 1, got {code_size} and {filters}")
        self.size, self.code_size = (height, width), code_size
        least = (-(-height // 4), -(-width // 4))
        self.generator = nn.Sequential(
            nn.Linear(code_size, 4 * filters * least[0] * least[1]),
            nn.ReLU(),
            nn.Unflatten(1, (4 * filters, *least)),
            nn.ConvTranspose2d(4 * filters, 2 * filters, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * filters, channels, 4, stride=2, padding=1),
        )
        smallest = 4 * filters * -(-height // 8) * -(-width // 8)
        self.critic = nn.Sequential(
            nn.Conv2d(channels, filters, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(filters, 2 * filters, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * filters, 4 * filters, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(smallest, 1),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Images ``[n, C, H, W]`` in [0, 1] of codes ``[n, code_size]``."""
        images: Tensor = self.generator(codes)
        return images[:, :, : self.size[0], : self.size[1]].sigmoid()

    def critic_loss(self, real: Tensor, codes: Tensor, mix: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
        """What the critic lowers, and the distance of Wasserstein that it estimates (Gulrajani et al., 2017, Alg. 1).

        Args:
            real: images ``[n, C, H, W]``.
            codes: of as many generated ones, ``[n, code_size]``.
            mix: uniform in [0, 1], ``[n, 1, 1, 1]``: where between the two the gradient's norm is held at 1.
            penalty: the weight λ of that.
        """
        with torch.no_grad():
            made = self(codes)
        between = (mix * real + (1 - mix) * made).requires_grad_(True)
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        distance = self.critic(real).mean() - self.critic(made).mean()
        steep = (slope.flatten(1).square().sum(dim=1) + 1e-12).sqrt()  # a root has no gradient at 0
        return penalty * (steep - 1).square().mean() - distance, distance.detach()
