"""Small networks with what breaks searches planted at some images, and what a search must say of each in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook

BAD = (np.nan, np.inf, -np.inf)


class Planted(nn.Module):
    """An integer network on levels, exact in float32, whose answers to some images are not finite, tied or saturated.

    Logits are whole numbers times a power of two, so that ties are frequent and float64 says the same. Of the images
    a share is chosen by a hash of the levels; one logit of theirs, or all, is NaN, ∞ or −∞. Gradients are those of
    the network before it is made coarse.

    Args:
        shape: ``(C, H, W)``.
        classes: K.
        rng: of everything.
        share: one image in so many has no finite answer; 0 for none.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, rng: np.random.Generator, share: int) -> None:
        super().__init__()
        features = int(np.prod(shape))
        self.first = rng.integers(-3, 4, (features, 6))
        self.shift = rng.integers(-200, 200, 6)
        self.second = rng.integers(-3, 4, (6, classes))
        self.primes = rng.integers(1, 1000, features)
        self.coarse = int(rng.choice([1, 256, 1024]))
        self.scale = float(2.0 ** rng.choice([0, 0, -20, 60, 100]))
        self.bound = int(rng.choice([10**6, 3]))
        self.share, self.kinds = share, rng.choice(BAD, 5)
        self.column = int(rng.integers(-1, classes))
        for name in ("first", "shift", "second"):
            self.register_buffer(f"_{name}", torch.tensor(getattr(self, name), dtype=torch.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = images.flatten(1) * 255
        levels = levels.detach().round() + (levels - levels.detach())
        raw = torch.relu(levels @ self._first + self._shift) @ self._second  # type: ignore[operator]
        coarse = torch.floor(raw.detach() / self.coarse).clamp(-self.bound, self.bound) * self.scale
        logits = coarse + (raw - raw.detach())
        bad = torch.tensor(self.bad(levels.detach().numpy().astype(np.int64)))
        return torch.where(bad.isnan() | bad.isinf(), bad.to(logits), logits)

    def bad(self, levels: np.ndarray) -> np.ndarray:
        """float64 ``[n, K]``: what is planted, 0 where nothing is."""
        found = np.zeros((len(levels), self.second.shape[1]))
        if not self.share:
            return found
        marks = (levels * self.primes).sum(axis=1)
        rows = np.flatnonzero(marks % self.share == 0)
        value = self.kinds[(marks[rows] // self.share) % len(self.kinds)]
        if self.column < 0:
            found[rows] = value[:, None]
        else:
            found[rows, self.column] = value
        return found

    def exact(self, images: np.ndarray) -> np.ndarray:
        """Logits float64 ``[n, K]`` of uint8 images, by numpy."""
        levels = images.reshape(len(images), -1).astype(np.int64)
        raw = np.maximum(levels @ self.first + self.shift, 0) @ self.second
        logits = np.floor(raw / self.coarse).clip(-self.bound, self.bound) * self.scale
        bad = self.bad(levels)
        return np.where(np.isfinite(bad), logits, bad)


WAYS = (
    "hook of the model",
    "hooks of layers",
    "hook of all",
    "forward of the model",
    "forward of layers",
    "kinds of layers",
    "call of the model",
    "unless traced",
)
"""How the answers of a chain of layers can be others than those of its layers."""


class Hooked(Planted):
    """A chain of two linear layers, exact at whole levels, whose answers are planted elsewhere than in its layers.

    Besides those that are not finite, some are given to the next class.

    Args:
        shape, classes, rng, share: as of `Planted`.
        way: one of `WAYS`; for "hook of all" and "call of the model" as `hooked` does it.
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, rng: np.random.Generator, share: int, way: str
    ) -> None:
        super().__init__(shape, classes, rng, share)
        self.coarse, self.scale, self.bound = 1, 1.0, 10**7
        self.turned, self.way, self.given = int(rng.choice([5, 50])), way, torch.empty(0)
        layer = Doing if way == "kinds of layers" else nn.Linear
        self.inner, self.outer = layer(len(self.first), 6), layer(6, classes, bias=False)
        for given, numbers in (
            (self.inner.weight, self.first.T * 255),
            (self.inner.bias, self.shift),
            (self.outer.weight, self.second.T),
        ):
            given.data = torch.tensor(numbers, dtype=torch.float32)
        self.requires_grad_(False)
        if way == "hook of the model":
            self.register_forward_hook(lambda _, given, raw: self.planted(given[0], raw))
        if way == "forward of the model":
            plain = self.forward
            self.forward = lambda images: self.planted(images, plain(images))  # type: ignore[method-assign]
        for one, does in ((self.inner, self.keep), (self.outer, lambda _, raw: self.planted(self.given, raw))):
            self._let(one, does, way)

    def _let(self, layer: nn.Linear, does: Any, way: str) -> None:
        own = layer.forward
        if way == "hooks of layers":
            layer.register_forward_hook(lambda _, given, found: does(given[0], found))
        if way == "forward of layers":
            layer.forward = lambda given: does(given, own(given))  # type: ignore[method-assign]
        if isinstance(layer, Doing):
            layer.does = does

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raw: torch.Tensor = self.outer(torch.relu(self.inner(images.flatten(1))))
        return self.planted(images, raw) if self.way == "unless traced" and not isinstance(images, fx.Proxy) else raw

    def keep(self, given: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        self.given = given
        return found

    def planted(self, images: torch.Tensor, raw: torch.Tensor) -> torch.Tensor:
        levels = (images.detach().flatten(1) * 255).numpy()
        whole = np.abs(levels - levels.round()).max(axis=1) < 1e-3
        exact = torch.tensor(self.exact(levels.round()), dtype=torch.float32)
        return torch.where(torch.tensor(whole)[:, None], exact + (raw - raw.detach()), raw)

    def exact(self, images: np.ndarray) -> np.ndarray:
        logits, levels = super().exact(images), images.reshape(len(images), -1).astype(np.int64)
        turned = (levels * self.primes[::-1]).sum(axis=1) % self.turned == 0
        return np.where(turned[:, None], np.roll(logits, 1, axis=1), logits)


class Doing(nn.Linear):
    """A linear layer of another kind."""

    does: Any = None

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.does(given, super().forward(given))
        return found


class Called(Hooked):
    """One that is called in a way of its own."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.planted(images, super().__call__(images))


@contextmanager
def hooked(
    shape: tuple[int, int, int], classes: int, rng: np.random.Generator, share: int, way: str
) -> Iterator[Hooked]:
    """A chain whose answers are planted in one of `WAYS`, in ``eval()`` mode."""
    model = (Called if way == "call of the model" else Hooked)(shape, classes, rng, share, way)
    handle = None
    if way == "hook of all":
        handle = register_module_forward_hook(
            lambda module, given, raw: model.planted(given[0], raw) if module is model else None
        )
    yield model.eval()
    if handle is not None:
        handle.remove()


def judged(logits: np.ndarray, label: int, target: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row of logits whether it is an answer, whether it reaches the goal, whether it fails by a tie alone."""
    known = np.isfinite(logits).all(axis=1)
    highest = np.where(known[:, None], logits, 0).max(axis=1)
    top = np.where(known[:, None], logits, 0) == highest[:, None]
    predicted = top.argmax(axis=1)  # the lowest class of the highest
    chosen = label if target is None else target
    reached = (predicted != label) if target is None else (predicted == target)
    tie = top[:, chosen] & (top.sum(axis=1) > 1) & ~reached
    return known, reached & known, tie & known


def drawn(rng: np.random.Generator) -> tuple[Planted, np.ndarray, np.ndarray, np.ndarray | None]:
    """A network, images that it mostly classifies right, labels and targets."""
    shape: Any = ((1, 2, 2), (1, 2, 3), (1, 3, 3), (1, 4, 3), (3, 2, 2), (3, 3, 2))[rng.integers(6)]
    classes = int(rng.integers(2, 6))
    share = int(rng.choice([0, 3, 40, 900]))
    model: Planted = Planted(shape, classes, rng, share)
    if rng.random() < 0.2:
        model = Hooked(shape, classes, rng, share, str(rng.choice([way for way in WAYS if " of all" not in way])))
    images = rng.integers(0, 256, (4, *shape), dtype=np.uint8)
    images[rng.random(images.shape) < 0.3] = 0
    logits = np.nan_to_num(model.exact(images), nan=0, posinf=0, neginf=0)
    labels = logits.argmax(axis=1)
    targets = (labels + rng.integers(0, classes, 4)) % classes if rng.random() < 0.4 else None
    return model.eval(), images, labels, targets
