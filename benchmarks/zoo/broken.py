"""Broken defenses: each hides its gradients or its answers, over a base that falls to a small change all the same.

A function's docstring names the paper or the trap. One marked with `keeps` decides as its base on every image, so that
what fools the base fools it.
"""

import io
import itertools
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torch.nn import functional

from zoo.bases import base, table
from zoo.networks import Trees

__all__ = ["KEEPS"]

Made = TypeVar("Made", bound=Callable[[], nn.Module])
Mapped = Callable[[Tensor], Tensor]

KEEPS: dict[str, str] = {}
"""The base that a model decides as, by the model's name."""


def keeps(name: str) -> Callable[[Made], Made]:
    """Says that a model decides as a base on every image, but for ties that rounding makes."""

    def noted(function: Made) -> Made:
        KEEPS[function.__name__] = name
        return function

    return noted


class Wrapped(nn.Module):
    """A base between something done to its images and something done to its logits."""

    def __init__(self, inner: nn.Module, *, before: Mapped | None = None, after: Mapped | None = None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(self.before(images) if self.before else images)
        return self.after(logits) if self.after else logits


# Answers that tell little


@keeps("plain")
def probabilities() -> nn.Module:
    """Probabilities where logits are expected: the cross-entropy takes a second softmax of them."""
    return nn.Sequential(base("plain"), nn.Softmax(dim=1))


@keeps("plain")
def saturated_probabilities() -> nn.Module:
    """softmax(100·logits): in float32 exactly 0 and 1, without a gradient, as after distillation."""
    return Wrapped(base("plain"), after=lambda logits: (100 * logits).softmax(dim=1))


@keeps("plain")
def saturated_inside() -> nn.Module:
    """The same, of one module that computes all: no part of it returns logits."""

    class Whole(nn.Module):
        def __init__(self, weights: dict[str, Tensor]) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(x, requires_grad=False) for x in weights.values()])

        def forward(self, images: Tensor) -> Tensor:
            one, bias_one, two, bias_two, three, bias_three, last, bias_last = self.weights
            hidden = functional.conv2d(images, one, bias_one, padding=1).relu()
            hidden = functional.conv2d(hidden, two, bias_two, stride=2).relu()
            hidden = functional.conv2d(hidden, three, bias_three, stride=2).relu()
            return (60 * functional.linear(hidden.flatten(1), last, bias_last)).softmax(dim=1)

    return Whole(base("plain").state_dict())


def mean_of_saturated() -> nn.Module:
    """The mean of three saturated softmaxes: none of the three parts' logits are the model's."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList(map(base, ("plain", "plain-seed-2", "perceptron")))

        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([(80 * member(images)).softmax(dim=1) for member in self.members]).mean(dim=0)

    return Mean()


def clamped_log_probabilities() -> nn.Module:
    """Logarithms of probabilities clamped to [1e-3, .999]: no gradient where the model is sure."""
    return Wrapped(base("plain"), after=lambda logits: logits.softmax(dim=1).clamp(1e-3, 0.999).log())


@keeps("plain")
def huge_logits() -> nn.Module:
    """Logits × 1e5: the cross-entropy's softmax is 0 or 1 in float32 (Carlini & Wagner, 2016)."""
    return Wrapped(base("plain"), after=lambda logits: 1e5 * logits)


@keeps("plain")
def tiny_logits() -> nn.Module:
    """Logits × 1e-6: all probabilities look alike, and a loss hardly moves."""
    return Wrapped(base("plain"), after=lambda logits: 1e-6 * logits)


def offset_logits() -> nn.Module:
    """Logits + 1e6, the same to a softmax, but float32 then knows them to 1/16 only."""
    return Wrapped(base("plain"), after=lambda logits: logits + 1e6)


def squashed_logits() -> nn.Module:
    """A steep sigmoid of each logit, flat at both ends (saturating networks: Nayebi & Ganguli, 2017)."""
    return Wrapped(base("plain"), after=lambda logits: torch.sigmoid(logits - logits.mean(1, keepdim=True)))


def rounded_logits() -> nn.Module:
    """Logits rounded to .1: the derivative of rounding is 0."""
    return Wrapped(base("plain"), after=lambda logits: (10 * logits).round() / 10)


