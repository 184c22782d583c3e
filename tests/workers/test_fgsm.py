"""FGSM against cross-entropy gradients taken by hand with autograd."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import random_images, random_model
from workers.attacks import FGSM, IterativeFGSM
from workers.errors import WrongInput
from workers.images import Dataset


def predictions(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(images).float().div(255)).argmax(dim=1).numpy()


def loss_gradient(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    inputs = images.clone().requires_grad_(True)
    loss = nn.functional.cross_entropy(model(inputs), classes, reduction="sum")
    return torch.autograd.grad(loss, inputs)[0]


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("epsilon", [8 / 255, 0.3, 1 / 255])
def test_one_step_by_hand(kind: str, targeted: bool, epsilon: float) -> None:
    model, shape, classes = random_model(kind, 4)
    images = random_images(shape, 23, 5)
    labels = predictions(model, images)
    targets = (labels + 1) % classes if targeted else None
    result = FGSM(epsilon=epsilon)(model, images, labels, targets=targets)
    chosen = torch.tensor(labels if targets is None else targets)
    slope = loss_gradient(model, torch.tensor(images).double().div(255).float(), chosen).numpy()
    step = int(np.floor(255 * epsilon + 1e-9)) * (-1 if targeted else 1)
    expected = np.clip(images.astype(int) + step * np.sign(slope), 0, 255)
    sure = np.abs(slope) > 1e-6 * np.abs(slope).max()  # elsewhere the sign is rounding noise
    assert sure.mean() > 0.8
    assert np.array_equal(result.adversarial[sure], expected[sure])
    assert (result.queries == 1).all()
    assert (result.gradients == 1).all()
    assert np.abs(result.adversarial.astype(int) - images).max() <= abs(step)


def test_a_confident_model_still_has_a_gradient() -> None:
    model, shape, _ = random_model("grey", 6)
    images = random_images(shape, 8, 7)
    labels = predictions(model, images)
    with torch.no_grad():
        logits = model(torch.tensor(images).float().div(255))
        top = logits.topk(2).values
        model.linear.weight *= 25 / (top[:, 0] - top[:, 1]).min()  # p = 1 in float32, so 1 − p is exactly zero
        model.linear.bias *= 0
    labels = predictions(model, images)
    inputs = torch.tensor(images).float().div(255)
    with torch.no_grad():
        top = model(inputs).topk(2).values
    saturated = (((top[:, 0] - top[:, 1]) > 20) & ((top[:, 0] - top[:, 1]) < 33)).numpy()
    assert saturated.any()
    result = FGSM(epsilon=0.3)(model, images, labels)
    assert (result.clean_confidence[saturated] == 1).all()
    exact = copy.deepcopy(model).double()
    slope = loss_gradient(exact, inputs.double(), torch.tensor(labels)).numpy()
    expected = np.clip(images + 76 * np.sign(slope), 0, 255)
    assert (result.adversarial[saturated] == expected[saturated]).mean() > 0.99


@pytest.mark.parametrize("targeted", [False, True])
def test_iterated_by_hand(targeted: bool) -> None:
    model, shape, classes = random_model("colour", 8)
    images = random_images(shape, 12, 9)
    labels = predictions(model, images)
    targets = (labels + 2) % classes if targeted else None
    result = IterativeFGSM(steps=25, step_size=0.004)(model, images, labels, targets=targets)
    goal = labels if targets is None else targets
    for row in range(len(images)):
        current, steps = torch.tensor(images[row : row + 1]).float().div(255), 0
        for _ in range(25):
            rounded = np.rint(current.numpy() * 255).astype(np.uint8)
            if (predictions(model, rounded)[0] == goal[row]) == targeted:
                break
            slope = loss_gradient(model, current, torch.tensor(goal[row : row + 1]))
            current = (current + (-1 if targeted else 1) * 0.004 * slope.sign()).clamp(0, 1)
            steps += 1
        expected = np.rint(current.numpy()[0] * 255).astype(np.uint8)
        assert result.generations[row] == steps
        assert (result.adversarial[row] != expected).mean() < 0.02  # signs of vanishing gradients may differ


def test_the_seeds_two_to_six(mnist: Dataset, mnist_model: nn.Module, correct: np.ndarray) -> None:
    twos = correct[mnist.labels[correct] == 2][:40]
    result = IterativeFGSM(steps=300)(mnist_model, mnist.images[twos], mnist.labels[twos], targets=6)
    assert result.success.mean() >= 0.95
    assert (predictions(mnist_model, result.adversarial[result.success]) == 6).all()
    assert result.distances.linf.max() <= 0.3 + 0.5 / 255


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0}, {"epsilon": 1.5}, {"epsilon": float("nan")}, {"epsilon": 0.003}, {"eps": 0.1}]
)
def test_refuses_wrong_parameters(wrong: dict[str, float]) -> None:
    with pytest.raises(WrongInput, match="--eps"):
        FGSM(**wrong)
