"""A substitute of a classifier that gives nothing but its answers."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.numpy
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from workers.budgets import Amount, Number
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.files import exclusive, write_whole
from workers.images import hash_of_images
from workers.models.loading import construct
from workers.parameters import Parameters
from workers.training.checkpoints import restore, same_training, save

__all__ = ["Round", "Substitute", "train_substitute"]

Oracle = Callable[[np.ndarray], np.ndarray]
"""The classes, int64 ``[n]``, that a victim answers to uint8 images ``[n, C, H, W]``."""


class Substitute(Parameters):
    """How a substitute is trained; the defaults are the paper's, but for Adam.

    Papernot et al. (2017), "Practical black-box attacks against machine learning", Algorithm 1: the victim labels a
    few images, a network of the attacker's own learns them, and the images are doubled: each gets a neighbour
    x + λ·sgn(∂F_c(x)/∂x), c being the victim's answer to x and F the network. The new ones are asked about and learned
    with the others, the network going on from where it is. Here images are 8-bit ones, as a victim is given them, so
    λ is rounded to levels.
    """

    NAME: ClassVar[str] = "substitute"

    rounds: int = Field(6, ge=0, le=20, description="Times that the images are doubled.")
    epochs: int = Field(10, ge=1, le=1000, description="Passes over the images after each doubling.")
    reach: Amount = Field(0.1, ge=1 / 255, le=1, description="λ, for pixels in [0, 1].")
    batch_size: int = Field(64, ge=1, description="Images a step.")
    learning_rate: Number = Field(1e-3, gt=0, le=1, description="Adam's.")
    seed: int = Field(42, ge=0, lt=2**31, description="Of the initial weights and the order of images.")

    def steps(self, images: int) -> int:
        """Steps of the whole training from so many images."""
        return sum(self.epochs * -(-(images << number) // self.batch_size) for number in range(self.rounds + 1))


@dataclass(frozen=True)
class Round:
    """What learning the images of one doubling came to.

    Attributes:
        epoch: its number from 1.
        queries: images that the victim has been asked about so far.
        loss: the mean of the last pass.
    """

    epoch: int
    queries: int
    loss: float


def train_substitute(
    how: Substitute,
    images: np.ndarray,
    victim: Oracle,
    architecture: dict[str, Any],
    folder: Path,
    *,
    of: str,
    on_batch: Callable[[int, int, float], None],
) -> Iterator[Round]:
    """Trains a substitute into a model folder and yields after each round, its checkpoint written.

    A folder that holds some rounds of the same training is resumed; nothing is asked again that was answered.

    Args:
        how: the parameters.
        images: uint8 ``[n, C, H, W]`` that the attacker has.
        victim: gives its class, or a number below 0 where it gives none (`REJECTED`, `UNANSWERED`).
        architecture: the attacker's own, as `workers.models.loading` builds it.
        folder: created when absent.
        of: the victim's content hash.
        on_batch: called after each step with the round (from 1), the step and its loss.

    Yields:
        Every round, those already in the folder first.

    Raises:
        WrongInput: when the folder holds another training, or the victim answers to no image.
    """
    said = how.model_dump(mode="json", exclude={"rounds"})
    card: dict[str, Any] = {
        "architecture": architecture,
        "training": said | {"victim": of, "images": len(images), "first": hash_of_images(images)},
        "epochs": [],
    }
    found = same_training(folder, card, how.rounds + 1)
    yield from (Round(**one) for one in found["epochs"])
    if len(found["epochs"]) == how.rounds + 1:
        return
    with exclusive(folder):
        card = same_training(folder, card, how.rounds + 1)
        with torch.random.fork_rng(devices=[]):  # the layers draw from torch's own stream
            torch.manual_seed(how.seed)
            model = construct(architecture)
        optimizer = torch.optim.Adam(model.parameters(), lr=how.learning_rate)
        answers = np.empty(0, dtype=np.int64)
        if card["epochs"]:
            restore(folder, card["weights"], model, [optimizer])
            kept = safetensors.numpy.load_file((folder / card["weights"]).with_suffix(".queries"))
            images, answers = kept["images"], kept["answers"]
        for number in range(len(card["epochs"]) + 1, how.rounds + 2):
            if number > 1:
                neighbours = _neighbours(DenseEvaluator(model.eval()), images, answers, round(255 * how.reach))
                images = np.concatenate([images, neighbours])
            answers = np.concatenate([answers, victim(images[len(answers) :])])
            if not (answers >= 0).any():
                raise WrongInput(f"the victim answers to none of {len(answers)} images: there is nothing to learn from")
            loss = _learn(how, model, optimizer, images, answers, number, on_batch)
            done = Round(number, len(answers), loss)
            card["epochs"].append(asdict(done))
            asked = safetensors.numpy.save({"images": images, "answers": answers})
            write_whole(folder / f"epoch-{number:03d}.queries", asked)
            save(folder, card, model, [optimizer])
            yield done


def _learn(
    how: Substitute,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: np.ndarray,
    answers: np.ndarray,
    number: int,
    on_batch: Callable[[int, int, float], None],
) -> float:
    """Some passes over the images that were answered; returns the mean loss of the last."""
    model.train()
    answered = answers >= 0
    learned, labels = torch.tensor(images[answered]), torch.tensor(answers[answered])
    generator = torch.Generator().manual_seed(how.seed * 1_000_003 + number)
    losses: list[float] = []
    step = 0
    for _ in range(how.epochs):
        losses = []
        for chosen in torch.split(torch.randperm(len(learned), generator=generator), how.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model(learned[chosen].float().div(255)), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            losses.append(loss.item())
            on_batch(number, step, losses[-1])
    return float(np.mean(losses))


def _neighbours(evaluator: DenseEvaluator, images: np.ndarray, answers: np.ndarray, levels: int) -> np.ndarray:
    """Each image moved by some levels along the sign of ∂F_c/∂x; c is the network's own class where none was answered.

    The gradient is that of log F_c, whose sign is the same and which does not vanish with F_c.
    """

    def of_class(logits: Tensor, part: slice) -> list[Tensor]:
        asked = torch.tensor(answers[part])
        classes = torch.where(asked < 0, logits.argmax(dim=1), asked)
        return [one_hot(classes, logits.shape[1]) - logits.softmax(dim=1)]

    _, (gradient,) = evaluator.gradients(torch.tensor(images), of_class)
    moved = images.astype(np.int16) + levels * gradient.sign().numpy().astype(np.int16)
    return moved.clip(0, 255).astype(np.uint8)