def rounded_probabilities() -> nn.Module:
    """Probabilities with two decimals, as a public service answers."""
    return Wrapped(base("plain"), after=lambda logits: (100 * logits.softmax(dim=1)).round() / 100)


@keeps("plain")
def one_hot() -> nn.Module:
    """The class alone, by argmax."""
    return Wrapped(base("plain"), after=lambda logits: functional.one_hot(logits.argmax(dim=1), 10).float())


@keeps("perceptron")
def constant_confidence() -> nn.Module:
    """The class with a confidence of always 90 %."""
    return Wrapped(
        base("perceptron"), after=lambda logits: 0.01 + 0.89 * functional.one_hot(logits.argmax(1), 10).float()
    )


@keeps("plain")
def first_class_only() -> nn.Module:
    """The confidence of the first class, the rest shared by all others: which class is second is not told."""

    def told(logits: Tensor) -> Tensor:
        highest, place = logits.softmax(dim=1).max(dim=1, keepdim=True)
        return ((1 - highest) / 9).expand(-1, 10).scatter(1, place, highest)

    return Wrapped(base("plain"), after=told)


@keeps("plain")
def reversed_ranks() -> nn.Module:
    """The first class stays first, and all others change order: confidence and gradients mislead (Lee et al., 2019)."""

    def told(logits: Tensor) -> Tensor:
        highest, place = logits.max(dim=1, keepdim=True)
        return (-logits).scatter(1, place, highest.abs() + logits.abs().amax(dim=1, keepdim=True))

    return Wrapped(base("plain"), after=told)


# Gradients that are absent or wrong


class Backward(torch.autograd.Function):
    """The identity, with a derivative of one's own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, change: Mapped) -> Tensor:
        ctx.change = change
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.change(gradient), None


def with_gradient(change: Mapped, name: str = "plain") -> nn.Module:
    """A base whose gradient by the image is changed on its way back."""
    return Wrapped(base(name), before=lambda images: Backward.apply(images, change))


@keeps("plain")
def zero_gradient() -> nn.Module:
    """A backward pass that returns zeros."""
    return with_gradient(torch.zeros_like)


@keeps("plain")
def random_gradient() -> nn.Module:
    """A backward pass that returns noise."""
    return with_gradient(torch.randn_like)


@keeps("plain")
def negated_gradient() -> nn.Module:
    """A backward pass of the wrong sign: every step leads away."""
    return Wrapped(base("plain"), after=lambda logits: Backward.apply(logits, torch.neg))


@keeps("perceptron")
def mirrored_gradient() -> nn.Module:
    """A gradient that belongs to the image's mirror image."""
    return with_gradient(lambda gradient: gradient.flip(-1), "perceptron")


@keeps("plain")
def vanishing_gradient() -> nn.Module:
    """A gradient × 1e-30, which the next product in float32 turns to 0."""
    return with_gradient(lambda gradient: 1e-30 * gradient)


@keeps("plain")
def undefined_gradient() -> nn.Module:
    """The image as √(x²), whose derivative is 0·∞ = NaN at every black pixel."""
    return Wrapped(base("plain"), before=lambda images: (images * images).sqrt())


@keeps("plain")
def borrowed_gradient() -> nn.Module:
    """The decisions of one network with the gradients of another, untrained one."""

    class Borrowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("plain")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.decoy = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            decoy = self.decoy(images)
            return self.inner(images).detach() + decoy - decoy.detach()

    return Borrowed()


@keeps("plain")
def decoy_under_gradient() -> nn.Module:
    """Another answer for who asks for a gradient: logits of the mirrored, inverted image."""

    class Decoy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("plain")

        def forward(self, images: Tensor) -> Tensor:
            logits = self.inner(images.detach())
            return logits + 0 * self.inner(1 - images.flip(-1)) if images.requires_grad else logits

    return Decoy()


@keeps("plain")
def detached_input() -> nn.Module:
    """The image goes through numpy on its way in, and its gradient ends there."""
    return Wrapped(base("plain"), before=lambda images: torch.from_numpy(images.detach().numpy().copy()))


