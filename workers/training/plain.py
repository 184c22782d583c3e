"""Training without a defense."""

from typing import TYPE_CHECKING, ClassVar

from workers.training.defense import Defense, Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from workers.images import Dataset

__all__ = ["Plain"]


class Plain(Defense):
    """No defense: the cross-entropy of the labels on the images as they are."""

    NAME: ClassVar[str] = "none"

    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        return self._loss

    def _loss(
        self, model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", epoch: float
    ) -> "Tensor":
        from torch.nn.functional import cross_entropy

        return cross_entropy(model(images), labels)
