"""The small denoising autoencoders of MagNet."""

from typing import Literal

from torch import Tensor, nn

__all__ = ["MagNetAutoencoder"]


class MagNetAutoencoder(nn.Module):
    """An autoencoder of MagNet's Table 1 for MNIST (Meng & Chen, 2017): 3×3 convolutions, a sigmoid after each.

    I: 3 filters, 2×2 average pooling, 3 filters; 3 filters, upsampling by 2, 3 filters; the image's channels.
    II: 3 filters; 3 filters; the image's channels. Glorot-uniform weights, zero biases. An odd side is pooled over
    what is there, upsampled larger and cut.

    Args:
        channels: of the images; they may be of any size.
        autoencoder: which of the two.
    """

    def __init__(self, channels: int, autoencoder: Literal["I", "II"]) -> None:
        super().__init__()
        pooled = autoencoder == "I"
        self.encoder = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.Sigmoid())
        self.decoder = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid())
        if pooled:
            self.encoder.extend([nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid()])
            self.decoder.extend([nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid()])
        self.decoder.extend([nn.Conv2d(3, channels, 3, padding=1), nn.Sigmoid()])
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Reconstructions in [0, 1] of float images ``[n, C, H, W]`` in [0, 1]."""
        decoded: Tensor = self.decoder(self.encoder(images))
        return decoded[:, :, : images.shape[2], : images.shape[3]]
