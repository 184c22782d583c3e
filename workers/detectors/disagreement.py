"""Detectors that ask a second classifier, one that is not fooled by the same changes, and score how it disagrees."""

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor, nn

from workers.detectors.detector import Detector, DetectorRecipe
from workers.errors import WrongInput
from workers.evaluation.scores import UNANSWERED, predicted
from workers.training.classifiers import Recipe
from workers.training.defense import Defense
from workers.training.rbf import RBF
from workers.training.second_model import SecondModel
from workers.training.synthesis import Synthesis

__all__ = ["DisagreementDetector", "RBFDisagreement", "SynthesisDisagreement"]


class DisagreementDetector(Detector):
    """Scores an image by the second model's log-odds against the classifier's answer.

    The score is max_{j≠c} g_j − g_c, g the second model's logits and c the class that the classifier answers: above 0
    the two disagree, below 0 it says by how much they agree. It is linear in the logits, so that neither their scale
    (those of analysis by synthesis are log-likelihoods, hundreds apart) nor the saturation of a softmax takes its
    gradient or its order away, as they do a divergence's of two softmax answers. The classifier's confidence does not
    count. By the images it jumps where the classifier's answer does; elsewhere it has the second model's gradient.

    Args:
        classifier: what is guarded.
        second: images to logits ``[n, K]``, of the same classes.
    """

    def __init__(self, classifier: nn.Module, second: nn.Module) -> None:
        super().__init__(classifier)
        self.second = second

    def score(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        with torch.no_grad():  # a class has no derivative
            found = predicted(self.classifier(images))
        answered = found.clamp(min=0)[:, None]
        logits: Tensor = self.second(images)
        others = logits.scatter(1, answered, -torch.inf)
        lead = others.amax(dim=1) - logits.gather(1, answered)[:, 0]
        return lead.masked_fill(found == UNANSWERED, torch.nan)


class _DisagreementRecipe(DetectorRecipe):
    epochs: int = Field(8, ge=1, le=10_000, description="Of the second model's training.")
    training_seed: int = Field(
        43, ge=0, lt=2**31, description="Of the second model's training; by default not that of brittle train."
    )

    @property
    @abstractmethod
    def defense(self) -> Defense:
        """What the second model is trained by."""

    def second_models(self) -> dict[str, SecondModel]:
        recipe = Recipe(epochs=self.epochs, batch_size=128, seed=self.training_seed)
        return {"second": SecondModel(self.defense, recipe)}

    def build(self, classifier: nn.Module, shape: tuple[int, int, int]) -> DisagreementDetector:
        parameter = next(classifier.parameters(), torch.empty(0))
        try:
            with torch.no_grad():
                classes = classifier(torch.zeros(1, *shape, device=parameter.device)).shape[1]
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
            raise WrongInput(f"{self.NAME}: the classifier does not take images of {shape}: {problem}") from None
        return DisagreementDetector(classifier, self.second_models()["second"].build(shape, classes))


class RBFDisagreement(_DisagreementRecipe):
    """Log-odds of a network of radial basis functions against the classifier's answer."""

    NAME = "rbf-disagreement"

    epochs: int = Field(3, ge=1, le=10_000, description="Of the second model's training behind its CNN.")
    base_epochs: int = Field(5, ge=1, le=10_000, description="Of the training of its CNN alone.")
    units: int = Field(300, ge=1, le=100_000, description="Its Gaussian units.")

    @property
    def defense(self) -> Defense:
        return RBF(units=self.units, base_epochs=self.base_epochs)


class SynthesisDisagreement(_DisagreementRecipe):
    """Log-odds of analysis by synthesis against the classifier's answer."""

    NAME = "synthesis-disagreement"

    code_size: int = Field(8, ge=1, le=1024, description="Numbers in its code.")
    starts: int = Field(100, ge=1, le=100_000, description="Fixed codes that its search of a code tries.")
    steps: int = Field(10, ge=0, le=1000, description="Gradient steps of that search.")

    @property
    def defense(self) -> Defense:
        return Synthesis(code_size=self.code_size, starts=self.starts, steps=self.steps)
