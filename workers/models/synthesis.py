"""Analysis by synthesis: a class is as likely as the best image that its own generator makes of what is seen."""

import torch
from torch import Tensor, nn

__all__ = ["SynthesisClassifier"]

STEP = 0.2
"""Length of a first step in the space of codes, whose prior has a standard deviation of 1; steps shorten to 0."""


class SynthesisClassifier(nn.Module):
    """A variational autoencoder for each class; an image's logits are how well each explains it.

    Encoder: a linear layer of `hidden`, an ELU, mean and log-variance of a Gaussian code. Decoder: a linear layer of
    `hidden`, an ELU, a linear layer and a sigmoid to the pixels, which are Gaussian around it with standard deviation
    `spread`. The layers of all classes are kept together, ``[classes, in, out]``.

    The logit of a class is max_z log p(x|z) − ‖z‖²/2, less what is the same for all classes. The maximum is searched
    from the better of the encoder's mean and the best of some fixed codes, by gradient steps of shrinking length; the
    best code met counts. Its derivative by the image is that of the image alone, the code held: the code is where the
    derivative by the code is (nearly) 0.

    Args:
        channels, height, width: the image's shape.
        classes: the number of logits.
        hidden: width of the hidden layers.
        code_size: numbers in a code.
        spread: standard deviation of a pixel.
        starts: fixed codes, drawn from the prior.
        steps: gradient steps of the search.
    """

    def __init__(
        self,
        channels: int = 1,
        height: int = 28,
        width: int = 28,
        classes: int = 10,
        hidden: int = 200,
        code_size: int = 8,
        spread: float = 0.3,
        starts: int = 100,
        steps: int = 10,
    ) -> None:
        super().__init__()
        self.shape, self.code_size, self.spread, self.steps = (channels, height, width), code_size, spread, steps
        pixels = channels * height * width

        def layer(inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
            weight = torch.empty(classes, inputs, outputs)
            nn.init.uniform_(weight, -((6 / (inputs + outputs)) ** 0.5), (6 / (inputs + outputs)) ** 0.5)
            return nn.Parameter(weight), nn.Parameter(torch.zeros(classes, 1, outputs))

        self.encode_weight, self.encode_bias = layer(pixels, hidden)
        self.code_weight, self.code_bias = layer(hidden, 2 * code_size)
        self.spread_weight, self.spread_bias = layer(code_size, hidden)
        self.decode_weight, self.decode_bias = layer(hidden, pixels)
        self.register_buffer("starts", torch.randn(starts, code_size))

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """Weights and biases, the encoder's four first: of all classes, each ``[classes, …]``."""
        return tuple(self.parameters())

    def encode(self, images: Tensor, layers: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``[classes, n, code_size]`` of images ``[1, n, pixels]``.

        Without the first axis, given the layers of one class.
        """
        weight, bias, code_weight, code_bias = (layers or self.layers)[:4]
        hidden = nn.functional.elu(images @ weight + bias)
        mean, log_variance = (hidden @ code_weight + code_bias).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, codes: Tensor, layers: tuple[Tensor, ...] | None = None) -> Tensor:
        """Images ``[classes, n, pixels]`` in [0, 1] of codes ``[classes, n, code_size]``; layers as of `encode`."""
        spread_weight, spread_bias, weight, bias = (layers or self.layers)[4:]
        hidden = nn.functional.elu(codes @ spread_weight + spread_bias)
        return (hidden @ weight + bias).sigmoid()

    def energy(self, images: Tensor, codes: Tensor) -> Tensor:
        """−log p(x|z) − log p(z), less constants, ``[classes, n]``, of images ``[1, n, pixels]`` and codes."""
        apart = (images - self.decode(codes)).square().sum(dim=2)
        return apart / (2 * self.spread**2) + codes.square().sum(dim=2) / 2

    def codes(self, images: Tensor) -> Tensor:
        """The codes that explain images ``[1, n, pixels]`` best, ``[classes, n, code_size]``, without a history."""
        images = images.detach()
        with torch.no_grad():
            mean = self.encode(images)[0]
            fixed = self.starts.expand(len(mean), -1, -1)  # type: ignore[operator]
            made = self.decode(fixed)
            apart = images.square().sum(dim=2)[:, :, None] - 2 * images @ made.mT + made.square().sum(dim=2)[:, None]
            cost = apart / (2 * self.spread**2) + fixed.square().sum(dim=2)[:, None] / 2
            nearest = fixed.gather(1, cost.argmin(dim=2)[:, :, None].expand(-1, -1, self.code_size))
            best, codes = self.energy(images, mean), mean.clone()
            other = self.energy(images, nearest)
            codes = torch.where((other < best)[:, :, None], nearest, mean)
            best = torch.minimum(other, best)
        found = codes
        for step in range(self.steps):
            with torch.enable_grad():
                moving = codes.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(self.energy(images, moving).sum(), moving)
            with torch.no_grad():
                length = gradient.norm(dim=2, keepdim=True).clamp(min=1e-12)
                codes = codes - STEP * (1 - step / self.steps) * gradient / length
                cost = self.energy(images, codes)
                found = torch.where((cost < best)[:, :, None], codes, found)
                best = torch.minimum(cost, best)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of float images ``[n, C, H, W]`` in [0, 1]."""
        flat = images.flatten(1)[None]
        return -self.energy(flat, self.codes(flat)).T.contiguous()

    def loss(self, images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence lower bound of each image under its own class's autoencoder, less constants, ``[n]``.

        Args:
            images: float ``[n, C, H, W]`` in [0, 1].
            labels: int64 ``[n]``.
            noise: standard normal ``[n, code_size]``.
        """
        losses = images.new_zeros(len(images))
        for number, own in enumerate(zip(*(part.unbind() for part in self.layers), strict=True)):
            rows = (labels == number).nonzero()[:, 0]
            seen = images[rows].flatten(1)
            mean, log_variance = self.encode(seen, own)
            made = self.decode(mean + noise[rows] * (log_variance / 2).exp(), own)
            divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2
            apart = (seen - made).square().sum(dim=1)
            losses = losses.index_copy(0, rows, apart / (2 * self.spread**2) + divergence)
        return losses
