"""CornerSearch: its rankings against brute force, its draws against the paper's distribution, and needles."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_de import Spot
from tests.workers.test_fgsm import predictions
from workers.attacks import CornerSearch
from workers.attacks.corner_search import draw_ranks, rankings
from workers.search import Around, Goal


@pytest.mark.parametrize("ranked", [1, 2, 7, 100])
def test_ranks_are_drawn_as_in_the_paper(ranked: int) -> None:
    drawn = draw_ranks(np.random.default_rng(110), 50_000, 3, ranked)
    expected = np.array([2 * ranked - 2 * i + 1 for i in range(1, ranked + 1)]) / ranked**2
    assert drawn.shape == (50_000, 3)
    assert expected.sum() == pytest.approx(1)
    assert ranked == 1 or chisquare(np.bincount(drawn.flatten(), minlength=ranked), expected * 150_000).pvalue > 1e-3


def test_rankings_by_hand() -> None:
    logits, rows = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]]), torch.tensor([0, 1])
    labels = torch.tensor([0, 1])
    assert rankings(logits, rows, Goal(labels, None)).tolist() == [[0.5, 2.0, 0.5], [4.0, -1.0, -1.0]]
    assert rankings(logits, rows, Goal(labels, torch.tensor([1, 0]))).tolist() == [[2.0], [4.0]]


class Sure(nn.Module):
    """Another model that says class 0 whatever comes: its logit is raised."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.lead = model, 9.0 * nn.functional.one_hot(torch.tensor(0), classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) + self.lead


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_candidates_are_of_the_best_single_changes(kind: str, targeted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate's changes against a ranking made by trying every change of one pixel with the whole model."""
    calls: list[tuple[np.ndarray, ...]] = []
    judge = Around.judge

    def spy(self: Around, *candidates: torch.Tensor) -> Any:
        calls.append(tuple(part.numpy() for part in candidates))
        return judge(self, *candidates)

    monkeypatch.setattr(Around, "judge", spy)
    inner, shape, classes = random_model(kind, 111)
    model = Sure(inner, classes).eval()
    images, labels = random_images(shape, 3, 112), np.zeros(3, np.int64)
    targets = np.array([1, 2, 3]) if targeted else None
    result = CornerSearch(pixels=3, ranked=5, max_queries=900)(model, images, labels, targets=targets)
    assert (result.queries == 900).all()

    corners = [tuple(255 * (code >> c & 1) for c in range(shape[0])) for code in range(2 ** shape[0])]
    first, *groups = calls
    assert len(groups) == 2 * (1 if targeted else classes)
    for image in range(3):
        flat = images[image].reshape(shape[0], -1)
        changes = [
            (place, colour)
            for place in range(flat.shape[1])
            for colour in corners
            if colour != tuple(flat[:, place].tolist())
        ]
        judged = first[0] == image
        tried = zip(first[1][judged, 0].tolist(), map(tuple, first[2][judged, 0].tolist()), strict=True)
        assert sorted(tried) == sorted(changes)
        changed = np.repeat(flat[None], len(changes), axis=0)
        for number, (place, colour) in enumerate(changes):
            changed[number, :, place] = colour
        with torch.no_grad():
            logits = model(torch.tensor(changed.reshape(-1, *shape)).float() / 255).double().numpy()
        own = logits[:, labels[image]]
        others = np.delete(logits, labels[image], axis=1).max(axis=1)
        for number, (index, position, levels) in enumerate(groups):
            column = targets[image] if targets is not None else number % classes
            score = own - others if column == labels[image] else own - logits[:, column]
            worst = np.sort(score)[4] + 1e-3
            allowed = {change for change, value in zip(changes, score, strict=True) if value <= worst}
            mine = index == image
            colours = map(tuple, levels[mine].reshape(-1, shape[0]).tolist())
            used = set(zip(position[mine].flatten().tolist(), colours, strict=True))
            assert position.shape[1] == 2 + number // (1 if targeted else classes)
            assert used <= allowed
            assert len(used) >= 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("target", [None, 1])
def test_finds_a_needle(target: int | None, channels: int) -> None:
    images = np.zeros((2, channels, 5, 4), dtype=np.uint8)
    result = CornerSearch(pixels=1)(Spot(channels - 1, 4, 3, 255), images, np.array([0, 0]), targets=target)
    assert result.success.all()
    assert (result.adversarial[:, -1, 4, 3] == 255).all()
    assert (result.queries == 20 * (2**channels - 1)).all()  # all but what the pixels are


class Two(nn.Module):
    """Class 1 wins only where two given pixels are both white; each alone comes nearer."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both = images[:, 0, 1, 2] + images[:, 0, 4, 0]
        return torch.stack([torch.full_like(both, 1.5), both], dim=1)


def test_combines_the_best_single_changes() -> None:
    """The two needles lead both rankings of 4: (7/16 · 5/16) · 2 = 27 % of the candidates of two pixels hit."""
    images = np.zeros((20, 1, 5, 4), dtype=np.uint8)
    result = CornerSearch(pixels=2, ranked=4, samples=40)(Two(), images, np.zeros(20, np.int64))
    assert result.success.all()
    assert (result.distances.l0 == 2).all()
    assert (result.queries == 20 + 40).all()


def test_generations_are_an_images_own_when_budgets_run_out_apart() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(40)
        model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3)).eval()
    images = random_images((3, 4, 6), 9, 41)
    labels = predictions(model, images)
    attack = CornerSearch(pixels=3, ranked=1, samples=3, max_queries=192)
    whole = attack(model, images, labels)
    for row in range(9):
        alone = attack(model, images[row : row + 1], labels[row : row + 1], ids=[row])
        assert alone.generations[0] == whole.generations[row]
    assert len(set(whole.generations.tolist())) > 1
