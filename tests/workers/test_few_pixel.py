"""What few-pixel searches share: uniform subsets, the best candidate kept, and budgets that are exact."""

from itertools import combinations
from math import comb
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import ATTACKS, CMAES, CornerSearch, SparseRS
from workers.attacks.few_pixel import FewPixelAttack, Incumbents, subsets
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.search import Batch


@pytest.mark.parametrize(("size", "universe"), [(1, 6), (2, 5), (3, 6), (5, 6), (4, 4)])
def test_all_subsets_are_equally_likely(size: int, universe: int) -> None:
    drawn = subsets(np.random.default_rng(90), 20_000, size, universe)
    assert drawn.shape == (20_000, size)
    found = np.sort(drawn, axis=1)
    counts = [int((found == one).all(axis=1).sum()) for one in combinations(range(universe), size)]
    assert sum(counts) == 20_000
    assert len(counts) == comb(universe, size)
    assert len(counts) == 1 or chisquare(counts).pvalue > 1e-3


class Recorder(FewPixelAttack):
    """Judges given candidates in ragged calls; what was judged is kept by the class."""

    NAME: ClassVar[str] = "recorder"
    JUDGED: ClassVar[list[tuple[torch.Tensor, ...]]] = []

    def _search(self, batch: Batch) -> None:
        incumbents, rng = Incumbents(batch), np.random.default_rng(91)
        self.JUDGED.clear()
        for count in (40, 1, 25):
            active = torch.nonzero(~incumbents.done)[:, 0]
            index = active[torch.tensor(rng.integers(0, len(active), count))]
            position = torch.tensor(rng.integers(0, batch.images[0, 0].numel(), (count, self.pixels)))
            levels = torch.tensor(rng.integers(0, 256, (count, self.pixels, batch.images.shape[1])), dtype=torch.uint8)
            incumbents.judge(index, position, levels)
            self.JUDGED.append((index, position, levels))


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_the_best_candidate_is_kept(kind: str) -> None:
    model, shape, _ = random_model(kind, 92)
    images = random_images(shape, 9, 93)
    labels = predictions(model, images)
    result = Recorder(pixels=4)(model, images, labels)
    best: dict[int, tuple[bool, float, np.ndarray]] = {}
    for call in Recorder.JUDGED:
        for index, position, levels in zip(*(part.numpy() for part in call), strict=True):
            image = images[index].copy()
            for place, level in zip(position, levels, strict=True):
                image[:, place // shape[2], place % shape[2]] = level
            logits = DenseEvaluator(model).logits(torch.tensor(image[None]))[0].numpy().astype(np.float64)
            margin = logits[labels[index]] - np.delete(logits, labels[index]).max()
            rank = (margin >= 0, margin)  # a success before any failure, then the lowest margin
            if index not in best or rank < best[index][:2]:
                best[index] = (*rank, image)
    assert {kind for kind, _, _ in best.values()} == {True, False}
    for index, (failed, _, image) in best.items():
        assert result.success[index] == (not failed)
        assert np.array_equal(result.adversarial[index], image)


class Never(nn.Module):
    """Says class 0 whatever comes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rest = images.mean(dim=(1, 2, 3))
        return torch.stack([torch.full_like(rest, 2), rest], dim=1)


@pytest.mark.parametrize("name", ["random-pixels", "sparse-rs", "cma-es"])
@pytest.mark.parametrize("budget", [1, 2, 7, 100])
@pytest.mark.parametrize("pixels", [1, 2])
def test_budgets_are_spent_and_never_overspent(name: str, budget: int, pixels: int) -> None:
    images = random_images((3, 4, 5), 3, 94)
    attack = ATTACKS[name](pixels=pixels, max_queries=budget)
    result = attack(Never(), images, np.zeros(3, np.int64), targets=1 if budget == 7 else None)
    assert (result.queries == budget).all()
    assert (result.adversarial != images).reshape(3, -1).any(axis=1).all()  # the last one is shown


@pytest.mark.parametrize(("parameters", "spent"), [({}, 500), ({"samples": 30}, 340), ({"samples": 100}, 500)])
def test_corner_search_spends_its_budget(parameters: dict[str, Any], spent: int) -> None:
    """160 single changes of 20 pixels, of which none is a corner; then 3 × 2 groups."""
    images = np.clip(random_images((3, 4, 5), 3, 95), 1, 254)
    attack = CornerSearch(pixels=4, max_queries=500, **parameters)
    result = attack(Never(), images, np.zeros(3, np.int64))
    assert (result.queries == spent).all()
    alone = CornerSearch(pixels=1, max_queries=500)(Never(), images, np.zeros(3, np.int64))
    assert (alone.queries == 160).all()


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (CornerSearch(pixels=2, max_queries=215), "--max-queries: .* takes 216, got 215"),
        (SparseRS(pixels=108), "--pixels: must leave some of the 108 pixels out, got 108"),
        (CMAES(pixels=109), "--pixels: an image has 108 pixels, got 109"),
    ],
)
def test_refuses_what_images_cannot_take(attack: FewPixelAttack, says: str) -> None:
    model, shape, _ = random_model("grey", 96)
    images = random_images(shape, 1, 97)
    with pytest.raises(WrongInput, match=says):
        attack(model, images, predictions(model, images))
