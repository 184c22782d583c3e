"""Exact verdicts against brute force with the whole model, and the beam that is built on them."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import OnePixelExact, PixelBeam, TwoPixelExact
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.images import Dataset
from workers.results import Status, by_products_table


def fragile(shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
    """A linear model on which single pixels matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 12), nn.ReLU(), nn.Linear(12, classes)).eval()


def every_change(image: np.ndarray, pixels: int, values: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """All images that k pixels make, and the pixels of each."""
    height, width = image.shape[1:]
    made, used = [], []
    for places in itertools.combinations(range(height * width), pixels):
        for chosen in itertools.product(values, repeat=pixels):
            copy = image.copy()
            for place, value in zip(places, chosen, strict=True):
                copy[:, place // width, place % width] = value
            made.append(copy)
            used.append(places)
    return np.array(made), np.array(used)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", ["one", "extremes", "two", "colour"])
def test_equals_brute_force(kind: str, targeted: bool) -> None:
    shape = (3, 3, 3) if kind == "colour" else (1, 4, 3)
    model = fragile(shape, 4, 1)
    images = random_images(shape, 12, 2)
    labels = predictions(model, images)
    targets = (labels + 1) % 4 if targeted else None
    grey = [(level,) for level in range(256)]
    corners = list(itertools.product((0, 255), repeat=shape[0]))
    attack, pixels, values = {
        "one": (OnePixelExact(), 1, grey),
        "extremes": (OnePixelExact(levels="extremes"), 1, corners),
        "two": (TwoPixelExact(), 2, corners),
        "colour": (OnePixelExact(), 1, corners),
    }[kind]
    result = attack(model, images, labels, targets=targets)
    seen = set()
    for row in range(len(images)):
        made, used = every_change(images[row], pixels, values)
        with torch.no_grad():
            logits = model(torch.tensor(made).float().div(255)).numpy()
        found = logits.argmax(axis=1)
        hits = found != labels[row] if targets is None else found == targets[row]
        assert result.by_products["successes"][row] == hits.sum()
        named = made[0, 0].size * 256 ** shape[0]  # what one pixel can become
        assert result.by_products["untried"][row] == (0 if kind == "two" else named - len(made))
        assert np.array_equal(
            result.by_products["map"][row], np.bincount(used[hits].ravel(), minlength=shape[1] * shape[2])
        )
        assert result.queries[row] == len(made)
        assert result.success[row] == hits.any()
        whole = kind in ("one", "two")
        assert hits.any() or result.status[row] == (Status.CERTIFIED if whole else Status.EXHAUSTED)
        chosen = labels[row] if targets is None else targets[row]
        lead = logits[:, chosen] - np.delete(logits, chosen, axis=1).max(axis=1)
        stored = model(torch.tensor(result.adversarial[row : row + 1]).float().div(255)).detach().numpy()[0]
        kept = stored[chosen] - np.delete(stored, chosen).max()
        sign = 1 if targets is None else -1
        assert sign * kept == pytest.approx((sign * lead).min(), abs=1e-4)
        seen.add(bool(hits.any()))
    assert True in seen


def test_one_pixel_on_mnist_equals_the_whole_model(mnist: Dataset, mnist_model: nn.Module, correct: np.ndarray) -> None:
    """All 200,704 changes of a digit near the boundary and of one far from it."""
    logits = DenseEvaluator(mnist_model).logits(torch.tensor(mnist.images[correct]))
    top = logits.topk(2).values
    order = (top[:, 0] - top[:, 1]).argsort().numpy()
    ids = correct[order[[0, -1]]]
    result = OnePixelExact()(mnist_model, mnist.images[ids], mnist.labels[ids], ids=ids)
    positions, levels = np.divmod(np.arange(784 * 256), 256)
    for row, image_id in enumerate(ids):
        made = np.repeat(mnist.images[image_id].reshape(1, 784), len(positions), axis=0)
        made[np.arange(len(made)), positions] = levels
        found = DenseEvaluator(mnist_model).logits(torch.tensor(made.reshape(-1, 1, 28, 28))).argmax(dim=1).numpy()
        hits = found != mnist.labels[image_id]
        assert result.by_products["successes"][row] == hits.sum()
        assert np.array_equal(
            result.by_products["map"][row].reshape(28, 28).ravel(), np.bincount(positions[hits], minlength=784)
        )
    assert list(result.status) == [Status.SUCCESS, Status.CERTIFIED]
    table = by_products_table(result)
    assert table is not None
    assert table.column_names == ["image_id", "target", "params_hash", "successes", "untried", "map"]
    assert table["map"].to_pylist()[0] == result.by_products["map"][0].tolist()


def test_beam_of_one_pixel_is_the_exact_verdict() -> None:
    shape = (1, 6, 5)
    model = fragile(shape, 4, 3)
    images = random_images(shape, 12, 4)
    labels = predictions(model, images)
    exact = OnePixelExact()(model, images, labels)
    beam = PixelBeam(pixels=1, levels="all")(model, images, labels)
    assert np.array_equal(exact.success, beam.success)
    assert np.array_equal(exact.adversarial[exact.success], beam.adversarial[exact.success])
    assert (beam.queries == 30 * 255).all()  # the 30 changes to the level that is there already are not asked


Changes = frozenset[tuple[int, tuple[int, ...]]]


def slow_beam(
    model: nn.Module, image: np.ndarray, own: int, targeted: bool, attack: PixelBeam
) -> tuple[np.ndarray, bool, int]:
    """The beam with sets, dictionaries and the whole model in float64: image, success, queries."""
    exact = copy.deepcopy(model).double()
    size = image.shape[1] * image.shape[2]
    levels = range(256) if attack.levels == "all" else (0, 255)
    values = list(itertools.product(levels, repeat=len(image)))

    def made(changes: Changes) -> np.ndarray:
        changed = image.copy()
        for place, value in changes:
            changed.reshape(len(image), -1)[:, place] = value
        return changed

    def margins(sets: list[Changes]) -> np.ndarray:
        with torch.no_grad():
            logits = exact(torch.tensor(np.array([made(changes) for changes in sets])).double().div(255)).numpy()
        lead = logits[:, own] - np.delete(logits, own, axis=1).max(axis=1)
        return -lead if targeted else lead

    play = [
        (place, value)
        for place, value in itertools.product(range(size), values)
        if tuple(image.reshape(len(image), -1)[:, place]) != value
    ]
    queries = 0
    beam: list[Changes] = [frozenset()]
    for step in range(attack.pixels):
        tried = list(
            dict.fromkeys(changes | {change} for changes in beam for change in play if change[0] not in dict(changes))
        )
        queries += len(tried)
        margin = margins(tried)
        best = tried[margin.argmin()]
        if margin.min() < 0 or step + 1 == attack.pixels:
            return made(best), bool(margin.min() < 0), queries
        order = [tried[number] for number in margin.argsort(kind="stable")]
        if step == 0 and attack.candidates:
            firsts = {place: changes for changes in reversed(order) for place, _ in changes}
            order = [changes for changes in order if changes in firsts.values()][: attack.candidates]
            play = [change for changes in order for change in changes]
        beam = order[: attack.width]
    raise AssertionError


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", ["grey", "all", "colour"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"width": 1, "candidates": 0},
        {"width": 3, "candidates": 0},
        {"width": 3, "candidates": 3},
        {"width": 4, "candidates": 5, "pixels": 4},
    ],
)
def test_beam_equals_a_slow_one(parameters: dict[str, Any], kind: str, targeted: bool) -> None:
    shape = (3, 3, 2) if kind == "colour" else (1, 2, 2) if kind == "all" else (1, 4, 5)
    model = fragile(shape, 4, 5)
    images = random_images(shape, 3 if kind == "all" else 8, 6)
    labels = predictions(model, images)
    targets = (labels + 1) % 4 if targeted else None
    attack = PixelBeam(**{"pixels": 3, "levels": "all" if kind == "all" else "extremes"} | parameters)
    result = attack(model, images, labels, targets=targets)
    for row, own in enumerate(labels if targets is None else targets):
        image, success, queries = slow_beam(model, images[row], int(own), targeted, attack)
        assert np.array_equal(result.adversarial[row], image)
        assert result.success[row] == success
        assert result.queries[row] == queries


