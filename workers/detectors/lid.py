"""Local intrinsic dimensionality: how fast the neighbourhood of an image's activations fills up with distance."""

from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from workers.attacks import DDN, FGSM, Attack, IterativeFGSM
from workers.detectors.detector import Detector, DetectorRecipe, OnStep
from workers.errors import WrongInput

__all__ = ["LID", "LIDDetector", "local_intrinsic_dimensionality"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.Linear)
AT_ONCE = 64
"""Images that pass the classifier together."""
MOST_MEMORY = 4e9
"""Bytes that the reference images' activations may take."""

Maker = Literal["mixed", "fgsm", "ifgsm", "ddn"]
MAKERS: dict[Maker, tuple[Attack, ...]] = {
    "mixed": (FGSM(epsilon=0.3), DDN(steps=20)),
    "fgsm": (FGSM(epsilon=0.3),),
    "ifgsm": (IterativeFGSM(steps=60, step_size=0.005),),
    "ddn": (DDN(steps=20),),
}
"""What makes the adversarial training images, a batch each in turn."""


def local_intrinsic_dimensionality(points: Tensor, reference: Tensor, k: int) -> Tensor:
    """The maximum-likelihood estimate −1 / mean(log(rᵢ / r_k)) over the k nearest distances (Ma et al., 2018, Eq. 4).

    Args:
        points: float ``[n, F]``.
        reference: float ``[m, F]``, m ≥ k; a point that is itself among them has itself for a neighbour.
        k: neighbours, at least 2.

    Returns:
        float ``[n]``, above zero and finite, with a gradient by `points`.
    """
    # A matrix product finds the neighbours fast, but not those that lie closer than its rounding, as probabilities do.
    mode = "use_mm_for_euclid_dist" if points.shape[1] > 4096 else "donot_use_mm_for_euclid_dist"
    with torch.no_grad():
        nearest = torch.cdist(points, reference, compute_mode=mode).topk(k, dim=1, largest=False).indices
    squares = (points[:, None] - reference[nearest]).square().sum(dim=2) + 1e-12  # neither log nor root of 0
    logs = squares.log() / 2
    return 1 / (logs.amax(dim=1) - logs.mean(dim=1)).clamp(min=1e-6)