@keeps("plain")
def inference_only() -> nn.Module:
    """A forward pass under no_grad, as many a served model's."""

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("plain")

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                return self.inner(images)

    return Served()


@keeps("plain")
def half_detached() -> nn.Module:
    """Half of the first layer's activations carry no gradient."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = base("plain")

        def forward(self, images: Tensor) -> Tensor:
            hidden = torch.relu(self.inner.conv1(images))
            hidden = torch.cat([hidden[:, :8].detach(), hidden[:, 8:]], dim=1)
            hidden = torch.relu(self.inner.conv3(torch.relu(self.inner.conv2(hidden))))
            return self.inner.linear(hidden.flatten(1))

    return Half()


def step_activation() -> nn.Module:
    """Steps for ReLUs in the first layer, without a derivative (binarised networks: Galloway et al., 2018)."""
    return base("step")


def k_winners() -> nn.Module:
    """Only the largest activations live, so that gradients jump (Xiao, Zhong & Zheng, 2020)."""
    return base("k-winners")


def sine() -> nn.Module:
    """x + .02·sin(300·x): hardly another image, and a gradient whose sign means nothing."""
    return Wrapped(base("plain"), before=lambda images: images + 0.02 * (300 * images).sin())


# Images that are changed on their way in


def bit_depth() -> nn.Module:
    """Pixels of three bits (Xu, Evans & Qi, 2018); rounding has no derivative."""
    return Wrapped(base("plain"), before=lambda images: (7 * images).round() / 7)


def binarised_low() -> nn.Module:
    """Pixels above .2 are white and all others black: every black one can be turned."""
    return Wrapped(base("plain"), before=lambda images: (images > 0.2).float())


def lookup_table() -> nn.Module:
    """Pixels through a table of their 256 levels, by index."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("plain")
            self.register_buffer("levels", torch.linspace(0, 1, 256) ** 0.9)

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(self.levels[(255 * images).round().clamp(0, 255).long()])  # type: ignore[index]

    return Table()


def thermometer() -> nn.Module:
    """Thermometer encoding in ten levels (Buckman et al., 2018), broken by Athalye et al. (2018)."""
    return base("thermometer")


def blocks_of_cosines() -> nn.Module:
    """Cosine coefficients of 7×7 blocks, rounded (as JPEG does: Dziugaite et al., 2016; Guo et al., 2018)."""
    step, sample = torch.arange(7.0)[:, None], torch.arange(7.0)[None]
    cosines = (torch.pi * step * (2 * sample + 1) / 14).cos() * (2 / 7) ** 0.5
    cosines[0] /= 2**0.5

    def coded(images: Tensor) -> Tensor:
        blocks = images.unfold(2, 7, 7).unfold(3, 7, 7)
        rounded = cosines.T @ (4 * (cosines @ blocks @ cosines.T)).round().div(4) @ cosines
        return rounded.transpose(3, 4).reshape(images.shape).clamp(0, 1)

    return Wrapped(base("plain"), before=coded)


def jpeg() -> nn.Module:
    """Real JPEG of quality 50 by a library (Das et al., 2017)."""

    def coded(images: Tensor) -> Tensor:
        found = []
        for levels in (255 * images.detach()[:, 0]).round().clamp(0, 255).to(torch.uint8).numpy():
            file = io.BytesIO()
            Image.fromarray(levels).save(file, "JPEG", quality=50)
            found.append(np.asarray(Image.open(file)))
        return torch.from_numpy(np.stack(found))[:, None].float().div(255)

    return Wrapped(base("plain"), before=coded)


def median() -> nn.Module:
    """A median of 3×3 pixels by scipy (Xu, Evans & Qi, 2018)."""
    return Wrapped(
        base("plain"),
        before=lambda images: torch.from_numpy(median_filter(images.detach().numpy(), (1, 1, 3, 3), mode="constant")),
    )


