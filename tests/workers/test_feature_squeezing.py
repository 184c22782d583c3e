"""Feature squeezing: the squeezers against numpy and scipy, the score, its straight-through gradient."""

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter as scipy_median
from scipy.special import softmax

from tests.conftest import random_images, random_model
from workers.detectors.feature_squeezing import (
    FeatureSqueezing,
    FeatureSqueezingDetector,
    median_filter,
    reduce_depth,
)
from workers.errors import WrongInput


def a_detector(kind: str, **parameters: int) -> tuple[FeatureSqueezingDetector, torch.Tensor]:
    """A detector, and float images for it."""
    classifier, shape, _ = random_model(kind, seed=1)
    images = torch.tensor(random_images(shape, 30, seed=2)).float() / 255
    return FeatureSqueezing(**parameters).build(classifier, shape), images


@pytest.mark.parametrize("side", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 6), (2, 5, 1), (1, 1, 1)])
def test_median_filter_is_scipys(shape: tuple[int, int, int], side: int) -> None:
    images = torch.tensor(random_images(shape, 3, seed=side))
    want = scipy_median(images.numpy(), size=(1, 1, side, side), mode="reflect")
    np.testing.assert_array_equal(median_filter(images, side), want)


@pytest.mark.parametrize("bits", [1, 2, 5, 7])
def test_depth_has_that_many_levels(bits: int) -> None:
    levels = np.arange(256, dtype=np.uint8)
    squeezed = reduce_depth(torch.tensor(levels).float() / 255, bits).numpy()
    np.testing.assert_array_equal(squeezed, np.float32(np.rint(levels / 255 * (2**bits - 1))) / np.float32(2**bits - 1))
    assert len(np.unique(squeezed)) == 2**bits


@pytest.mark.parametrize(("kind", "bits", "window"), [("grey", 1, 2), ("colour", 3, 3)])
def test_score_equals_the_slow_version(kind: str, bits: int, window: int) -> None:
    detector, images = a_detector(kind, bits=bits, window=window)
    want = []
    with torch.no_grad():
        for image in images.numpy():
            rounded = np.rint(image * (2**bits - 1)) / (2**bits - 1)
            forms = (image, rounded, scipy_median(image, size=(1, window, window), mode="reflect"))
            logits = [detector.classifier(torch.tensor(form[None], dtype=torch.float32)).numpy()[0] for form in forms]
            own, *others = (softmax(row.astype(float)) for row in logits)
            want.append(max(np.abs(own - other).sum() for other in others))
        np.testing.assert_allclose(detector.score(images), want, rtol=1e-4, atol=1e-6)


def test_an_image_is_scored_by_itself() -> None:
    for kind in ("grey", "colour"):
        detector, images = a_detector(kind)
        with torch.no_grad():
            alone = torch.cat([detector.score(image[None]) for image in images])
            torch.testing.assert_close(detector.score(images), alone, rtol=1e-5, atol=1e-7)


def test_gradient_of_the_median_filter() -> None:
    images = torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for side in (2, 3):
        torch.autograd.gradcheck(lambda found, side=side: median_filter(found, side), images)


def test_gradient_passes_the_rounding_straight_through() -> None:
    detector, images = a_detector("colour", bits=2)
    detector.classifier.double()
    # Without two equal pixels, whose median has two derivatives.
    generator = torch.Generator().manual_seed(1)
    some = torch.rand(2, *images.shape[1:], dtype=torch.float64, generator=generator).requires_grad_()
    (found,) = torch.autograd.grad(detector.score(some).sum(), some)
    # The score near these images if rounding only moved them, by what it moves them here.
    moved = reduce_depth(some, 2).detach() - some.detach()

    def stands_for(inputs: torch.Tensor) -> torch.Tensor:
        own = detector.classifier(inputs).softmax(dim=1)
        others = [detector.classifier(form).softmax(dim=1) for form in (inputs + moved, median_filter(inputs, 2))]
        return torch.stack([(own - other).abs().sum(dim=1) for other in others]).amax(dim=0)

    torch.autograd.gradcheck(stands_for, some)
    (want,) = torch.autograd.grad(stands_for(some).sum(), some)
    assert want.abs().sum() > 0
    torch.testing.assert_close(found, want)


def test_nothing_is_fitted() -> None:
    detector, images = a_detector("grey")
    assert detector.state_dict() == {}
    assert not detector.repairs
    with torch.no_grad():
        assert torch.equal(detector.restore({}).predict(images), detector.classifier(images))


@pytest.mark.parametrize("wrong", [{"bits": 0}, {"bits": 8}, {"window": 1}])
def test_wrong_parameters(wrong: dict[str, int]) -> None:
    with pytest.raises(WrongInput, match=next(iter(wrong))):
        FeatureSqueezing(**wrong)
