"""What searches within an L∞ or L2 ball share: ε, the loss, starts and directions.

Iterates are float32 levels (0 to 255), so that clean images and L∞ bounds are whole numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from workers.attacks.attack import Attack
from workers.budgets import Amount, Norm, default_epsilon, defaults, spelled
from workers.errors import WrongInput
from workers.losses import Loss
from workers.threat import Ball, lengths

if TYPE_CHECKING:
    from torch import Tensor

    from workers.results import Distances

__all__ = ["BallAttack", "NormBallAttack", "enough_classes", "require_radius", "unit"]


def require_radius(norm: Norm, epsilon: float) -> None:
    """Refuses an ε that is more than all.

    Raises:
        WrongInput: saying so.
    """
    if norm == "linf" and epsilon > 1:
        raise WrongInput(f"--epsilon: must be at most 1 with --norm linf, got {spelled(epsilon)}")


class BallAttack(Attack):
    """A search within the `Ball` of radius ε around the clean image; ε is the images' own default when not given."""

    BUDGET: ClassVar[str | None] = "epsilon"

    epsilon: Amount | None = Field(
        None,
        ge=1 / 255,
        le=1,
        description="ε, the largest change of a feature, for pixels in [0, 1]; 1/255 (a level) at least. When absent "
        f"{defaults('linf')}.",
    )

    @property
    def ball(self) -> Ball:
        """What the search stays within.

        Raises:
            ValueError: without an ε, which `for_images` gives.
        """
        if self.epsilon is None:
            raise ValueError(f"{self.NAME}: ε is open until the images are known")
        return Ball(self._norm, self.epsilon)

    @property
    def _norm(self) -> Norm:
        return "linf"

    def for_images(self, shape: tuple[int, int, int]) -> Self:
        if self.epsilon is not None:
            return self
        return self.model_copy(update={"epsilon": default_epsilon(self._norm, shape)})

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return self.ball.within(moved)


class NormBallAttack(BallAttack):
    """A search within the L∞ or L2 `Ball` around the clean image."""

    epsilon: Amount | None = Field(
        None,
        ge=1 / 255,
        description="ε, the radius of the ball, for pixels in [0, 1]; 1/255 (a level) at least, with linf 1 at most. "
        f"When absent: linf {defaults('linf')}; l2 {defaults('l2')}.",
    )
    norm: Norm = Field("linf", description="Norm of the ball: linf (largest change) or l2 (Euclidean length).")
    loss: Loss = Field("ce", description="What is raised: cross-entropy, logit margin, or its ratio (dlr).")

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.epsilon is not None:
            require_radius(self.norm, self.epsilon)
        return self

    @property
    def _norm(self) -> Norm:
        return self.norm

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        enough_classes(self.loss, classes)
        return self

    def steepest(self, gradient: "Tensor") -> "Tensor":
        """The direction of norm 1 in which a loss with this gradient ``[n, C, H, W]`` rises most."""
        return gradient.sign() if self.norm == "linf" else unit(gradient)

    def random_start(self, clean: "Tensor", streams: Sequence[np.random.Generator]) -> "Tensor":
        """Uniform draws from the ball around each clean image ``[n, C, H, W]``, one stream an image; in levels."""
        import torch

        shape = clean.shape[1:]
        if self.norm == "linf":
            drawn = np.stack([stream.random(shape, dtype=np.float32) for stream in streams])
            change = torch.from_numpy(drawn).to(clean.device).mul_(2).sub_(1).mul_(self.ball.radius)
        else:
            normal = np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])
            share = np.array([stream.random() ** (1 / clean[0].numel()) for stream in streams], dtype=np.float32)
            change = unit(torch.from_numpy(normal).to(clean.device))
            change *= torch.from_numpy(share).to(clean.device).mul(self.ball.radius).view(-1, 1, 1, 1)
        return self.ball.project(clean + change, clean)


def unit(gradient: "Tensor") -> "Tensor":
    """Each of ``[n, C, H, W]`` divided by its L2 norm; zeros stay zeros."""
    scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_(min=1e-38)  # else squares underflow
    return scaled.div_(lengths(scaled).clamp_(min=1e-38).view(-1, 1, 1, 1))


def enough_classes(loss: str, classes: int, *, needed: int = 3) -> None:
    """Refuses the DLR loss on a model with fewer than three classes.

    Raises:
        WrongInput: saying so.
    """
    if loss == "dlr" and classes < needed:
        raise WrongInput(f"--loss: dlr needs a model of at least {needed} classes, this one has {classes}")
