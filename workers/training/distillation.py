"""Defensive distillation."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from workers.budgets import Number
from workers.training.defense import Defense, Earlier, Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from workers.images import Dataset

__all__ = ["Distillation", "Teacher"]


class Teacher(Defense):
    """Plain training at a temperature: the cross-entropy of the labels under softmax(logits / T)."""

    NAME: ClassVar[str] = "teacher"

    temperature: Number = Field(100.0, ge=1, le=1e4, description="T, what logits are divided by in training.")

    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        from torch.nn.functional import cross_entropy

        def loss(
            model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", epoch: float
        ) -> "Tensor":
            return cross_entropy(model(images) / self.temperature, labels)

        return loss


class Distillation(Defense):
    """Defensive distillation: a student learns the soft labels of a teacher, both at a high temperature.

    Papernot, McDaniel, Wu, Jha & Swami (2016), "Distillation as a defense to adversarial perturbations against deep
    neural networks", section IV and Eq. 9: the teacher is trained on the labels under softmax(logits / T); a student of
    the same architecture on the teacher's probabilities at T in their place, under softmax(logits / T) too; the student
    then answers at temperature 1. Its logits are about T times as large as a plain model's, so that a gradient taken
    through its softmax vanishes in float32, while one taken at its logits does not (Carlini & Wagner, 2016).
    The teacher stays in the folder ``teacher`` of the model's, a model by itself.
    """

    NAME: ClassVar[str] = "distillation"

    temperature: Number = Field(100.0, ge=1, le=1e4, description="T, what logits are divided by in both trainings.")
    teacher_epochs: int = Field(12, ge=1, le=10_000, description="Passes of the teacher over the training images.")

    @property
    def earlier(self) -> Earlier:
        return Earlier("teacher", Teacher(temperature=self.temperature), self.teacher_epochs)

    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        import torch
        from torch.nn.functional import cross_entropy

        assert earlier is not None

        def loss(
            model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", epoch: float
        ) -> "Tensor":
            with torch.no_grad():
                soft = (earlier(images) / self.temperature).softmax(dim=1)
            return cross_entropy(model(images) / self.temperature, soft)

        return loss
