"""What is attacked: a model and a data set, loaded and fitted to each other."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jobs.progress import progress, say
from workers.budgets import number
from workers.errors import WrongInput
from workers.images import Dataset, Layout
from workers.sources import NAMES, is_single_file, load_data

if TYPE_CHECKING:
    from torch import nn

    from analysis.statistics import Rate
    from workers.models.loading import ModelRecipe
    from workers.remedies.remedies import Remedies

__all__ = ["Subject", "SubjectOptions", "load_subject", "load_training", "numbers"]

NEAR_CHANCE = 1.5
"""A clean accuracy below this many times chance draws a warning."""


class SubjectOptions(BaseModel):
    """Which model, and which images."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        description="Model folder, torch.export program (.pt2), or package.module:function that returns an nn.Module."
    )
    data: str = Field(description=f"{', '.join(NAMES)}, or a path: .npz, .parquet, IDX, a folder of them.")
    split: str | None = Field(None, description="train or test; test when absent. A single file has no splits.")
    layout: Layout | None = Field(
        None, description="Order of the axes of images that are arrays: chw or hwc. Asked for where it is in doubt."
    )
    weights: Path | None = Field(None, description="Safetensors for a model given as module:function.")
    mean: str = Field("", description="Normalisation put before the model: a mean for each channel, as 0.5,0.5,0.5.")
    std: str = Field("", description="The standard deviation for each channel.")


@dataclass(frozen=True)
class Subject:
    """A model and a data set that fit.

    Attributes:
        recipe: the model as it travels.
        model: the model in this process, on the CPU.
        dataset: the images.
        classes: the model's number of classes.
    """

    recipe: "ModelRecipe"
    model: "nn.Module"
    dataset: Dataset
    classes: int

    @cached_property
    def data_hash(self) -> str:
        """The data set's content hash."""
        return self.dataset.content_hash()

    @cached_property
    def extremes(self) -> tuple[np.ndarray, np.ndarray]:
        """The most and the least likely class of every image, int64 ``[N]`` each.

        Of an image without a finite answer the former is `UNANSWERED`, and the latter 0.
        """
        import torch

        from workers.evaluation.dense import DenseEvaluator
        from workers.evaluation.scores import answered, predicted

        evaluator, most, least = DenseEvaluator(self.model), [], []
        with progress(len(self.dataset), "clean predictions") as bar:
            for start in range(0, len(self.dataset), 1024):
                logits = evaluator.logits(torch.tensor(self.dataset.images[start : start + 1024]))
                most.append(predicted(logits).numpy())
                least.append(logits.argmin(dim=1).masked_fill(~answered(logits), 0).numpy())
                bar.advance(len(logits))
        return np.concatenate(most), np.concatenate(least)

    def searched_as(self, remedies: "Remedies", surrogate: "ModelRecipe | None" = None) -> "Subject":
        """The same subject, whose answers still count, searched under remedies or through another model."""
        recipe = self.recipe.searched_as(remedies, surrogate)
        same = recipe.content_hash == self.recipe.content_hash
        return self if same else replace(self, recipe=recipe, model=recipe.build())

    @property
    def correct(self) -> np.ndarray:
        """bool ``[N]``: which images the model classifies as labelled."""
        return self.extremes[0] == self.dataset.labels

    @property
    def accuracy(self) -> "Rate":
        """The share of the images that the model classifies as labelled; those without an answer are unknown."""
        from analysis.summary import clean_accuracy

        return clean_accuracy(self.extremes[0], self.dataset.labels)

    def rejected(self, ids: np.ndarray) -> np.ndarray | None:
        """bool ``[n]``, which clean images the model itself rejects; None for one that never does."""
        from workers.detectors.guarded import Guarded
        from workers.evaluation.answers import REJECTED, answers

        if not isinstance(self.model, Guarded):
            return None
        with progress(len(ids), "clean images that are rejected") as bar:
            return answers(self.model, self.dataset.images[ids], bar.advance) == REJECTED

    def warn_near_chance(self, accuracy: "Rate") -> None:
        """Says so when a clean accuracy is, or may be, near chance; behind a detector the repair may be why."""
        if accuracy.low is None or accuracy.unknown == accuracy.total or accuracy.low >= NEAR_CHANCE / self.classes:
            return
        guarded = self.recipe.architecture.get("name") == "guarded"
        hint = "a model that expects normalised images needs --mean and --std"
        why = "the repair of its detector may be why" if guarded else hint
        near = f"near chance; {why}"
        if accuracy.unknown:
            near = f"which may be {near}; {accuracy.unknown} of {accuracy.total} have no answer"
        say(f"warning: clean accuracy on these images of {self.dataset.name} is {accuracy.share}, {near}")


def load_subject(options: SubjectOptions) -> Subject:
    """Loads model and data.

    Sets torch to one thread in this process, as in an actor of the default size, so that the clean predictions
    that ``--correct`` selects by are an actor's.

    Raises:
        WrongInput: when one is wrong, or they do not fit.
    """
    dataset = load_data(options.data, options.split, layout=options.layout, say=say)
    import torch

    from workers.models.loading import check_model, read_model

    torch.set_num_threads(1)
    recipe = read_model(
        options.model,
        weights=options.weights,
        mean=numbers(options.mean, float, "--mean"),
        std=numbers(options.std, float, "--std"),
    )
    if recipe.mean and len(recipe.mean) not in (1, dataset.shape[0]):
        raise WrongInput(f"--mean: images have {dataset.shape[0]} channels, got {len(recipe.mean)} numbers")
    model = recipe.build()
    return Subject(recipe, model, dataset, check_model(model, dataset))


def numbers(text: str, kind: type[Any], flag: str) -> tuple[Any, ...]:
    """Reads numbers separated by commas; empty text is none.

    Raises:
        WrongInput: naming the flag.
    """
    try:
        read = number if kind is float else kind
        values = tuple(read(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        what = "whole numbers" if kind is int else "numbers, as 0.03 or 8/255,"
        raise WrongInput(f"{flag}: expected {what} separated by commas, got {text!r}") from None
    return values


def load_training(training_data: str | None, data: str, attacked: Dataset) -> Dataset:
    """What detectors and surrogates are trained on.

    Args:
        training_data: a name or a path; the train split of `data` when None.
        data: of the images that are attacked.
        attacked: those images; arrays are read in the order of axes that was named for them.

    Raises:
        WrongInput: when it cannot be read, there is nothing but a single file to attack, or it is that, or of another
            shape.
    """
    name = training_data or data
    try:
        single = is_single_file(name)
        if training_data is None and single:
            raise WrongInput("--data is a single file: give --training-data, or a folder with train and test")
        training = load_data(name, None if single else "train", layout=attacked.layout, say=say)
    except WrongInput as error:
        if training_data is None:
            raise
        raise WrongInput(str(error).replace("--data", "--training-data", 1)) from None
    if training.shape != attacked.shape:
        raise WrongInput(f"--training-data: images are {training.shape}, those of {attacked.name} are {attacked.shape}")
    if training.content_hash() == attacked.content_hash():
        raise WrongInput("--training-data: is what is attacked; detectors and surrogates must not be trained on that")
    return training
