"""Training for analysis by synthesis."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from workers.budgets import Number
from workers.training.defense import Defense, Objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from workers.images import Dataset

__all__ = ["Synthesis"]


class Synthesis(Defense):
    """Analysis by synthesis: a generator for each class learns to make its images, and classifies by what it can make.

    Schott, Rauber, Bethge & Brendel (2019), "Towards the first adversarially robust neural network model on MNIST",
    section 3: a variational autoencoder for each class, trained on that class's images by the evidence lower bound; the
    paper's logit of a class is a lower bound of log p(x|class), its code found by an optimisation at every image (Eq.
    6); here it is the largest log p(x|z) + log p(z) that is found, less constants: a joint score, no bound. Small form:
    fully connected autoencoders of one hidden layer, 100 fixed codes and 10 steps to start and refine the search
    (the paper: convolutional ones, 8,000 codes and 50 steps), and no learned weights of the classes. The search hides
    gradients: an attack without gradients, or one that decides by transfer, must stand beside those with.
    """

    NAME: ClassVar[str] = "synthesis"

    hidden: int = Field(200, ge=1, le=10_000, description="Width of the hidden layers.")
    code_size: int = Field(8, ge=1, le=1024, description="Numbers in a code.")
    spread: Number = Field(0.3, gt=0, le=10, description="Standard deviation of a pixel around its reconstruction.")
    starts: int = Field(100, ge=1, le=100_000, description="Fixed codes that the search of a code tries.")
    steps: int = Field(10, ge=0, le=1000, description="Gradient steps of that search.")

    def architecture(self, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
        return super().architecture(shape, classes) | {"name": "synthesis"} | self.model_dump(mode="json")

    def objective(self, earlier: "nn.Module | None", training: "Dataset") -> Objective:
        import torch

        from workers.models.synthesis import SynthesisClassifier

        def loss(
            model: "nn.Module", images: "Tensor", labels: "Tensor", generator: "torch.Generator", epoch: float
        ) -> "Tensor":
            assert isinstance(model, SynthesisClassifier)
            noise = torch.randn(len(images), self.code_size, generator=generator)
            return model.loss(images, labels, noise).mean()

        return loss
