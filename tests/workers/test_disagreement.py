"""Disagreement with a second classifier: the score, its gradient, and the second model's training."""

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.conftest import random_images, random_model
from workers.detectors import detector_named
from workers.detectors.disagreement import DisagreementDetector, RBFDisagreement, SynthesisDisagreement
from workers.errors import WrongInput
from workers.images import Dataset

BOTH = pytest.mark.parametrize(
    "recipe", [RBFDisagreement(units=20), SynthesisDisagreement(starts=5, steps=3)], ids=lambda recipe: recipe.NAME
)


def a_detector(
    recipe: RBFDisagreement | SynthesisDisagreement, seed: int = 2
) -> tuple[DisagreementDetector, torch.Tensor]:
    """A detector with random weights, and float images for it."""
    classifier, shape, _ = random_model("grey", seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = recipe.build(classifier, shape)
    return detector.eval().requires_grad_(False), torch.tensor(random_images(shape, 60, seed=3)).float() / 255


@BOTH
def test_the_score_is_the_log_odds_against_the_answer(recipe: RBFDisagreement | SynthesisDisagreement) -> None:
    detector, images = a_detector(recipe)
    scores = detector.score(images).numpy()
    answers, own = detector.classifier(images).argmax(dim=1).numpy(), detector.second(images).double().numpy()
    for score, answer, logits in zip(scores, answers, own, strict=True):
        others = np.delete(logits, answer)
        assert score == pytest.approx(others.max() - logits[answer], rel=1e-4, abs=1e-4)
        assert (score > 0) == (logits.argmax() != answer)
    assert (scores > 0).sum() > 0
    assert torch.equal(detector.predict(images), detector.classifier(images))


def test_it_keeps_order_and_gradient_where_a_softmax_is_saturated() -> None:
    class Fixed(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3))
            return self.weight * torch.stack([level, -level, level * 0], dim=1)

    images = torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1, 1).expand(3, 1, 7, 7).clone().requires_grad_()
    for sign in (1.0, -1.0):
        detector = DisagreementDetector(Fixed(1000.0), Fixed(sign * 1000.0))
        scores = detector.score(images)
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        assert len(scores.unique()) == 3
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
        assert ((scores > 0) == (sign < 0)).all()


@BOTH
def test_an_image_is_scored_by_itself(recipe: RBFDisagreement | SynthesisDisagreement) -> None:
    detector, images = a_detector(recipe)
    alone = torch.cat([detector.score(image[None]) for image in images])
    torch.testing.assert_close(detector.score(images), alone, rtol=1e-4, atol=1e-4)


def test_gradient() -> None:
    detector, images = a_detector(RBFDisagreement(units=20))
    detector.double()
    detector.classifier.double()
    torch.autograd.gradcheck(detector.score, images[:2].double().requires_grad_(), atol=1e-6)


@BOTH
def test_restored_gives_the_same_scores(recipe: RBFDisagreement | SynthesisDisagreement) -> None:
    detector, images = a_detector(recipe)
    other, _ = a_detector(recipe, seed=9)
    assert not torch.equal(other.score(images), detector.score(images))
    other.restore(safetensors.torch.load(safetensors.torch.save(detector.state_dict())))
    assert torch.equal(other.score(images), detector.score(images))


def test_what_it_learns_from_and_what_measures_it_are_the_training_images() -> None:
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    learned, held_out = (
        RBFDisagreement().second_models()["second"].split(Dataset(images, np.arange(50), "train", "numbers"))
    )
    assert (len(learned), len(held_out)) == (45, 5)
    for part in (learned, held_out):
        assert np.array_equal(part.images[:, 0, 0, 0], part.labels)
    assert set(learned.labels) | set(held_out.labels) == set(range(50))


def test_the_key_is_of_every_parameter() -> None:
    recipes = [
        RBFDisagreement(),
        RBFDisagreement(epochs=4),
        RBFDisagreement(base_epochs=4),
        RBFDisagreement(training_seed=1),
        SynthesisDisagreement(),
        SynthesisDisagreement(code_size=4),
    ]
    assert len({recipe.second_models()["second"].key for recipe in recipes}) == len(recipes)
    assert detector_named("rbf-disagreement", epochs="4") == RBFDisagreement(epochs=4)


def test_wrong_input_is_one_line() -> None:
    model = random_model("colour", 0)[0]
    with pytest.raises(WrongInput, match=r"does not take images of \(1, 9, 9\)"):
        RBFDisagreement().build(model, (1, 9, 9))
    with pytest.raises(WrongInput, match="rbf: the CNN needs images of at least 7×7, got 5×6"):
        RBFDisagreement().build(nn.Sequential(nn.Flatten(), nn.Linear(30, 4)), (1, 5, 6))
    for wrong in ({"epochs": 0}, {"units": 0}, {"temperature": 1}):
        with pytest.raises(WrongInput, match=next(iter(wrong))):
            RBFDisagreement(**wrong)


def test_an_image_without_an_answer_has_no_score() -> None:
    class Silent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = images.flatten(1)[:, :3]
            return found.masked_fill(found[:, :1] > 0.5, torch.nan)

    images = torch.zeros(2, 1, 2, 2)
    images[1] = 1
    score = DisagreementDetector(Silent(), nn.Sequential(nn.Flatten(), nn.Linear(4, 3))).score(images)
    assert score.isfinite().tolist() == [True, False]
