"""The convolutional variational autoencoder of the Keras example that the seed names."""

import torch
from torch import Tensor, nn

__all__ = ["VAE"]


class VAE(nn.Module):
    """Encoder and decoder with a Gaussian code (Kingma & Welling, 2014).

    Encoder: convolutions of 32 and 64 filters (3×3, stride 2), a linear layer of 16, a ReLU after each, then mean and
    log-variance of the code. Decoder: a linear layer, transposed convolutions of 64 and 32 filters (3×3, stride 2),
    a ReLU after each, and one back to the image's channels. Glorot-uniform weights, zero biases. Sides that are no
    multiple of 4 are decoded larger and cut.

    Args:
        channels, height, width: the image's shape.
        code_size: numbers in the code.
    """

    def __init__(self, channels: int = 1, height: int = 28, width: int = 28, code_size: int = 2) -> None:
        super().__init__()
        if code_size < 1:
            raise ValueError(f"the code needs a number at least, got {code_size}")
        self.size, self.code_size = (height, width), code_size
        self.least = (-(-height // 4), -(-width // 4))
        smallest = 64 * self.least[0] * self.least[1]
        self.conv1 = nn.Conv2d(channels, 32, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.hidden = nn.Linear(smallest, 16)
        self.code_mean = nn.Linear(16, code_size)
        self.code_log_variance = nn.Linear(16, code_size)
        self.spread = nn.Linear(code_size, smallest)
        self.up1 = nn.ConvTranspose2d(64, 64, 3, stride=2, padding=1, output_padding=1)
        self.up2 = nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.ConvTranspose2d(32, channels, 3, padding=1)
        for layer in self.children():
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``[n, code_size]`` of the codes of float images ``[n, C, H, W]`` in [0, 1]."""
        hidden = torch.relu(self.conv2(torch.relu(self.conv1(images))))
        hidden = torch.relu(self.hidden(hidden.flatten(1)))
        return self.code_mean(hidden), self.code_log_variance(hidden)

    def decode_logits(self, codes: Tensor) -> Tensor:
        """Log-odds ``[n, C, H, W]`` of the pixels that codes ``[n, code_size]`` stand for."""
        hidden = torch.relu(self.spread(codes)).view(-1, 64, *self.least)
        hidden = torch.relu(self.up2(torch.relu(self.up1(hidden))))
        return self.last(hidden)[:, :, : self.size[0], : self.size[1]]

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Reconstructions in [0, 1] of images ``[n, C, H, W]``, codes sampled with noise ``[n, code_size]``."""
        mean, log_variance = self.encode(images)
        return self.decode_logits(mean + noise * (log_variance / 2).exp()).sigmoid()

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence lower bound of each image in nats, ``[n]``: Bernoulli pixels and KL of the code."""
        mean, log_variance = self.encode(images)
        odds = self.decode_logits(mean + noise * (log_variance / 2).exp())
        pixels = nn.functional.binary_cross_entropy_with_logits(odds, images, reduction="none").flatten(1).sum(dim=1)
        return pixels + (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
