"""What searches over few-pixel changes share: k, and the budget that it is."""

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field

from workers.attacks.attack import Attack
from workers.errors import WrongInput

if TYPE_CHECKING:
    import numpy as np

    from workers.results import Distances

__all__ = ["FewPixelAttack"]


class FewPixelAttack(Attack):
    """A search among the changes of at most k pixels, each to any level of each channel (an L0 budget)."""

    BUDGET: ClassVar[str | None] = "pixels"

    pixels: int = Field(ge=1, description="k, the most pixels that may change.")

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if self.pixels > shape[1] * shape[2]:
            raise WrongInput(f"--pixels: an image has {shape[1] * shape[2]} pixels, got {self.pixels}")
        return self

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.l0 <= self.pixels
