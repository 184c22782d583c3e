"""What a detector is: images in, scores of suspicion out; and the recipe that it is built and fitted from."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from workers.parameters import Parameters
from workers.training.networks import Network
from workers.training.second_model import SecondModel

__all__ = ["Detector", "DetectorRecipe", "OnStep"]

OnStep = Callable[[int, int, str], None]
"""Follows a fit: steps done, steps in all, what is done."""


class Detector(nn.Module):
    """Judges images for a classifier: a higher score is more suspicious.

    Parameters and buffers are the detector's own; the classifier is not among them. All methods take float images
    ``[n, C, H, W]`` in [0, 1], each image judged by itself, and must give gradients by the images wherever they
    claim to (`differentiable`); a step without a gradient may pass the one behind it straight through.

    A random detector does not draw: it says in `noise` how many standard normal numbers it wants for an image and is
    given them, so that a search may average over draws and every score can be computed again.

    Args:
        classifier: images to logits ``[n, K]``, in ``eval()`` mode, its parameters frozen.

    Attributes:
        noise: shape of the standard normal draws for one image; None when scores are not random.
        differentiable: whether `score` has a useful gradient by the images.
        repairs: whether `predict` is more than the classifier's own answer.
    """

    noise: tuple[int, ...] | None = None
    differentiable: bool = True
    repairs: bool = False

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self._classifier = (classifier,)  # in a tuple, for nn.Module not to take it as a part

    @property
    def classifier(self) -> nn.Module:
        """What is guarded."""
        return self._classifier[0]

    @abstractmethod
    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Suspicion, float ``[n]``, of images given draws ``[n, *noise]`` (None where `noise` is None)."""

    def predict(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Logits ``[n, K]`` of what the detector makes of the images; the classifier's own unless it repairs."""
        logits: Tensor = self.classifier(images)
        return logits

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Tensor | None:
        """The images as the detector's own model sees them, ``[n, C, H, W]`` in [0, 1]; None where there is none."""
        return None

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, on_step: OnStep) -> None:
        """Computes what the detector keeps of training images, its networks being trained already; frozen thereafter.

        Args:
            images: uint8 ``[N, C, H, W]``.
            labels: int64 ``[N]``.
            seed: of every draw.
            on_step: follows it.
        """

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Takes over what `state_dict` of a fitted one gave, buffers of any size."""
        for name, value in state.items():
            owner, _, leaf = name.rpartition(".")
            module = self.get_submodule(owner)
            if leaf in module._buffers:
                module._buffers[leaf] = torch.empty_like(value)
        self.load_state_dict(state)
        return self


class DetectorRecipe(Parameters):
    """A detector's name and parameters; immutable.

    Raises:
        WrongInput: on construction, for an unknown parameter or one out of its range.
    """

    NAME: ClassVar[str]
    PAPER: ClassVar[str] = ""
    """Where it comes from, authors and year; empty for a control."""

    def networks(self) -> dict[str, Network]:
        """The networks that are trained before it is fitted, by the attribute of the detector that holds each."""
        return {}

    def second_models(self) -> dict[str, SecondModel]:
        """The classifiers that are trained before it is fitted, likewise; they learn labels too."""
        return {}

    @abstractmethod
    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> Detector:
        """The detector for images of ``(C, H, W)``, its networks untrained, nothing fitted.

        Raises:
            WrongInput: when it cannot take such images or this classifier.
        """
