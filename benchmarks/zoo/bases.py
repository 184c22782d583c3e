"""What the zoo's models stand on: how it is trained, and where it is kept."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.torch
import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.errors import WrongInput
from workers.files import write_whole
from workers.images import Dataset
from workers.models.loading import pack_weights, read_model
from workers.sources import cache_folder
from workers.training.classifiers import Recipe
from workers.training.defense import Defense, Objective
from workers.training.defenses import defense_named
from workers.training.perceptron import Perceptron
from workers.training.plain import Plain
from zoo.networks import NETWORKS

__all__ = ["BASES", "FITTED", "base", "folder", "table", "train"]


class Noise(Plain):
    """No defense, and Gaussian noise on every training image."""

    NAME: ClassVar[str] = "noise"

    spread: float = Field(0.2, gt=0, description="Standard deviation of the noise.")

    def objective(self, earlier: nn.Module | None, training: Dataset) -> Objective:
        def loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, epoch: float) -> Tensor:
            noise = torch.randn(images.shape, generator=generator) * self.spread
            return cross_entropy(model(images + noise), labels)

        return loss


@dataclass(frozen=True)
class Base:
    """How a model is trained.

    Attributes:
        recipe: epochs, step and seed.
        defense: by what; it must stand on no other training where the network is not brittle's own.
        network: of `NETWORKS`; the defense's own architecture when empty.
        images: learned from the first so many training images.
    """

    recipe: Recipe
    defense: Defense = field(default_factory=Plain)
    network: str = ""
    images: int = 60_000


def plain(network: str = "", *, epochs: int = 3, seed: int = 1) -> Base:
    """Without a defense, on a part of the images."""
    return Base(Recipe(epochs=epochs, seed=seed, batch_size=64), network=network, images=10_000)


def adversarial(name: str, epsilon: float, network: str = "", *, seed: int = 1, **parameters: float) -> Base:
    """By an adversarial training, on a part of the images."""
    recipe = Recipe(epochs=3, seed=seed, batch_size=64, learning_rate=2e-3)
    return Base(recipe, defense_named(name, epsilon=epsilon, **parameters), network, images=10_000)


_LONG = Recipe(epochs=3, batch_size=128, learning_rate=2e-3)

BASES: dict[str, Base] = {
    "plain": Base(Recipe()),
    "fgsm": Base(_LONG, defense_named("fgsm")),
    "fgsm-rs-0.3": Base(replace(_LONG, epochs=6), defense_named("fgsm-rs")),
    "pgd-0.3": Base(_LONG, defense_named("pgd", steps=3)),
    "trades-three-steps": Base(_LONG, defense_named("trades", steps=3)),
    "trades-0.3": Base(replace(_LONG, epochs=2), defense_named("trades")),
    "distillation": Base(Recipe(epochs=5, batch_size=128), defense_named("distillation", teacher_epochs=5)),
    "rbf": Base(Recipe(epochs=3, batch_size=128), defense_named("rbf", base_epochs=3)),
    "perceptron": Base(Recipe(epochs=4, batch_size=128), Perceptron(), images=30_000),
    "plain-seed-2": replace(plain(epochs=2, seed=2), images=15_000),
    "plain-seed-3": replace(plain(epochs=5, seed=3), images=15_000),
    **{name: plain(name) for name in NETWORKS},
    "noise-0.2": Base(Recipe(epochs=3, batch_size=64), Noise(spread=0.2), images=15_000),
    "noise-0.5": Base(Recipe(epochs=3, batch_size=64), Noise(spread=0.5), images=15_000),
    "fgsm-rs-0.1": adversarial("fgsm-rs", 0.1),
    "fgsm-rs-0.2": adversarial("fgsm-rs", 0.2),
    "pgd-0.2": adversarial("pgd", 0.2, steps=3),
    "pgd-0.3-seed-2": adversarial("pgd", 0.3, steps=4, seed=2),
    "trades-0.2": adversarial("trades", 0.2, steps=4),
    "max-pool-pgd-0.3": adversarial("pgd", 0.3, "max-pool", steps=4),
    "batch-norm-pgd-0.2": adversarial("pgd", 0.2, "batch-norm", steps=3),
    "tanh-pgd-0.2": adversarial("pgd", 0.2, "tanh", steps=3),
    "gelu-trades-0.2": adversarial("trades", 0.2, "gelu", steps=4),
}
"""Networks by name, and how each is trained."""


def folder() -> Path:
    """Where all is kept: ``$BRITTLE_ZOO``, else a folder beside the cached data."""
    return Path(os.environ.get("BRITTLE_ZOO") or cache_folder().with_name("zoo"))


def base(name: str) -> nn.Module:
    """A trained network, in ``eval()`` mode, its parameters frozen.

    Raises:
        WrongInput: when it is not there.
    """
    if not BASES[name].network:
        if not (folder() / name).is_dir():
            raise _absent(name)
        return read_model(str(folder() / name)).build()
    network = NETWORKS[BASES[name].network]()
    network.load_state_dict(table(name))
    return network.eval().requires_grad_(False)


def table(name: str) -> dict[str, Tensor]:
    """Tensors that are kept in one file, by name.

    Raises:
        WrongInput: when it is not there.
    """
    if not (path := _file(name)).is_file():
        raise _absent(name)
    return safetensors.torch.load_file(path)


def train(training: Dataset, test: Dataset, say: Callable[[str], None] = print) -> None:
    """Trains and fits all that is not there yet.

    Raises:
        WrongInput: when the folder holds other trainings under these names.
    """
    folder().mkdir(parents=True, exist_ok=True)
    for name, how in BASES.items():
        part = Dataset(training.images[: how.images], training.labels[: how.images], training.split, training.name)
        if how.network:
            _train_network(name, how, part, test, say)
        else:
            _train_own(name, how, part, test, say)
    for name in FITTED:
        if not _file(name).exists():
            say(f"{name}: fitting")
            write_whole(_file(name), safetensors.torch.save(FITTED[name](training)))


def _train_own(name: str, how: Base, training: Dataset, test: Dataset, say: Callable[[str], None]) -> None:
    from jobs.train import train_model

    confusion = np.array(train_model(training, test, how.recipe, folder() / name, how.defense))
    say(f"{name}: test accuracy {confusion.trace() / confusion.sum():.2%}")


def _train_network(name: str, how: Base, training: Dataset, test: Dataset, say: Callable[[str], None]) -> None:
    """One training without checkpoints: these take a minute at most."""
    described = asdict(how) | {"defense": how.defense.model_dump(mode="json"), "data": training.content_hash()}
    metadata = {"how": json.dumps(described, sort_keys=True)}
    if (path := _file(name)).exists():
        with safe_open(path, framework="pt") as file:
            if file.metadata() != metadata:
                raise WrongInput(f"{path}: is of another training: remove it to train this one")
        return
    torch.manual_seed(how.recipe.seed)
    network = NETWORKS[how.network]().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=how.recipe.learning_rate)
    objective = how.defense.objective(None, training)
    images, labels = torch.tensor(training.images), torch.tensor(training.labels)
    generator = torch.Generator().manual_seed(how.recipe.seed)
    for epoch in range(how.recipe.epochs):
        batches = torch.randperm(len(images), generator=generator).split(how.recipe.batch_size)
        for step, chosen in enumerate(batches):
            seen, done = images[chosen].float().div(255), epoch + step / len(batches)
            optimizer.zero_grad()
            objective(network, seen, labels[chosen], generator, done).backward()
            optimizer.step()
    with torch.no_grad():
        answers = network.eval()(torch.tensor(test.images).float().div(255)).argmax(dim=1)
    say(f"{name}: test accuracy {(answers == torch.tensor(test.labels)).float().mean():.2%}")
    write_whole(path, safetensors.torch.save(safetensors.torch.load(pack_weights(network)), metadata))


def _fitted_trees(training: Dataset, count: int) -> dict[str, Tensor]:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(count, max_leaf_nodes=1000, random_state=0)
    forest.fit(training.images.reshape(len(training), -1).astype(np.float32) / 255, training.labels)
    fitted = [estimator.tree_ for estimator in forest.estimators_]
    nodes = max(tree.node_count for tree in fitted)

    def padded(columns: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(x, [(0, nodes - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in columns]))

    own = [np.arange(tree.node_count) for tree in fitted]

    def followers(side: str) -> Tensor:
        found = (getattr(tree, side) for tree in fitted)
        return padded(np.where(after < 0, node, after) for after, node in zip(found, own, strict=True))

    return {
        "feature": padded(tree.feature.clip(min=0) for tree in fitted),
        "threshold": padded(tree.threshold.astype(np.float32) for tree in fitted),
        "left": followers("children_left"),
        "right": followers("children_right"),
        "value": padded(
            (tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)).astype(np.float32) for tree in fitted
        ),
        "depth": torch.tensor([max(tree.max_depth for tree in fitted)]),
    }


def _fitted_components(training: Dataset) -> dict[str, Tensor]:
    from sklearn.decomposition import PCA

    images = training.images[:10_000]
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    fitted = PCA(40, svd_solver="randomized", random_state=0).fit(pixels)
    return {"mean": torch.from_numpy(fitted.mean_), "components": torch.tensor(fitted.components_).contiguous()}


def _first_images(training: Dataset) -> dict[str, Tensor]:
    return {"images": torch.tensor(training.images[:5000]), "labels": torch.tensor(training.labels[:5000])}


FITTED: Mapping[str, Callable[[Dataset], dict[str, Tensor]]] = {
    "forest": lambda training: _fitted_trees(training, 40),
    "neighbours": _first_images,
    "principal-components": _fitted_components,
    "tree": lambda training: _fitted_trees(training, 1),
}
"""What is fitted to training images and not trained, as tensors by name."""


def _file(name: str) -> Path:
    return folder() / f"{name}.safetensors"


def _absent(name: str) -> WrongInput:
    return WrongInput(f"{folder()}: has no {name}: run python benchmarks/validity.py --train first")
