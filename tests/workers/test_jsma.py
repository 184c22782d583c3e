"""JSMA against a float64 brute force that takes the whole Jacobian, one image and one feature at a time."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import JSMA
from workers.errors import WrongInput
from workers.images import Dataset


def brute_force(
    model: nn.Module, image: np.ndarray, target: int, kind: str, theta: float, most_features: int, most_steps: int
) -> tuple[np.ndarray, int, float]:
    """The final levels, the steps taken, and the smallest lead of a chosen score over its runner-up."""
    exact = copy.deepcopy(model).double()
    levels, step = image.astype(int).reshape(-1), round(255 * theta)
    clean, lead = levels.copy(), np.inf
    for steps in range(most_steps + 1):
        inputs = torch.tensor(levels.reshape(1, *image.shape)).double().div(255)
        logits = exact(inputs)[0]
        predicted = int(logits.argmax())
        if predicted == target or steps == most_steps:
            return levels, steps, lead
        jacobian = torch.autograd.functional.jacobian(lambda x: exact(x)[0], inputs).reshape(len(logits), -1).numpy()
        alpha = jacobian[target]
        others = jacobian.sum(axis=0) - alpha if kind == "classes" else jacobian[predicted] - alpha
        best, chosen, runner_up = 0.0, -1, 0.0
        for feature in range(len(levels)):
            if levels[feature] == (255 if step > 0 else 0):
                continue
            if levels[feature] == clean[feature] and (levels != clean).sum() >= most_features:
                continue
            a, b = (alpha[feature], others[feature]) if step > 0 else (-alpha[feature], -others[feature])
            score = a * abs(b) if a >= 0 and b <= 0 else 0.0
            if score > best:
                best, runner_up, chosen = score, best, feature
            else:
                runner_up = max(runner_up, score)
        if chosen < 0:
            return levels, steps, lead
        lead = min(lead, (best - runner_up) / best)
        levels[chosen] = min(255, max(0, levels[chosen] + step))
    raise AssertionError


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("saliency_map", ["prediction", "classes"])
@pytest.mark.parametrize(("theta", "gamma"), [(1.0, None), (-1.0, None), (0.2, 0.05), (-0.3, 0.1)])
def test_equals_brute_force(kind: str, saliency_map: str, theta: float, gamma: float | None) -> None:
    model, shape, classes = random_model(kind, 10)
    images = random_images(shape, 8, 11)
    labels = predictions(model, images)
    targets = (labels + 1 + np.arange(8) % (classes - 1)) % classes
    result = JSMA(map=saliency_map, theta=theta, gamma=gamma, max_steps=30)(model, images, labels, targets=targets)
    features = images[0].size
    compared = 0
    for row in range(len(images)):
        budget = features if gamma is None else int(gamma * features + 1e-9)
        levels, steps, lead = brute_force(model, images[row], targets[row], saliency_map, theta, budget, 30)
        if lead < 1e-4:  # a tie in float32: either choice is right
            continue
        compared += 1
        assert np.array_equal(result.adversarial[row].reshape(-1), levels), row
        assert result.generations[row] == steps
        assert result.gradients[row] == 2 * result.queries[row]
        assert result.queries[row] == steps + 1
    assert compared >= 6


def test_untargeted_is_the_cheapest_target() -> None:
    model, shape, classes = random_model("colour", 12)
    images = random_images(shape, 6, 13)
    labels = predictions(model, images)
    attack = JSMA(gamma=0.1)
    untargeted = attack(model, images, labels)
    for row in range(len(images)):
        others = [t for t in range(classes) if t != labels[row]]
        each = attack(model, images[[row] * len(others)], labels[[row] * len(others)], targets=np.array(others))
        assert untargeted.success[row] == each.success.any()
        assert untargeted.queries[row] == each.queries.sum()
        if each.success.any():
            assert untargeted.distances.l0_features[row] == each.distances.l0_features[each.success].min()


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
    result = JSMA(theta=1.0)(model, images, labels, targets=(labels + 1) % classes)
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
