"""A classifier behind a detector as one model, which any attack can search and any actor can build."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from workers.detectors.detector import Detector
from workers.files import write_whole

if TYPE_CHECKING:
    from workers.models.loading import ModelRecipe

__all__ = ["DRAWS", "Guarded", "Judged", "build_guarded", "write_guarded"]

DRAWS = 4
"""Fixed draws of a random detector that a search averages over."""

DEVIATIONS = 3
"""By how many standard deviations of its scores an image is to be under the threshold: of fresh draws four in a hundred
then are above it, by Student's t with three degrees of freedom."""


class Guarded(nn.Module):
    """A classifier and its detector: logits of the pair, and by how much an image is over the threshold.

    Args:
        classifier: images to logits ``[n, K]``.
        detector: built for it.
        threshold: τ; an image is flagged when its score is above it.
        scale: what excess is divided by: the spread of clean scores, above 0.
        guides: float ``[G, K]``, logits of clean images that are classified right and not flagged, which a search that
            matches features moves towards.
        stand_in: a differentiable model of the scores, images to ``[n]``, whose gradient stands for that of a detector
            which has none.
    """

    guides: Tensor
    draws: Tensor

    def __init__(
        self,
        classifier: nn.Module,
        detector: Detector,
        *,
        threshold: float,
        scale: float,
        guides: Tensor,
        stand_in: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.classifier, self.detector, self.stand_in = classifier, detector, stand_in
        self.threshold, self.scale = threshold, scale
        shape = (DRAWS, *detector.noise) if detector.noise is not None else (1,)
        drawn = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self.register_buffer("draws", torch.from_numpy(drawn))
        self.register_buffer("guides", guides)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, K]`` of the pair for float images ``[n, C, H, W]`` in [0, 1]; their mean over the draws."""
        if not self.detector.repairs:
            answer: Tensor = self.classifier(images)
            return answer
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stand_in is None):
            answer = torch.stack([self.detector.predict(images, noise) for noise in self._noises(images)]).mean(dim=0)
        if self.stand_in is not None:  # the repair gives no gradient: the classifier's own stands for it
            own = self.classifier(images)
            answer = own + (answer - own).detach()
        return answer

    def excess(self, images: Tensor) -> Tensor:
        """How far images are over the threshold, float ``[n]`` in units of `scale`; above 0 they are flagged.

        NaN where the score is not finite: such an image is neither flagged nor not flagged.

        Of a random detector: the mean of its scores over fixed draws, and `DEVIATIONS` standard deviations more, for
        an image to be let through under fresh draws too.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stand_in is None):
            scores = torch.stack([self.detector.score(images, noise) for noise in self._noises(images)]).float()
        score = scores[0]
        if len(scores) > 1:
            score = scores.mean(dim=0) + DEVIATIONS * (scores.var(dim=0) + 1e-12).sqrt()
        if self.stand_in is not None:  # its gradient, the detector's value
            other = self.stand_in(images)
            score = other + (score - other).detach()
        largest = torch.finfo(score.dtype).max
        excess = ((score - self.threshold) / self.scale).clamp(-largest, largest)
        return excess.where(score.isfinite(), torch.nan)

    def _noises(self, images: Tensor) -> list[Tensor | None]:
        """The fixed draws, each the same for all images."""
        if self.detector.noise is None:
            return [None]
        return [noise.expand(len(images), *noise.shape) for noise in self.draws]


class Judged(nn.Module):
    """A guarded classifier whose answer has the excess behind the logits, ``[n, K + 1]``: what a search looks at."""

    def __init__(self, guarded: Guarded) -> None:
        super().__init__()
        self.guarded = guarded

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.guarded(images)
        return torch.cat([logits, self.guarded.excess(images)[:, None]], dim=1)


def write_guarded(
    folder: Path,
    classifier: "ModelRecipe",
    detector: Mapping[str, Any],
    shape: tuple[int, int, int],
    guarded: Guarded,
    *,
    explained: float | None = None,
) -> None:
    """Writes a guarded classifier as a model folder.

    Args:
        folder: created when absent; what is in it is replaced.
        classifier: as it travels.
        detector: ``{"name": …, "parameters": {…}}``.
        shape: ``(C, H, W)`` of the images.
        guarded: fitted and calibrated.
        explained: the share of the variance of its scores that the stand-in explains.
    """
    from workers.models.loading import pack_weights

    state = {"classifier": _bytes(classifier.weights), "guides": guarded.guides.contiguous()}
    for name, module in (("detector", guarded.detector), ("stand_in", guarded.stand_in)):
        if module is not None:
            state[name] = _bytes(pack_weights(module))
    architecture = {
        "name": "guarded",
        "classifier": classifier.architecture,
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "detector": dict(detector),
        "shape": list(shape),
        "threshold": guarded.threshold,
        "scale": guarded.scale,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "guarded.safetensors", safetensors.torch.save(state))
    card = {"architecture": architecture, "weights": "guarded.safetensors", "stand_in_explains": explained}
    write_whole(folder / "model.json", (json.dumps(card, indent=1) + "\n").encode())


def build_guarded(architecture: Mapping[str, Any], state: bytes) -> Guarded:
    """Builds what `write_guarded` wrote.

    Raises:
        KeyError, ValueError: for another architecture's description or state.
        WrongInput: for a detector that is not here.
    """
    from workers.detectors import detector_recipe
    from workers.detectors.stand_in import StandIn
    from workers.models.loading import ModelRecipe

    parts, shape = safetensors.torch.load(state), tuple(architecture["shape"])
    classifier = ModelRecipe(
        "",
        architecture["classifier"],
        parts["classifier"].numpy().tobytes(),
        tuple(architecture["mean"]),
        tuple(architecture["std"]),
        None,
        "",
    ).build()
    detector = detector_recipe(architecture["detector"]).build(classifier, shape)
    detector.restore(safetensors.torch.load(parts["detector"].numpy().tobytes()))
    stand_in = None
    if "stand_in" in parts:
        stand_in = StandIn(shape)
        stand_in.load_state_dict(safetensors.torch.load(parts["stand_in"].numpy().tobytes()))
    return Guarded(
        classifier,
        detector,
        threshold=architecture["threshold"],
        scale=architecture["scale"],
        guides=parts["guides"],
        stand_in=stand_in,
    )


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())
