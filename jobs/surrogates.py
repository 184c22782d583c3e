"""Models that stand for a victim that nobody can look into: trained on the same task, or from its answers alone."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch

from jobs.interruption import keeping
from jobs.progress import progress
from jobs.train import epochs_of, followed, train_model
from workers.evaluation.answers import answers
from workers.images import Dataset, hash_of_images
from workers.models.loading import ModelRecipe, read_model
from workers.training.classifiers import Recipe
from workers.training.kernel import Kernel, fit_kernel
from workers.training.perceptron import Perceptron
from workers.training.plain import Plain
from workers.training.substitute import Substitute, train_substitute

__all__ = ["Made", "Workshop", "quick_surrogate"]

BATCH = 128
SEED = 43
"""Not the default of ``brittle train``: a surrogate has other initial weights than its victim."""


QUICK_STEPS = 240
QUICK_IMAGES = 10_000
QUICK_RATE = 2e-3


@dataclass(frozen=True)
class Made:
    """A surrogate: its name, how it was made in a few words, its model folder, the queries it took."""

    name: str
    what: str
    folder: Path
    queries: int = 0


@dataclass(frozen=True)
class Workshop:
    """Makes surrogates into model folders, or finds them made.

    Attributes:
        training: what they are trained on, but for substitutes.
        test: images of the same shape, to measure them on.
        first: uint8 ``[n, C, H, W]``, what substitutes begin with.
        epochs: of each network.
        queries: that a substitute may make; as many as it begins with at least.
        folder: of all model folders; each is named by what it is made from.
    """

    training: Dataset
    test: Dataset
    first: np.ndarray
    epochs: int
    queries: int
    folder: Path

    def make(self, kind: str, victims: Mapping[str, ModelRecipe]) -> list[Made]:
        """The surrogates of a kind: one, or a substitute for each victim.

        Raises:
            WrongInput: for images that they cannot be trained on.
            Interrupted: when stopped; the same command goes on.
        """
        try:
            torch.set_num_threads(joblib.cpu_count())
            if kind == "substitute":
                return [self._substitute(name, victim) for name, victim in victims.items()]
            return [self._kernel() if kind == "kernel" else self._network(kind)]
        finally:
            torch.set_num_threads(1)  # as in an actor of the default size

    @property
    def classes(self) -> int:
        """Of every surrogate."""
        return max(self.training.classes, self.test.classes, 2)

    def _network(self, kind: str) -> Made:
        training, defense = self.training, Perceptron() if kind == "mlp" else Plain()
        what = {"seed": "the CNN, another seed", "mlp": "a multilayer perceptron"}.get(kind, "")
        if kind == "half":
            half = np.sort(np.random.default_rng(SEED).permutation(len(training))[: len(training) // 2])
            training = Dataset(training.images[half], training.labels[half], training.split, training.name)
            what = f"the CNN, on {len(half)} of {len(self.training)} training images"
        recipe = Recipe(epochs=self.epochs, batch_size=min(BATCH, len(training)), seed=SEED)
        place = self._place(kind, recipe.epochs, training.content_hash())
        train_model(training, self.test, recipe, place, defense)
        return Made(kind, what, place)

    def _kernel(self) -> Made:
        how = Kernel(seed=SEED)
        place = self._place("kernel", how.model_dump_json(), self.training.content_hash())
        with progress(1, "fitting the kernel machine", "fits") as bar:
            fit_kernel(how, self.training, self.classes, place)
            bar.advance(1)
        return Made("kernel", "logistic regression on an RBF kernel, no network", place)

    def _substitute(self, name: str, victim: ModelRecipe) -> Made:
        doublings = (self.queries // len(self.first)).bit_length() - 1
        how, model = Substitute(rounds=doublings, seed=SEED), victim.build()
        first = hash_of_images(self.first)
        place = self._place("substitute", how.model_dump_json(), victim.content_hash, first)
        run = partial(
            train_substitute,
            how,
            self.first,
            partial(answers, model),
            Plain().architecture(self.test.shape, self.classes),
            place,
            of=victim.content_hash,
        )
        rounds, queries = how.rounds + 1, 0
        with keeping(place):
            for done, _ in followed(run, rounds, -(-how.steps(len(self.first)) // rounds), f"the substitute of {name}"):
                queries = done.queries
        what = f"learned from {queries} answers of {name}, of {len(self.first)} images at first"
        return Made(f"substitute-{name}", what, place, queries)

    def _place(self, kind: str, *made_from: object) -> Path:
        return self.folder / f"{kind}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:8]}"


def quick_surrogate(images: Dataset, folder: Path) -> ModelRecipe:
    """The CNN, trained for seconds on the very images that are attacked, or found trained.

    Args:
        images: labelled ones; of many a random `QUICK_IMAGES`.
        folder: the model folder.

    Raises:
        WrongInput: for images that the CNN does not take.
        Interrupted: when stopped; the same command goes on.
    """
    if len(images) > QUICK_IMAGES:
        some = np.sort(np.random.default_rng(SEED).permutation(len(images))[:QUICK_IMAGES])
        images = Dataset(images.images[some], images.labels[some], images.split, images.name)
    size = min(BATCH, len(images))
    steps = len(images) // size
    recipe = Recipe(epochs=-(-QUICK_STEPS // steps), batch_size=size, learning_rate=QUICK_RATE, seed=SEED)
    seen = Dataset(images.images[:1000], images.labels[:1000], images.split, images.name)
    for _ in epochs_of(images, seen, recipe, folder, Plain(), lambda stage: "training a surrogate"):
        pass
    return read_model(str(folder))