def test_beam_ends_with_the_fewest_pixels() -> None:
    """The first k at which greedy changes succeed, and a success whenever a single pixel has one."""
    shape = (1, 6, 5)
    model = fragile(shape, 4, 3)
    images = random_images(shape, 30, 4)
    labels = predictions(model, images)
    by_k = [PixelBeam(pixels=k)(model, images, labels) for k in (1, 2, 3)]
    assert len({int(result.success.sum()) for result in by_k}) == 3
    for k, (fewer, more) in enumerate(itertools.pairwise(by_k), start=1):
        assert (more.distances.l0[more.success & ~fewer.success] == k + 1).all()
        assert np.array_equal(more.adversarial[fewer.success], fewer.adversarial[fewer.success])


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("limit", [1, 150])
def test_beam_keeps_its_budget_to_the_query(kind: str, limit: int) -> None:
    model, shape, _ = random_model(kind, 7)
    images = random_images(shape, 10, 8)
    labels = predictions(model, images)
    free = PixelBeam(pixels=4, width=4, candidates=30)(model, images, labels)
    bound = PixelBeam(pixels=4, width=4, candidates=30, max_queries=limit)(model, images, labels)
    assert bound.queries.max() <= limit
    cut = free.queries > limit
    assert cut.any()
    assert (bound.queries[cut & ~bound.success] == limit).all()
    assert np.array_equal(bound.adversarial[~cut], free.adversarial[~cut])


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (lambda: PixelBeam(levels="all"), "--levels"),
        (lambda: PixelBeam(pixels=131), "--pixels"),
        (lambda: PixelBeam(width=0), "--width"),
        (lambda: PixelBeam(candidates=4), "--candidates"),
        (lambda: OnePixelExact(levels="some"), "--levels"),
    ],
)
def test_what_cannot_be_is_refused(attack: object, says: str) -> None:
    model, shape, _ = random_model("colour", 9)
    images = random_images(shape, 1, 10)
    with pytest.raises(WrongInput, match=says):
        attack()(model, images, predictions(model, images))  # type: ignore[operator]


class Tied(nn.Module):
    """Class 1 has a logit of 1; so has class 0 where the first pixel is white, and class 2 where it is grey."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        white = (images[:, 0, 0, 0] == 1).float()
        grey = ((images[:, 0, 0, 0] > 0.4) & (images[:, 0, 0, 0] < 0.5)).float()
        return torch.stack([white, torch.ones_like(white), grey], dim=1)


def test_a_success_of_margin_zero_is_kept_before_a_failure_of_margin_zero() -> None:
    """Class 1 leads; white makes class 0 equal, and the first of equals is predicted; grey makes class 2 equal."""
    result = OnePixelExact()(Tied(), np.zeros((1, 1, 2, 2), np.uint8), np.array([1]))
    assert result.by_products["successes"].tolist() == [1]
    assert result.status.tolist() == [Status.SUCCESS]
    assert result.adversarial[0, 0, 0, 0] == 255
