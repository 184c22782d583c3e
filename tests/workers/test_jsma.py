"""JSMA against a float64 brute force that takes the whole Jacobian, one image and one step at a time."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_attacks import columns
from tests.workers.test_fgsm import predictions
from workers.attacks import JSMA
from workers.errors import WrongInput
from workers.images import Dataset


def brute_force(
    model: nn.Module, image: np.ndarray, target: int, attack: JSMA, most_steps: int, label: int | None = None
) -> tuple[np.ndarray, int, float]:
    """The final levels, the steps taken, and the smallest lead of a chosen score over its runner-up.

    With a label the search ends as soon as another class is predicted, else when the target is.
    """
    exact = copy.deepcopy(model).double()
    levels, step = image.astype(int).reshape(-1), round(255 * attack.theta)
    clean, lead, together = levels.copy(), np.inf, 2 if attack.map == "pair" else 1
    most_features = len(levels) if attack.gamma is None else int(attack.gamma * len(levels) + 1e-9)
    for steps in range(most_steps + 1):
        inputs = torch.tensor(levels.reshape(1, *image.shape)).double().div(255)
        logits = exact(inputs)[0]
        predicted = int(logits.argmax())
        reached = predicted == target if label is None else predicted != label
        if reached or steps == most_steps:
            return levels, steps, lead
        jacobian = torch.autograd.functional.jacobian(lambda x: exact(x)[0], inputs).reshape(len(logits), -1).numpy()
        alpha = jacobian[target]
        others = jacobian[predicted] - alpha if attack.map == "prediction" else jacobian.sum(axis=0) - alpha
        if step < 0:
            alpha, others = -alpha, -others
        if attack.weighted:
            room = np.minimum(abs(step), 255 - levels if step > 0 else levels) / abs(step)
            alpha, others = alpha * room, others * room
        domain = [feature for feature in range(len(levels)) if levels[feature] != (255 if step > 0 else 0)]
        if attack.gamma is not None and (levels != clean).sum() + together > most_features:
            domain = [feature for feature in domain if levels[feature] != clean[feature]]
        best, chosen, runner_up = 0.0, (), 0.0
        for features in itertools.combinations(domain, together):
            a, b = alpha[list(features)].sum(), others[list(features)].sum()
            score = a * abs(b) if a > 0 and b < 0 else 0.0
            if score > best:
                best, runner_up, chosen = score, best, features
            else:
                runner_up = max(runner_up, score)
        if not chosen:
            return levels, steps, lead
        lead = min(lead, (best - runner_up) / best)
        for feature in chosen:
            levels[feature] = min(255, max(0, levels[feature] + step))
    raise AssertionError


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("saliency_map", ["prediction", "classes", "pair"])
@pytest.mark.parametrize(
    ("theta", "gamma", "weighted"),
    [(1.0, None, False), (-1.0, None, True), (0.2, 0.05, True), (-0.3, 0.1, False)],
)
def test_equals_brute_force(kind: str, saliency_map: str, theta: float, gamma: float | None, weighted: bool) -> None:
    model, shape, classes = random_model(kind, 10)
    count, most_steps = (5, 10) if saliency_map == "pair" else (8, 30)
    images = random_images(shape, count, 11)
    labels = predictions(model, images)
    targets = (labels + 1 + np.arange(count) % (classes - 1)) % classes
    attack = JSMA(map=saliency_map, theta=theta, gamma=gamma, weighted=weighted, max_steps=most_steps)
    result = attack(model, images, labels, targets=targets)
    compared = 0
    for row in range(count):
        levels, steps, lead = brute_force(model, images[row], targets[row], attack, most_steps)
        if lead < 1e-4:  # a tie in float32: either choice is right
            continue
        compared += 1
        assert np.array_equal(result.adversarial[row].reshape(-1), levels), row
        assert result.generations[row] == steps
        assert result.gradients[row] == 2 * result.queries[row]
        assert result.queries[row] == steps + 1
    assert compared >= count - 2


@pytest.mark.parametrize("batch", [16, 64])
def test_untargeted_is_the_cheapest_way_out_of_the_label(batch: int) -> None:
    model, shape, classes = random_model("colour", 12)
    images = random_images(shape, 8, 13)
    labels = predictions(model, images)
    attack = JSMA(gamma=0.05)  # six features, at most as many steps
    untargeted = attack(model, images, labels, batch=batch)
    compared = 0
    for row in range(len(images)):
        ways, doubtful = [], False
        for order in range(classes - 1):
            target = (labels[row] + 1 + order) % classes
            levels, steps, lead = brute_force(model, images[row], target, attack, 99, labels[row])
            success = predictions(model, levels.reshape(1, *shape).astype(np.uint8))[0] != labels[row]
            ways.append((not success, steps, order, levels))
            doubtful |= lead < 1e-4
        if doubtful:
            continue
        compared += 1
        successes = [way for way in ways if not way[0]]
        assert untargeted.success[row] == bool(successes)
        fewest = min(successes)[1] if successes else 99
        kept = min(successes)[3] if successes else ways[0][3]
        assert np.array_equal(untargeted.adversarial[row].reshape(-1), kept)
        assert untargeted.queries[row] == sum(min(way[1], fewest) + 1 for way in ways)  # the others are given up
    assert compared >= 6
    assert 0 < untargeted.success.sum() < len(images)


@pytest.mark.parametrize("saliency_map", ["classes", "pair"])  # the table of all attacks runs the default map
@pytest.mark.parametrize("goal", ["untargeted", "each"])
def test_batch_is_single_is_permuted(saliency_map: str, goal: str) -> None:
    model, shape, classes = random_model("colour", 23)
    images = random_images(shape, 21, 24)
    labels = predictions(model, images)
    targets = None if goal == "untargeted" else (labels + 1 + np.arange(21) % (classes - 1)) % classes
    attack = JSMA(map=saliency_map, theta=0.4, gamma=0.1, weighted=True)
    result = attack(model, images, labels, targets=targets, batch=16)
    assert 0 < result.success.sum() < 21
    order = np.random.default_rng(25).permutation(21)
    for rows in (order, order[:1], order[5:12]):
        some = attack(model, images[rows], labels[rows], targets=None if targets is None else targets[rows], ids=rows)
        assert columns(some) == columns(result, rows)


def test_an_odd_rest_of_the_budget_is_not_used() -> None:
    model, shape, classes = random_model("grey", 19)
    images = random_images(shape, 6, 20)
    labels = predictions(model, images)
    targets = (labels + 1) % classes
    for features in (4, 5):
        attack = JSMA(map="pair", gamma=features / images[0].size)
        result = attack(model, images, labels, targets=targets)
        assert result.distances.l0_features.max() == 4
        assert attack.within(result.distances, images[0].size).all()
    with pytest.raises(WrongInput, match="--gamma: must allow two of"):
        JSMA(map="pair", gamma=1.5 / images[0].size)(model, images, labels, targets=targets)


@pytest.mark.parametrize("gamma", [0.01, 0.05])
def test_gamma_is_never_overshot(gamma: float) -> None:
    model, shape, classes = random_model("colour", 14)
    images = random_images(shape, 10, 15)
    labels = predictions(model, images)
    result = JSMA(map="classes", theta=0.1, gamma=gamma)(model, images, labels, targets=(labels + 3) % classes)
    assert result.distances.l0_features.max() <= int(gamma * images[0].size + 1e-9)


def test_nothing_admissible_is_exhausted_and_pixel_zero_is_left_alone() -> None:
    model, shape, classes = random_model("grey", 16)
    images = np.full((3, *shape), 255, dtype=np.uint8)
    labels = predictions(model, images)
    for saliency_map in ("prediction", "classes", "pair"):
        result = JSMA(map=saliency_map)(model, images, labels, targets=(labels + 1) % classes)
        assert list(result.status) == ["exhausted"] * 3
        assert np.array_equal(result.adversarial, images)
        assert (result.generations == 0).all()


def test_the_seeds_two_to_six(mnist: Dataset, mnist_model: nn.Module, correct: np.ndarray) -> None:
    twos = correct[mnist.labels[correct] == 2][:60]
    seed = JSMA()(mnist_model, mnist.images[twos], mnist.labels[twos], targets=6)
    classes = JSMA(map="classes")(mnist_model, mnist.images[twos], mnist.labels[twos], targets=6)
    assert seed.success.mean() >= 0.4  # two epochs; the twelve of the main job give twice that
    assert classes.success.mean() < seed.success.mean()
    assert seed.distances.l0.max() <= 50


@pytest.mark.parametrize("saliency_map", ["prediction", "classes", "pair"])
def test_weights_change_nothing_where_a_whole_step_fits(saliency_map: str) -> None:
    model, shape, classes = random_model("colour", 21)
    images = random_images(shape, 6, 22) // 2
    labels = predictions(model, images)
    plain, weighted = (
        JSMA(map=saliency_map, theta=0.1, max_steps=4, weighted=on)(
            model, images, labels, targets=(labels + 1) % classes
        )
        for on in (False, True)
    )
    assert np.array_equal(plain.adversarial, weighted.adversarial)
    assert (plain.adversarial != images).any()


@pytest.mark.parametrize("wrong", [{"theta": 2}, {"gamma": 0}, {"gamma": 1.1}, {"max_steps": 0}, {"map": "pairs"}])
def test_refuses_wrong_parameters(wrong: dict[str, float | str]) -> None:
    with pytest.raises(WrongInput, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        JSMA(**wrong)


def test_refuses_steps_and_budgets_that_change_nothing() -> None:
    model, shape, _ = random_model("grey", 17)
    images = random_images(shape, 1, 18)
    labels = predictions(model, images)
    for wrong, name in ((JSMA(theta=0.001), "--theta"), (JSMA(gamma=0.001), "--gamma")):
        with pytest.raises(WrongInput, match=name):
            wrong(model, images, labels, targets=(labels + 1) % 4)
