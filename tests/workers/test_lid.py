"""LID: the estimate, its gradient, and a detector that is fitted, restored and learns."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import random_images, random_model
from workers.detectors.lid import LID, LIDDetector, local_intrinsic_dimensionality
from workers.errors import WrongInput

SMALL = LID(references=40, k=5, samples=60)


def slow(points: np.ndarray, reference: np.ndarray, k: int) -> list[float]:
    found = []
    for point in points:
        distances = sorted(np.sqrt(np.square(point - other).sum()) for other in reference)[:k]
        found.append(-1 / np.mean([np.log(distance / distances[-1]) for distance in distances]))
    return found


def fitted(kind: str, recipe: LID = SMALL) -> LIDDetector:
    model, shape, _ = random_model(kind, 3)
    images = torch.from_numpy(random_images(shape, 120, 5))
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(dim=1)
    detector = recipe.build(model, shape)
    detector.fit(images, labels, seed=1, on_step=lambda *_: None)
    return detector


def floats(detector: LIDDetector, count: int, seed: int = 9) -> torch.Tensor:
    shape = tuple(detector.reference.shape[1:])
    return torch.from_numpy(random_images(shape, count, seed)).float() / 255


@pytest.mark.parametrize("features", [3, 5000])
def test_the_estimate_is_the_papers(features: int) -> None:
    numbers = np.random.default_rng(0)
    points, reference = numbers.normal(size=(6, features)), numbers.normal(size=(30, features))
    found = local_intrinsic_dimensionality(torch.from_numpy(points), torch.from_numpy(reference), 7)
    assert found.numpy() == pytest.approx(slow(points, reference, 7), rel=1e-6)


def test_the_estimate_is_the_dimension() -> None:
    generator = torch.Generator().manual_seed(0)
    line = torch.rand(4000, 1, generator=generator) * torch.ones(1, 6)
    cube = torch.rand(4000, 6, generator=generator)
    inner = torch.full((1, 6), 0.5)
    assert float(local_intrinsic_dimensionality(inner, line, 200)) == pytest.approx(1, rel=0.2)
    assert float(local_intrinsic_dimensionality(inner, cube, 200)) == pytest.approx(6, rel=0.2)


def test_equal_points_have_a_finite_value_and_gradient() -> None:
    reference = torch.ones(9, 4)
    points = torch.ones(2, 4, requires_grad=True)
    found = local_intrinsic_dimensionality(points, reference, 3)
    found.sum().backward()
    assert found.isfinite().all()
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["colour", "seed"])
def test_a_score_is_the_regression_on_every_layer(kind: str) -> None:
    detector = fitted(kind)
    images = floats(detector, 8)
    model, activations = detector.classifier, []
    for batch in (images, detector.reference.float() / 255):
        if kind == "colour":
            steps = [batch]
            for layer in model.body:
                steps.append(layer(steps[-1]))
            logits = steps[-1]
            layers = [steps[1], steps[6]]
        else:
            first = model.conv1(batch)
            second = model.conv2(first.relu())
            layers, logits = [first, second, model.conv3(second.relu())], model(batch)
        activations.append([layer.flatten(1).detach().numpy() for layer in (*layers, logits, logits.softmax(dim=1))])
    expected = detector.bias.item()
    for weight, points, reference in zip(detector.weight.tolist(), *activations, strict=True):
        expected += weight * np.log(slow(points, reference, 5))
    assert detector.weight.abs().min() > 0
    assert detector.score(images).detach().numpy() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_each_image_is_judged_by_itself() -> None:
    detector = fitted("colour")
    images = floats(detector, 21)
    alone = torch.cat([detector.score(images[i : i + 1]) for i in range(len(images))])
    assert torch.allclose(detector.score(images), alone, rtol=1e-4, atol=1e-4)


def test_restored_scores_are_the_same() -> None:
    detector = fitted("colour")
    again = LID(references=9, k=5).build(detector.classifier, detector.reference.shape[1:])
    again.restore(detector.state_dict())
    images = floats(detector, 6)
    assert torch.equal(again.score(images), detector.score(images))
    assert set(detector.state_dict()) == {"reference", "weight", "bias"}


def test_the_seed_decides() -> None:
    first, second = fitted("colour"), fitted("colour")
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, fitted("colour", SMALL.model_copy(update={"attack": "ifgsm"})).weight)


def test_gradients_are_finite_differences() -> None:
    detector = fitted("colour").double()
    detector.classifier.double()
    images = floats(detector, 3).double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(detector.score(images).sum(), images)
    assert gradient.isfinite().all()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        rise = (detector.score(images + step * direction) - detector.score(images - step * direction)) / (2 * step)
    assert torch.allclose((gradient * direction).flatten(1).sum(dim=1), rise, rtol=1e-4, atol=1e-6)


def test_a_classifier_without_known_layers_is_judged_by_its_logits() -> None:
    class Sum(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.stack([images.mean(dim=(1, 2, 3)), 1 - images.square().mean(dim=(1, 2, 3))], dim=1)

    detector = LID(references=10, k=3).build(Sum(), (2, 3, 5))
    assert detector.layers == ()
    assert len(detector.weight) == 2
    assert LID().build(nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), (1, 2, 3)).layers == ()  # those are the logits


def test_wrong_input_is_one_line() -> None:
    model, shape, _ = random_model("colour", 0)
    with pytest.raises(WrongInput, match="--k: at most the 10 reference images, got 20"):
        LID(references=10).build(model, shape)
    with pytest.raises(WrongInput, match=r"does not take images of \(1, 7, 6\)"):
        LID().build(model, (1, 7, 6))
    with pytest.raises(WrongInput, match=r"--references: .* at most \d+ images fit"):
        LID(references=100_000).build(nn.Sequential(nn.Conv2d(1, 64, 1), nn.Flatten()), (1, 64, 64))
    with pytest.raises(WrongInput, match="needs 100 reference images and 500 to attack, got 3"):
        LID().build(model, shape).fit(
            torch.zeros(3, *shape, dtype=torch.uint8), torch.zeros(3).long(), seed=0, on_step=print
        )
