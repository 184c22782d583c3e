"""The controls: the noise itself, roughness as scipy has it, the order of the classifier's confidence."""

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.special import softmax
from torch import nn

from tests.conftest import random_images, random_model
from workers.detectors.controls import MaxSoftmax, MedianFilter, RandomScore
from workers.detectors.detector import Detector, DetectorRecipe

CONTROLS = [RandomScore, MedianFilter, MaxSoftmax]


def built(recipe: type[DetectorRecipe], kind: str) -> tuple[Detector, torch.Tensor, torch.Tensor | None]:
    """A control, float images for it and draws."""
    classifier, shape, _ = random_model(kind, seed=1)
    detector = recipe().build(classifier, shape)
    images = torch.tensor(random_images(shape, 30, seed=2)).float() / 255
    generator = torch.Generator().manual_seed(3)
    noise = None if detector.noise is None else torch.randn(30, *detector.noise, generator=generator)
    return detector, images, noise


def test_the_random_score_is_its_noise() -> None:
    detector, images, noise = built(RandomScore, "grey")
    assert noise is not None
    assert torch.equal(detector.score(images, noise), noise[:, 0])
    assert torch.equal(detector.score(1 - images, noise), noise[:, 0])
    assert not detector.differentiable


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_the_median_filter_is_scipys(kind: str) -> None:
    detector, images, _ = built(MedianFilter, kind)
    smooth = median_filter(images.numpy(), size=(1, 1, 3, 3), mode="reflect")
    again = detector.reconstruct(images)
    assert again is not None
    np.testing.assert_array_equal(again, smooth)
    want = np.abs(images.numpy() - smooth).reshape(30, -1).mean(axis=1)
    np.testing.assert_allclose(detector.score(images), want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_max_softmax_has_the_order_of_the_confidence(kind: str) -> None:
    detector, images, _ = built(MaxSoftmax, kind)
    with torch.no_grad():
        score = detector.score(images).numpy()
        confidence = softmax(detector.classifier(images).numpy().astype(float), axis=1).max(axis=1)
    np.testing.assert_allclose(score, np.log(1 / confidence - 1), rtol=1e-4, atol=1e-5)


def test_max_softmax_tells_apart_what_rounds_to_certainty() -> None:
    detector = MaxSoftmax().build(nn.Flatten(), (3, 1, 1))
    images = torch.tensor([[50.0, 0, 0], [60, 0, 0]]).view(2, 3, 1, 1).requires_grad_()
    assert (1 - detector.classifier(images).softmax(dim=1).amax(dim=1) == 0).all()
    score = detector.score(images)
    assert score[0] > score[1]
    (gradient,) = torch.autograd.grad(score.sum(), images)
    torch.testing.assert_close(gradient.flatten(1), torch.tensor([[-1, 0.5, 0.5]] * 2))


@pytest.mark.parametrize("recipe", CONTROLS)
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_an_image_is_scored_by_itself(recipe: type[DetectorRecipe], kind: str) -> None:
    detector, images, noise = built(recipe, kind)
    with torch.no_grad():
        alone = [detector.score(images[i : i + 1], None if noise is None else noise[i : i + 1]) for i in range(30)]
        torch.testing.assert_close(detector.score(images, noise), torch.cat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", [MedianFilter, MaxSoftmax])
def test_gradient(recipe: type[DetectorRecipe]) -> None:
    detector, _, _ = built(recipe, "colour")
    detector.classifier.double()
    images = torch.rand(2, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    torch.autograd.gradcheck(detector.score, images)


@pytest.mark.parametrize("recipe", CONTROLS)
def test_nothing_is_fitted(recipe: type[DetectorRecipe]) -> None:
    detector, images, noise = built(recipe, "grey")
    other, _, _ = built(recipe, "grey")
    with torch.no_grad():
        assert torch.equal(other.restore(detector.state_dict()).score(images, noise), detector.score(images, noise))
        assert torch.equal(detector.predict(images), detector.classifier(images))
