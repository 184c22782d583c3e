"""What a defense is: the loss that a classifier is trained on, with its own parameters."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from workers.budgets import Amount, default_epsilon, defaults
from workers.parameters import Parameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from workers.images import Dataset

__all__ = ["BallDefense", "Defense", "Earlier", "Objective"]

Objective = Callable[["nn.Module", "Tensor", "Tensor", "torch.Generator", float], "Tensor"]
"""The loss of an image, a scalar.

Of a model in training mode, on float images ``[n, C, H, W]`` in [0, 1] with int64 labels ``[n]``, after so many epochs
(a fraction within one). Every draw comes from the generator, so that a resumed training goes on with the same ones. It
adds nothing to the gradients of the model's parameters.
"""


@dataclass(frozen=True)
class Earlier:
    """A training that another one stands on.

    It has the same seed: the same initial weights where the architecture is the same, and the images in one order.

    Attributes:
        folder: its name below the other's, which is also what it is called.
        defense: what it is trained by.
        epochs: how many; the other parameters of the recipe are the same for both.
    """

    folder: str
    defense: "Defense"
    epochs: int


class Defense(Parameters):
    """A way to train a classifier, with its parameters; immutable.

    torch is imported inside the functions that compute, so that parameters can be read without it.

    Raises:
        WrongInput: on construction, for an unknown parameter or one out of its range.
    """

    NAME: ClassVar[str]

    @property
    def earlier(self) -> Earlier | None:
        """The training that this one stands on; None where there is none."""
        return None

    def architecture(self, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
        """The model that is trained, as `workers.models.loading` builds it: the seed's CNN."""
        channels, height, width = shape
        return {"name": "cnn", "channels": channels, "height": height, "width": width, "classes": classes}

    def start(self, model: "nn.Module", earlier: "nn.Module | None") -> None:
        """Puts into a model with random weights what it takes over from the earlier training."""

    def for_images(self, shape: tuple[int, int, int]) -> Self:
        """The defense with what it leaves to the images ``(C, H, W)``."""
        return self

    @abstractmethod
    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        """The loss of this training, the same at every start.

        Args:
            earlier: the model of the training that this one stands on, in ``eval()`` mode, its parameters frozen.
            training: the images and labels that are learned from.
        """


class BallDefense(Defense):
    """A defense against changes within ε in L∞; ε is the images' own default when not given."""

    epsilon: Amount | None = Field(
        None,
        gt=0,
        le=1,
        description=f"ε, the largest change (L∞) on pixels in [0, 1]. When absent {defaults('linf')}.",
    )

    @property
    def radius(self) -> float:
        """ε.

        Raises:
            ValueError: without one, which `for_images` gives.
        """
        if self.epsilon is None:
            raise ValueError(f"{self.NAME}: ε is open until the images are known")
        return self.epsilon

    def for_images(self, shape: tuple[int, int, int]) -> Self:
        if self.epsilon is not None:
            return self
        return self.model_copy(update={"epsilon": default_epsilon("linf", shape)})
