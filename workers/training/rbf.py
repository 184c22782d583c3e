"""Training with a layer of radial basis functions."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from workers.budgets import Number
from workers.training.defense import Defense, Earlier, Objective
from workers.training.plain import Plain

if TYPE_CHECKING:
    from torch import nn

    from workers.images import Dataset

__all__ = ["RBF"]


class RBF(Defense):
    """A network of radial basis functions behind a trained CNN, the whole then trained on.

    Vidnerová & Neruda (2018), "Deep networks with RBF layers to prevent adversarial examples", section 4: the CNN is
    trained first; a layer of Gaussian units takes its outputs (the class probabilities, as in the authors' code), a
    linear layer theirs; all of it is trained on by the cross-entropy. As there: 300 units, random centres, β = 2. Adam
    trains it in place of their RMSprop. The CNN as it was before stays in the folder ``base`` of the model's.
    """

    NAME: ClassVar[str] = "rbf"

    units: int = Field(300, ge=1, le=100_000, description="Gaussian units.")
    beta: Number = Field(2.0, gt=0, le=1000, description="β of every unit at first, 1/(2·width²).")
    base_epochs: int = Field(12, ge=1, le=10_000, description="Passes of the CNN alone over the training images.")

    @property
    def earlier(self) -> Earlier:
        return Earlier("base", Plain(), self.base_epochs)

    def architecture(self, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
        return super().architecture(shape, classes) | {"name": "rbf", "units": self.units, "beta": self.beta}

    def start(self, model: "nn.Module", earlier: "nn.Module | None") -> None:
        """Takes over the CNN."""
        assert earlier is not None
        model.get_submodule("base").load_state_dict(earlier.state_dict())

    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        return Plain().objective(None, training)