def total_variation() -> nn.Module:
    """A smooth image near the given one, found by gradient descent under no_grad (Guo et al., 2018)."""

    def smoothed(images: Tensor) -> Tensor:
        found = images.detach().clone()
        for _ in range(15):
            with torch.enable_grad():
                found.requires_grad_(True)
                rough = sum((found.diff(dim=axis).square() + 1e-4).sqrt().sum() for axis in (2, 3))
                (slope,) = torch.autograd.grad((found - images.detach()).square().sum() / 2 + 0.1 * rough, found)
            found = (found - 0.2 * slope).detach()
        return found

    return Wrapped(base("plain"), before=smoothed)


def principal_components() -> nn.Module:
    """The image's 40 principal components, by numpy (Bhagoji et al., 2018)."""
    fitted = {name: values.numpy() for name, values in table("principal-components").items()}
    mean, components = fitted["mean"], fitted["components"]

    def projected(images: Tensor) -> Tensor:
        flat = images.detach().flatten(1).numpy() - mean
        return torch.from_numpy(mean + flat @ components.T @ components).float().view_as(images).clamp(0, 1)

    return Wrapped(base("plain"), before=projected)


# Chance


def gaussian_input() -> nn.Module:
    """Gaussian noise of .2 on the image, from a generator of its own."""
    generator = np.random.default_rng(secrets.randbits(64))

    def noisy(images: Tensor) -> Tensor:
        return images + 0.2 * torch.from_numpy(generator.standard_normal(images.shape, dtype=np.float32))

    return Wrapped(base("noise-0.2"), before=noisy)


def noise_by_content() -> nn.Module:
    """Noise seeded by the image itself: nothing is random, and any other image meets other noise."""

    def noisy(images: Tensor) -> Tensor:
        levels = (255 * images.detach()).round().to(torch.int64).flatten(1)
        seeds = (levels * torch.arange(1, levels.shape[1] + 1)).sum(dim=1).tolist()
        draws = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return images + 0.3 * torch.stack(draws)

    return Wrapped(base("noise-0.2"), before=noisy)


def dropout_left_on() -> nn.Module:
    """Dropout that nobody turned off (Feinman et al., 2017, use it to detect)."""

    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("dropout")

        def forward(self, images: Tensor) -> Tensor:
            return self.inner.train()(images)

    return Training()


def batch_statistics() -> nn.Module:
    """Batch normalisation that nobody turned off: an image's answer depends on its neighbours in the batch."""

    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("batch-norm")

        def forward(self, images: Tensor) -> Tensor:
            return self.inner.train()(images)

    return Training()


def dropped_pixels() -> nn.Module:
    """A third of the pixels is set to 0, at random."""
    return Wrapped(base("noise-0.5"), before=lambda images: images * (torch.rand_like(images) > 0.3))


def resized_and_padded() -> nn.Module:
    """Random size and place (Xie et al., 2018)."""

    def moved(images: Tensor) -> Tensor:
        side = int(torch.randint(25, 29, ()))
        left, top = (int(torch.randint(0, 29 - side, ())) for _ in range(2))
        small = functional.interpolate(images, size=side, mode="bilinear", antialias=True)
        return functional.pad(small, (left, 28 - side - left, top, 28 - side - top))

    return Wrapped(base("max-pool"), before=moved)


def rotated() -> nn.Module:
    """Every image turned by up to 15° at random."""

    def turned(images: Tensor) -> Tensor:
        angle = (2 * torch.rand(len(images)) - 1) * torch.pi / 12
        cos, sin, nought = angle.cos(), angle.sin(), torch.zeros_like(angle)
        matrix = torch.stack([cos, -sin, nought, sin, cos, nought], dim=1).view(-1, 2, 3)
        grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)

    return Wrapped(base("plain"), before=turned)


