"""RayS: a closed form on planes, the order of its flips, and that it asks for predictions alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_attacks import columns
from tests.workers.test_fgsm import predictions
from tests.workers.test_norm_attacks import Plane, middle_images
from workers.attacks import RayS, Square
from workers.errors import WrongInput
from workers.results import Status


class Hard(nn.Module):
    """Answers 1 for the class that a model predicts and 0 for the others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images)
        return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).float()


class Asked(nn.Module):
    """Predicts class 1, but 2 for one image of levels; remembers the first image of every call, in levels."""

    def __init__(self, other: np.ndarray | None = None) -> None:
        super().__init__()
        self.other, self.levels = other, []  # type: ignore[var-annotated]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        levels = (images * 255).flatten(1).numpy()
        self.levels.append(levels[0])
        hit = np.zeros(len(levels), bool) if self.other is None else (np.abs(levels - self.other) < 0.01).all(axis=1)
        return torch.tensor(np.stack([0.5 + 0 * hit, ~hit, hit], axis=1), dtype=torch.float32)


@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_plane_it_finds_what_the_ball_has(targeted: bool) -> None:
    """The nearest image in L∞ moves every feature against the weight's sign, by the lead over their sum."""
    model = Plane(0, offset=1.0)
    images, labels = middle_images(12, 1), np.ones(12, dtype=np.int64)
    nearest = 255 * model.lead(torch.tensor(images) / 255).numpy() / model.weights.abs().sum().item()
    assert 20 < nearest.min() < nearest.max() < 100
    small, large = int(nearest.min()), int(nearest.max()) + 2
    for levels in (small, int(np.median(nearest)) + 1, large):
        found = RayS(epsilon=levels / 255)(model, images, labels, targets=0 if targeted else None)
        assert not found.success[nearest > levels].any()
        assert found.success[nearest < levels - 1].all()
        assert (found.queries < 5000).all()  # the others are exhausted once no flip helps
    assert found.success.all()
    stuck = RayS(epsilon=(small - 1) / 255)(model, images, labels)
    corner = np.clip(images - (small - 1) * np.sign(model.weights.numpy()).astype(int), 0, 255)
    assert (stuck.adversarial == corner).mean() > 0.95  # weights next to 0 gain less than the tolerance
    assert (stuck.status == Status.EXHAUSTED).all()


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_it_needs_the_predicted_class_alone(kind: str, goal: str) -> None:
    model, shape, classes = random_model(kind, 30)
    images = random_images(shape, 30, 31)
    labels = predictions(model, images)
    targets = None if goal == "untargeted" else (labels + 1) % classes
    attack = RayS(epsilon=0.1, max_queries=400)
    soft, hard = (columns(attack(asked, images, labels, targets=targets)) for asked in (model, Hard(model)))
    confidences = ("clean_confidence", "adversarial_confidence")
    assert {name: soft[name] for name in soft if name not in confidences} == {
        name: hard[name] for name in hard if name not in confidences
    }
    assert 0 < sum(soft["success"]) < 30


def test_it_finds_what_square_cannot_where_outputs_tell_nothing() -> None:
    model, shape, _ = random_model("colour", 30)
    images = random_images(shape, 40, 31)
    labels = predictions(model, images)
    rays, square = (attack(epsilon=0.06, max_queries=300)(Hard(model), images, labels) for attack in (RayS, Square))
    assert rays.success.sum() > 2 * square.success.sum() > 0


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (2, 3, 2), (3, 1, 7)])
def test_flips_all_then_halves_of_halves_and_ends_after_single_features(shape: tuple[int, int, int]) -> None:
    count, images = int(np.prod(shape)), np.full((1, *shape), 128, np.uint8)
    blind = Asked()
    RayS(max_queries=1)(blind, images, np.array([1]))
    start = blind.levels[1]  # behind the clean prediction; all of it black or white
    assert set(start) in ({0.0}, {255.0})

    expected = []
    size = 1 << (count - 1).bit_length()
    for parts in (2**level for level in range(size.bit_length())):
        side = -(-count // parts)
        for first in range(0, count, side):
            expected.append([(place in range(first, first + side)) != (start[place] > 128) for place in range(count)])
    model = Asked(start)  # whose only success is the start
    found = RayS(epsilon=1 / 255)(model, images, np.array([1]))
    flips = np.array(model.levels[1:-1][-len(expected) :]) > 128
    assert flips.tolist() == expected
    assert found.status.tolist() == [Status.EXHAUSTED]
    assert found.queries.tolist() == [len(model.levels) - 2]
    assert np.array_equal(found.adversarial.flatten(), 128 + np.sign(start - 128))


def test_starts_are_random_blocks_of_every_size_until_one_reaches_the_goal() -> None:
    model, images = Asked(), random_images((1, 4, 4), 1, 34)
    found = RayS(max_queries=500)(model, images, np.array([1]))
    starts = np.array(model.levels[1:-1])
    assert found.queries.tolist() == [len(starts)] == [500]
    assert found.status.tolist() == [Status.EXHAUSTED]
    assert np.array_equal(found.adversarial, images)
    assert set(np.rint(starts).flatten()) == {0, 255}
    for level in range(5):
        blocks = starts[level::5].reshape(100, 2**level, -1) > 128
        assert (blocks == blocks[:, :, :1]).all()
        assert 0.3 < blocks.mean() < 0.7
        assert len(np.unique(blocks[:, :, 0], axis=0)) >= min(2**level + 1, 80) - (level == 0)


def test_a_budget_of_queries_is_kept_and_more_of_them_lose_nothing() -> None:
    model, shape, _ = random_model("colour", 35)
    images = random_images(shape, 30, 36)
    labels = predictions(model, images)
    whole = RayS(epsilon=0.05)(model, images, labels)
    assert whole.success.sum() > 0
    for most in (1, 20, 100, 400):
        found = RayS(epsilon=0.05, max_queries=most)(model, images, labels)
        assert np.array_equal(found.success, whole.success & (whole.queries <= most))
        assert np.array_equal(found.queries, np.minimum(whole.queries, most))
        change = np.abs(found.adversarial.astype(int) - images)
        assert change.max() <= 12
        assert np.array_equal(found.adversarial[found.success], whole.adversarial[found.success])


def test_all_of_the_range_ends_at_the_first_success() -> None:
    model, shape, _ = random_model("grey", 37)
    images = random_images(shape, 20, 38)
    found = RayS(epsilon=1)(model, images, predictions(model, images))
    assert found.success.any()
    assert set(np.unique(found.adversarial[found.success])) == {0, 255}


@pytest.mark.parametrize("wrong", [{"epsilon": 1.5}, {"epsilon": 0.001}, {"max_queries": 0}, {"norm": "l2"}])
def test_refuses_wrong_parameters(wrong: dict[str, Any]) -> None:
    with pytest.raises(WrongInput, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        RayS(**wrong)
