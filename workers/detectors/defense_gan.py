"""Defense-GAN: an image stands for the nearest one that a generator of training images makes."""

from collections.abc import Mapping
from typing import Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.budgets import Number
from workers.detectors.detector import Detector, DetectorRecipe, OnStep
from workers.evaluation.calls import filled_call
from workers.models.gan import GAN
from workers.training.gan import GANNetwork
from workers.training.networks import Network

__all__ = ["DefenseGAN", "DefenseGANDetector"]

BLOCK = 4
"""Images projected at once, always as many: an image's descent is then the same bits whatever its neighbours are."""


class DefenseGANDetector(Detector):
    """Projects an image onto the generator's range, classifies the projection, scores the distance.

    The projection is what L steps of gradient descent with momentum on ‖G(z) − x‖² come to, the best of R starts
    (Samangouei et al., Fig. 1). The paper draws the starts anew for each image; here they are drawn once, so that a
    score can be computed again. The step size is a tenth over the last fifth of the steps.

    Gradients by the images leave the descent out. The projection passes them straight through (BPDA: Athalye et al.,
    2018, section 4.1); the score's is taken at a fixed z, exact where the descent ended in a minimum.

    Args:
        classifier: what is guarded.
        gan: its generator is used, its critic only in training.
        steps, restarts, step_size, momentum: of the descent; the loss is the mean over an image's values.
    """

    repairs = True

    def __init__(
        self, classifier: nn.Module, gan: GAN, *, steps: int, restarts: int, step_size: float, momentum: float
    ) -> None:
        super().__init__(classifier)
        self.gan, self.steps, self.step_size, self.momentum = gan, steps, step_size, momentum
        self.register_buffer("starts", torch.zeros(restarts, gan.code_size))
        self._last: tuple[Tensor, Tensor] | None = None

    def fit(self, images: Tensor, labels: Tensor, *, seed: int, on_step: OnStep) -> None:
        starts = cast(Tensor, self.starts)
        starts.copy_(torch.randn(starts.shape, generator=torch.Generator().manual_seed(seed)))
        self._last = None

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        self._last = None
        return super().restore(state)

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Mean squared distance to the projection, ``[n]``."""
        return (images - self._projected(images)).square().flatten(1).mean(dim=1)

    def predict(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        logits: Tensor = self.classifier(self.reconstruct(images))
        return logits

    def reconstruct(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._projected(images) + (images - images.detach())

    def _projected(self, images: Tensor) -> Tensor:
        """The projections, without a gradient. The last ones are kept: a score and a prediction need the same."""
        images = images.detach()
        if self._last is None or not torch.equal(self._last[0], images):
            whole = filled_call(images, len(images) + -len(images) % BLOCK)
            found = torch.cat([self._descend(block) for block in torch.split(whole, BLOCK)])[: len(images)]
            self._last = images.clone(), found
        return self._last[1]

    def _descend(self, images: Tensor) -> Tensor:
        starts = cast(Tensor, self.starts)
        codes = starts.repeat(len(images), 1).requires_grad_(True)
        goals = images.repeat_interleave(len(starts), dim=0)
        optimizer = torch.optim.SGD([codes], lr=self.step_size, momentum=self.momentum)
        with torch.enable_grad():  # the caller may want no gradients; the descent needs its own
            for step in range(self.steps):
                if step == self.steps - self.steps // 5:
                    optimizer.param_groups[0]["lr"] = self.step_size / 10
                error = (self.gan(codes) - goals).square().flatten(1).mean(dim=1)
                (codes.grad,) = torch.autograd.grad(error.sum(), codes)
                optimizer.step()
        with torch.no_grad():
            made = self.gan(codes)
            error = (made - goals).square().flatten(1).mean(dim=1).view(len(images), -1)
            best = error.argmin(dim=1) + torch.arange(len(images), device=images.device) * len(starts)
            return cast(Tensor, made[best])


class DefenseGAN(DetectorRecipe):
    """Classifies the nearest image that a Wasserstein GAN of the training images generates; scores the distance."""

    NAME, PAPER = "defense-gan", "Samangouei, Kabkab & Chellappa 2018"

    steps: int = Field(50, ge=1, le=100_000, description="L, steps of gradient descent; 200 in the paper.")
    restarts: int = Field(4, ge=1, le=1000, description="R, starts of the descent; 10 in the paper.")
    step_size: Number = Field(10.0, gt=0, description="Of the descent, for an error that is a mean over pixels.")
    momentum: Number = Field(0.7, ge=0, lt=1, description="Of the descent.")
    code_size: int = Field(64, ge=1, le=1024, description="Numbers in the generator's code.")
    filters: int = Field(16, ge=1, le=1024, description="Of the critic's first layer; all others follow from it.")
    epochs: int = Field(20, ge=1, le=10_000, description="Of the GAN's training.")
    training_seed: int = Field(42, ge=0, lt=2**31, description="Of the GAN's training.")

    def networks(self) -> dict[str, Network]:
        return {
            "gan": GANNetwork(
                code_size=self.code_size, filters=self.filters, epochs=self.epochs, seed=self.training_seed
            )
        }

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> DefenseGANDetector:
        return DefenseGANDetector(
            classifier,
            GAN(*shape, code_size=self.code_size, filters=self.filters),
            steps=self.steps,
            restarts=self.restarts,
            step_size=self.step_size,
            momentum=self.momentum,
        )