class Members(nn.Module):
    """One of several networks a call, as a function says."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(map(base, ("plain", "plain-seed-2", "max-pool", "perceptron")))
        self.choose = choose

    def forward(self, images: Tensor) -> Tensor:
        return self.members[self.choose(len(self.members))](images)


def random_member() -> nn.Module:
    """One of four networks at random for each call."""
    return Members(secrets.randbelow)


def members_by_turns() -> nn.Module:
    """One of four networks after the other: no chance, and no call like the one before."""
    calls = itertools.count()
    return Members(lambda count: next(calls) % count)


def noisy_logits() -> nn.Module:
    """Noise on the logits, against searches that only ask (Byun et al., 2022)."""
    return Wrapped(base("plain"), after=lambda logits: logits + 0.5 * torch.randn_like(logits))


def few_votes() -> nn.Module:
    """Randomised smoothing by seven votes (Cohen, Rosenfeld & Kolter, 2019, take 100,000, and certify L2)."""

    class Votes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = base("noise-0.2")

        def forward(self, images: Tensor) -> Tensor:
            draws = [self.inner(images + 0.25 * torch.randn_like(images)).argmax(dim=1) for _ in range(7)]
            return functional.one_hot(torch.stack(draws), 10).float().sum(dim=0)

    return Votes()


def pruned_activations() -> nn.Module:
    """Stochastic activation pruning (Dhillon et al., 2018), broken by Athalye et al. (2018)."""

    class Pruned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner: Any = base("plain")

        def pruned(self, hidden: Tensor) -> Tensor:
            share = hidden / hidden.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
            kept = 1 - (1 - share) ** (hidden[0].numel())
            return hidden * (torch.rand_like(hidden) < kept) / kept.clamp(min=1e-6)

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.pruned(torch.relu(self.inner.conv1(images)))
            hidden = self.pruned(torch.relu(self.inner.conv2(hidden)))
            return self.inner.linear(torch.relu(self.inner.conv3(hidden)).flatten(1))

    return Pruned()


# Not neural


def nearest_neighbours() -> nn.Module:
    """Votes of the five nearest of 5,000 training images."""

    class Neighbours(nn.Module):
        def __init__(self, images: Tensor, labels: Tensor) -> None:
            super().__init__()
            self.register_buffer("images", images)
            self.register_buffer("labels", labels)

        def forward(self, images: Tensor) -> Tensor:
            known = self.images.flatten(1).float().div(255)  # type: ignore[operator]
            near = torch.cdist(images.flatten(1), known).topk(5, largest=False).indices
            return functional.one_hot(self.labels[near], 10).float().sum(dim=1)  # type: ignore[index]

    return Neighbours(**table("neighbours"))


def nearest_features() -> nn.Module:
    """Votes of the five nearest of 5,000 training images by a network's last features (Papernot & McDaniel, 2018)."""

    class Neighbours(nn.Module):
        def __init__(self, images: Tensor, labels: Tensor) -> None:
            super().__init__()
            self.inner: Any = base("plain")
            self.inner.linear = nn.Identity()
            with torch.no_grad():
                known = torch.cat([self.inner(part.float().div(255)) for part in images.split(500)])
            self.register_buffer("known", known)
            self.register_buffer("labels", labels)

        def forward(self, images: Tensor) -> Tensor:
            near = torch.cdist(self.inner(images), self.known).topk(5, largest=False).indices  # type: ignore[arg-type]
            return functional.one_hot(self.labels[near], 10).float().sum(dim=1)  # type: ignore[index]

    return Neighbours(**table("neighbours"))


def decision_tree() -> nn.Module:
    """A decision tree behind numpy (Papernot, McDaniel & Goodfellow, 2016)."""
    return Trees(**table("tree"))


def random_forest() -> nn.Module:
    """Forty decision trees behind numpy."""
    return Trees(**table("forest"))


# Trained to look robust


@keeps("distillation")
def distilled() -> nn.Module:
    """Defensive distillation's answers, a softmax at temperature 1 (Papernot et al., 2016)."""
    return nn.Sequential(base("distillation"), nn.Softmax(dim=1))


def radial_units() -> nn.Module:
    """Gaussian units behind a CNN (Vidnerová & Neruda, 2018)."""
    return base("rbf")


def fgsm_trained() -> nn.Module:
    """FGSM training, which learns to fool the one step it is trained on (Tramèr et al., 2018)."""
    return base("fgsm")


@keeps("fgsm")
def fgsm_trained_probabilities() -> nn.Module:
    """The same, with probabilities where logits are expected."""
    return nn.Sequential(base("fgsm"), nn.Softmax(dim=1))


def trades_of_three_steps() -> nn.Module:
    """TRADES with an inner search of three large steps, which masks gradients."""
    return base("trades-three-steps")
