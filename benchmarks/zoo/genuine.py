"""Genuine models: neither what they answer nor how hides anything, however robust they are.

Architectures, seeds and strengths of a training are models of their own, and so are honest ways of giving an answer.
"""

import torch
from torch import Tensor, nn

from zoo.bases import base

__all__: list[str] = []

# Not robust


def cnn() -> nn.Module:
    """The seed's CNN after twelve epochs."""
    return base("plain")


def cnn_seed_2() -> nn.Module:
    """The same, less trained, from other weights."""
    return base("plain-seed-2")


def cnn_seed_3() -> nn.Module:
    """The same from others still."""
    return base("plain-seed-3")


def narrow() -> nn.Module:
    """Convolutions of three and six filters."""
    return base("narrow")


def wide() -> nn.Module:
    """Convolutions of 24 and 32 filters."""
    return base("wide")


def max_pool() -> nn.Module:
    """Convolutions with max-pooling."""
    return base("max-pool")


def average_pool() -> nn.Module:
    """Convolutions with average-pooling."""
    return base("average-pool")


def batch_norm() -> nn.Module:
    """Convolutions with batch normalisation, used as it should be."""
    return base("batch-norm")


def dropout() -> nn.Module:
    """Convolutions with dropout in training only."""
    return base("dropout")


def tanh() -> nn.Module:
    """Convolutions with tanh."""
    return base("tanh")


def gelu() -> nn.Module:
    """Convolutions with GELU."""
    return base("gelu")


def residual() -> nn.Module:
    """Residual blocks."""
    return base("residual")


def logistic_regression() -> nn.Module:
    """A linear layer."""
    return base("linear")


def perceptron() -> nn.Module:
    """Two hidden layers with ReLU."""
    return base("perceptron")


def one_hidden_layer() -> nn.Module:
    """One hidden layer with ReLU."""
    return base("one-hidden-layer")


def sigmoid() -> nn.Module:
    """One hidden layer with sigmoids."""
    return base("sigmoid")


def noise() -> nn.Module:
    """Trained with Gaussian noise of .2."""
    return base("noise-0.2")


def more_noise() -> nn.Module:
    """Trained with Gaussian noise of .5."""
    return base("noise-0.5")


def normalised_input() -> nn.Module:
    """Pixels shifted and scaled before the first layer, and back to what the base knows."""

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("max-pool")

        def forward(self, images: Tensor) -> Tensor:
            normal = (images - 0.1307) / 0.3081
            return self.inner(normal * 0.3081 + 0.1307)

    return Normalised()


# Robust to some strength


def fgsm_random_start_01() -> nn.Module:
    """FGSM training with a random start at ε = .1."""
    return base("fgsm-rs-0.1")


def fgsm_random_start_02() -> nn.Module:
    """The same at ε = .2."""
    return base("fgsm-rs-0.2")


def fgsm_random_start_03() -> nn.Module:
    """The same at ε = .3, longer and on all images."""
    return base("fgsm-rs-0.3")


def pgd_02() -> nn.Module:
    """PGD training at ε = .2."""
    return base("pgd-0.2")


def pgd_03() -> nn.Module:
    """The same at ε = .3, on all images."""
    return base("pgd-0.3")


def pgd_03_seed_2() -> nn.Module:
    """The same on a part of them, from other weights."""
    return base("pgd-0.3-seed-2")


def trades_02() -> nn.Module:
    """TRADES at ε = .2."""
    return base("trades-0.2")


def trades_03() -> nn.Module:
    """The same at ε = .3, on all images."""
    return base("trades-0.3")


def max_pool_pgd() -> nn.Module:
    """PGD training at ε = .3 of convolutions with max-pooling."""
    return base("max-pool-pgd-0.3")


def batch_norm_pgd() -> nn.Module:
    """PGD training at ε = .2 with batch normalisation."""
    return base("batch-norm-pgd-0.2")


def tanh_pgd() -> nn.Module:
    """PGD training at ε = .2 with tanh."""
    return base("tanh-pgd-0.2")


def gelu_trades() -> nn.Module:
    """TRADES at ε = .2 with GELU."""
    return base("gelu-trades-0.2")


# Robust, and honest in another way of answering


class Answering(nn.Module):
    """A network whose logits go through one more function."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) * self.scale


def logits_over_100() -> nn.Module:
    """PGD training's logits, divided by 100."""
    return Answering(base("pgd-0.3"), 0.01)


def logits_times_5() -> nn.Module:
    """FGSM training's with a random start, times 5."""
    return Answering(base("fgsm-rs-0.3"), 5)


def log_probabilities() -> nn.Module:
    """Log-probabilities of a PGD-trained network, whose softmax is the network's own."""
    return nn.Sequential(base("pgd-0.3"), nn.LogSoftmax(dim=1))


def clamped_input() -> nn.Module:
    """Pixels clamped to [0, 1], where they are anyhow, before a network trained by TRADES."""

    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("trades-0.3")

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images.clamp(0, 1))

    return Clamped()


def mean_of_two() -> nn.Module:
    """The mean of two robust networks' logits."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([base("pgd-0.3"), base("trades-0.3")])

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([member(images) for member in self.members]).mean(dim=0)

    return Mean()