class LIDDetector(Detector):
    """A logistic regression on the local intrinsic dimensionality of an image's activations in several layers.

    The layers are the classifier's convolutions and linear layers as they stand in it, before their activation
    functions (after one that works in place), the logits and the probabilities; the last two alone where it has no such
    modules. Neighbours are sought among one sample of training images; the paper draws a new minibatch for each image,
    but a fixed sample makes a score that can be computed again and differentiated. What is kept of it is the images:
    their activations are computed by `fit` and `restore`.

    k is to be larger than the number of reference images of a class, as in the paper. Probabilities of clean images lie
    next to those of their class and far from all others, which no longer shows when all neighbours are of the class.
    The regression sees logarithms, as dimensionalities spread over six orders of magnitude; the paper's sees them raw.

    Args:
        classifier: what is guarded.
        shape: ``(C, H, W)`` of its images.
        references, k, samples, attack: see `LID`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        shape: tuple[int, int, int],
        *,
        references: int,
        k: int,
        samples: int,
        attack: Maker,
    ) -> None:
        super().__init__(classifier)
        self.references, self.k, self.samples, self.attack = references, k, samples, attack
        self.layers: tuple[str, ...] = tuple(
            name for name, module in classifier.named_modules() if isinstance(module, LAYERS)
        )
        with torch.no_grad():
            parameter = next(classifier.parameters(), torch.empty(0))
            try:
                found = self._outputs(torch.zeros(2, *shape, device=parameter.device))
            except RuntimeError as error:
                problem = str(error).splitlines()[0]
                raise WrongInput(f"lid: the classifier does not take images of {shape}: {problem}") from None
        logits = found.pop("")
        self.layers = tuple(name for name, output in found.items() if len(output) == 2 and output is not logits)
        features = sum(found[name][0].numel() for name in self.layers) + 2 * logits[0].numel()
        if (needed := 4 * features * references) > MOST_MEMORY:
            raise WrongInput(
                f"--references: the activations of {references} images would take {needed / 1e9:.1f} GB, "
                f"at most {int(MOST_MEMORY / (4 * features))} images fit into {MOST_MEMORY / 1e9:.0f} GB"
            )
        self.register_buffer("reference", torch.zeros(references, *shape, dtype=torch.uint8))
        self.register_buffer("weight", torch.zeros(len(self._memory)))
        self.register_buffer("bias", torch.zeros(()))
        for name in self._memory:
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def dimensionalities(self, images: Tensor) -> Tensor:
        """The local intrinsic dimensionality in each layer, ``[n, layers]``."""
        found = [
            local_intrinsic_dimensionality(points, self.get_buffer(name), self.k)
            for points, name in zip(self._activations(images), self._memory, strict=True)
        ]
        return torch.stack(found, dim=1)

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The log-odds of being adversarial, ``[n]``."""
        return self.dimensionalities(images).log() @ cast(Tensor, self.weight) + cast(Tensor, self.bias)

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, on_step: OnStep) -> None:
        if len(images) < self.references + self.samples:
            raise WrongInput(
                f"lid: needs {self.references} reference images and {self.samples} to attack, got {len(images)}"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images), generator=generator)
        reference = cast(Tensor, self.reference)
        reference.copy_(images[order[: self.references]])
        self._remember()
        chosen = torch.split(order[self.references : self.references + self.samples], AT_ONCE)
        steps, makers = len(chosen) + 3, MAKERS[self.attack]
        clean, adversarial = [], []
        for step, rows in enumerate(chosen):
            on_step(step, steps, "attacking training images")
            maker = makers[step % len(makers)]
            result = maker(self.classifier, images[rows], labels[rows], ids=rows, seed=seed)
            clean.append(images[rows][result.success])
            adversarial.append(torch.from_numpy(result.adversarial)[result.success])
        before, after = torch.cat(clean).float() / 255, torch.cat(adversarial).float() / 255
        if not len(after):
            raise WrongInput(f"lid: {self.attack} fooled the classifier on none of {self.samples} training images")
        noise = torch.randn(before.shape, generator=generator)
        size = (after - before).flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        noisy = (before + noise * size.view(-1, 1, 1, 1)).clamp(0, 1).mul(255).round().div(255)
        found = []
        for step, kind in enumerate((before, noisy, after), start=len(chosen)):
            on_step(step, steps, "dimensionalities of clean, noisy and adversarial images")
            with torch.no_grad():
                found += [self.dimensionalities(few.to(reference.device)).cpu() for few in torch.split(kind, AT_ONCE)]
        weight, bias = _regression(torch.cat(found).log().double().numpy(), len(after))
        cast(Tensor, self.weight).copy_(torch.from_numpy(weight))
        cast(Tensor, self.bias).fill_(bias)
        on_step(steps, steps, "fitted")

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        super().restore(state)
        self._remember()
        return self

    def _remember(self) -> None:
        """Computes the reference images' activations."""
        reference = cast(Tensor, self.reference)
        with torch.no_grad():
            parts = [self._activations(few.float() / 255) for few in torch.split(reference, AT_ONCE)]
        for name, *layer in zip(self._memory, *parts, strict=True):
            self.register_buffer(name, torch.cat(layer), persistent=False)

    @property
    def _memory(self) -> list[str]:
        """The names of the buffers with the reference images' activations ``[m, F]``, a layer each."""
        return [f"activations_{number}" for number in range(len(self.layers) + 2)]

    def _activations(self, images: Tensor) -> list[Tensor]:
        """``[n, F]`` of each layer, the logits and the probabilities last."""
        found = self._outputs(images)
        logits = found[""]
        return [*(found[name].flatten(1) for name in self.layers), logits, logits.softmax(dim=1)]

    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the layers last put out, by name, and the logits under the empty name."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda module, given, output: found.__setitem__(name, output)

        handles = [self.classifier.get_submodule(name).register_forward_hook(keep(name)) for name in self.layers]
        try:
            logits = self.classifier(images)
        finally:
            for handle in handles:
                handle.remove()
        found[""] = logits
        return found


def _regression(values: np.ndarray, adversarial: int) -> tuple[np.ndarray, float]:
    """Weights and intercept of the log-odds that a row of ``[n, layers]`` is among the last ones, the adversarial."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(values)
    regression = LogisticRegression(max_iter=1000, class_weight="balanced")
    regression.fit(scaler.transform(values), np.arange(len(values)) >= len(values) - adversarial)
    weight = regression.coef_[0] / scaler.scale_
    return weight, float(regression.intercept_[0] - weight @ scaler.mean_)


class LID(DetectorRecipe):
    """Logistic regression on the local intrinsic dimensionality of activations, among clean training images."""

    NAME, PAPER = "lid", "Ma et al. 2018"

    references: int = Field(100, ge=2, le=100_000, description="Training images among which neighbours are sought.")
    k: int = Field(20, ge=2, le=10_000, description="Neighbours; more than reference images of a class.")
    samples: int = Field(500, ge=2, le=100_000, description="Training images that are attacked, for the regression.")
    attack: Maker = Field(
        "mixed",
        description="What makes adversarial training images: fgsm, ifgsm, ddn, or mixed (fgsm and ddn in turn).",
    )

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> LIDDetector:
        if self.k > self.references:
            raise WrongInput(f"--k: at most the {self.references} reference images, got {self.k}")
        return LIDDetector(
            classifier,
            shape,
            references=self.references,
            k=self.k,
            samples=self.samples,
            attack=self.attack,
        )
