"""What brittle analyze keeps is used for the same inputs alone: each of them is changed once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import analysis.activations
import analysis.embeddings
import analysis.figures.embeddings
import analysis.statistics
from analysis.activations import Changes, Layer
from analysis.array_cache import ArrayCache
from analysis.embeddings import Axes
from analysis.pairs import Pairs
from analysis.statistics import Estimate
from jobs.analyze import AnalysisOptions, _Work
from jobs.progress import Parts
from tests.conftest import random_images
from workers.images import Dataset

POINTS, COUNT = 40, 3

MAPS = {"pca", "shown", "tsne", "placed", "faithful"}
ALL = MAPS | {"activations"}


class Inputs:
    """All that decides what is computed, and a run of the whole that computes hardly anything."""

    def __init__(self) -> None:
        zeros = np.zeros(COUNT, dtype=np.int64)
        self.model: nn.Module = nn.Linear(2, 2)
        self.given_hash = "model"
        self.options = AnalysisOptions(points=POINTS, neighbours=4, perplexity=6)
        labels = np.arange(POINTS) % 3
        self.training = Dataset(random_images((1, 4, 5), POINTS, 1), labels, "train", "random")
        self.pairs = Pairs(
            "run", "run", ("a", "b", "c"), np.arange(COUNT), random_images((1, 4, 5), COUNT, 2),
            random_images((1, 4, 5), COUNT, 3), zeros, zeros - 1, zeros, zeros > 0, 0,
        )  # fmt: skip

    def __call__(self, folder: Path) -> set[str]:
        """The names of the files in the cache after a run with these."""
        subject: Any = SimpleNamespace(recipe=SimpleNamespace(given_hash=self.given_hash), dataset=None)
        work = _Work(subject, self.model, ArrayCache(folder), self.options, Parts(), 1)
        work.maps({"run": self.pairs}, self.training)
        work._changes(self.pairs, lambda _: None)
        return {path.name for path in folder.iterdir()}


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> Inputs:
    def flat(rows: int, columns: int = 2) -> np.ndarray:
        return np.zeros((rows, columns))

    computed: dict[str, Callable[..., Any]] = {
        "representations": lambda model, images, on_images: flat(len(images)),
        "principal_axes": lambda rows, seed: Axes(np.zeros(2), np.eye(2), np.ones(2) / 2),
        "tsne": lambda points, **how: flat(len(points)),
        "joint_tsne": lambda points, new, **how: (flat(len(points)), flat(len(new))),
        "placed": lambda points, old, new, **how: flat(len(new)),
        "nearest_labels": lambda reference, labels, rows, k, jobs: flat(len(rows), k),
        "faithfulness": lambda full, maps, k, **how: dict.fromkeys(maps, Estimate(0.5, (0.4, 0.6))),
    }
    for name, make in computed.items():
        monkeypatch.setattr(analysis.embeddings, name, make)
    for name in ("map_exhibit", "neighbour_exhibit"):
        monkeypatch.setattr(analysis.figures.embeddings, name, lambda *_, **__: None)
    n = np.ones(COUNT)
    found = Changes((Layer("input", "input"),), n[:, None], n[:, None, None], n, n[:, None], n[:, None] > 0)
    monkeypatch.setattr(analysis.activations, "activation_changes", lambda *_, **__: found)
    return Inputs()


def again(folder: Path, inputs: Inputs) -> set[str]:
    """What was not taken from the cache."""
    before = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return {name.split("-")[0] for name in inputs(folder) - before}


def other(images: np.ndarray) -> np.ndarray:
    changed = images.copy()
    changed[-1, 0, 0, 0] ^= 1
    return changed


def change(inputs: Inputs, what: str) -> None:
    training, pairs, options = inputs.training, inputs.pairs, inputs.options
    match what:
        case "model":
            inputs.given_hash = "another"
        case "device":
            inputs.model = nn.Linear(2, 2, device=torch.device("meta"))
        case "training images":
            inputs.training = replace(training, images=other(training.images))
        case "labels":
            inputs.training = replace(training, labels=(training.labels + 1) % 3)
        case "clean images":
            inputs.pairs = replace(pairs, clean=other(pairs.clean))
        case "adversarial images":
            inputs.pairs = replace(pairs, adversarial=other(pairs.adversarial))
        case "ids":
            inputs.pairs = replace(pairs, image=pairs.image + 1)
        case _:
            inputs.options = options.model_copy(update={what: getattr(options, what) + 1})


@pytest.mark.parametrize(
    ("what", "made"),
    [
        ("model", ALL),
        ("device", ALL),
        ("training images", MAPS),
        ("labels", MAPS),
        ("clean images", {"shown", "placed", "activations"}),
        ("adversarial images", {"shown", "placed", "activations"}),
        ("ids", {"activations"}),
        ("seed", ALL),
        ("perplexity", {"tsne", "placed", "faithful"}),
        ("neighbours", {"shown", "faithful"}),
    ],
)
def test_what_is_made_of_an_input_is_made_again_for_another(
    what: str, made: set[str], inputs: Inputs, tmp_path: Path
) -> None:
    assert again(tmp_path, inputs) == ALL
    assert again(tmp_path, inputs) == set()
    change(inputs, what)
    assert made <= again(tmp_path, inputs)


@pytest.mark.parametrize("what", ["clean images", "adversarial images", "labels", "seed", "perplexity", "model"])
def test_a_joint_map_is_of_the_images_shown_too(what: str, inputs: Inputs, tmp_path: Path) -> None:
    again(tmp_path, inputs)
    inputs.options = inputs.options.model_copy(update={"refit": True})
    assert {"joint", "faithful"} <= again(tmp_path, inputs)
    change(inputs, what)
    assert {"joint", "faithful"} <= again(tmp_path, inputs)


@pytest.mark.parametrize("module", ["activations", "embeddings", "statistics"])
def test_other_code_uses_nothing_kept(
    module: str, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(tmp_path / "cache", inputs)
    changed = tmp_path / "changed.py"
    changed.write_text("# another")
    monkeypatch.setattr(getattr(analysis, module), "__file__", str(changed))
    assert again(tmp_path / "cache", inputs) == ALL
