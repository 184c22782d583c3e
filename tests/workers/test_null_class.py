"""The NULL class: its labels, where it begins, and what is rejected."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.conftest import random_images, random_model
from tests.workers.defense_cases import quick, run
from workers.attacks import PGD
from workers.detectors.guarded import Guarded, Judged
from workers.errors import WrongInput
from workers.models.loading import read_model
from workers.models.null import NullCNN, rejecting
from workers.results import Status
from workers.sources import load_data
from workers.training.adversarial import cross_entropy_sum
from workers.training.ascent import ascend
from workers.training.null_class import NullClass


def test_null_takes_what_the_size_of_the_perturbation_says() -> None:
    defense = NullClass(certainty=0.9)
    soft = defense.soft_labels(torch.tensor([2, 0]), torch.tensor([0.0, 0.4]), 5)
    expected = [[0.1 / 3, 0.1 / 3, 0.9, 0.1 / 3, 0], [0.54, 0.02, 0.02, 0.02, 0.4]]
    assert torch.allclose(soft, torch.tensor(expected))
    assert torch.allclose(soft.sum(dim=1), torch.ones(2))


def test_null_s_probability_is_the_share_that_the_first_classifier_gets_wrong(tmp_path: Path) -> None:
    run(tmp_path, quick("none"), 6)
    model, training = read_model(str(tmp_path)).build(), load_data("digits", "train")
    rates = NullClass(epsilon=0.4).null_rates(model, training)
    assert rates[0] == 0
    assert bool((rates.diff() >= 0).all())
    assert rates[-1] > 0.5
    images, labels = torch.tensor(training.images).float().div(255), torch.tensor(training.labels)
    right = model(images).argmax(dim=1) == labels
    moved = images[right].clone().requires_grad_(True)
    cross_entropy(model(moved), labels[right], reduction="sum").backward()
    moved = (images[right] + 0.2 * moved.grad.sign()).clamp(0, 1)
    wrong = (model(moved).argmax(dim=1) != labels[right]).float().mean()
    assert rates[5].item() == pytest.approx(wrong.item(), abs=0.01)


def test_the_null_class_begins_with_the_first_classifier() -> None:
    first = random_model("grey", 1)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = NullCNN(1, 9, 12, 4)
    null = model.linear.weight[4].clone()
    NullClass().start(model, first)
    images = torch.tensor(random_images((1, 9, 12), 8, 2)).float().div(255)
    assert torch.equal(model(images)[:, :4], first(images))
    assert torch.equal(model.linear.weight[4], null)


def test_an_image_that_is_predicted_as_null_is_rejected() -> None:
    """It does not fool, whatever the classes' logits say; every search is told by how much it is rejected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = NullCNN(1, 9, 12, 4).eval()
    images = torch.tensor(random_images((1, 9, 12), 64, 2))
    with torch.no_grad():
        logits = network(images.float().div(255))
        network.linear.bias[4] -= (logits[:, 4] - logits[:, :4].amax(dim=1)).median()  # half are NULL
        logits = network(images.float().div(255))
    model = rejecting(network)
    assert torch.equal(model(images.float().div(255)), logits[:, :4])
    is_null = logits.argmax(dim=1) == 4
    assert 0 < is_null.sum() < 64
    assert torch.equal(model.excess(images.float().div(255)) > 0, is_null)
    labels = logits[:, :4].argmax(dim=1)
    result = PGD(epsilon=0.2)(model, images, labels)
    assert result.success.any()
    found = Judged(model)(torch.tensor(result.adversarial).float().div(255))
    fools = (found[:, :4].argmax(dim=1) != labels) & (found[:, 4] <= 0)
    assert torch.equal(torch.tensor(result.success), fools)


def test_a_model_with_a_null_class_rejects_from_its_folder(tmp_path: Path) -> None:
    """Perturbed digits are mostly rejected, clean ones mostly not; its logits are those of the classes."""
    epochs = run(tmp_path, NullClass(initial_epochs=6), 6)
    assert epochs[-1].accuracy > 0.85
    assert len(epochs[-1].confusion) == 11
    model, test = read_model(str(tmp_path)).build(), load_data("digits", "test")
    assert isinstance(model, Guarded)
    images, labels = torch.tensor(test.images).float().div(255), torch.tensor(test.labels)
    assert (model.excess(images) > 0).float().mean() < 0.1
    moved = ascend(cross_entropy_sum(model, labels), images, images, epsilon=0.3, steps=1, step_size=0.3)
    assert (model.excess(moved) > 0).float().mean() > 0.5
    confusion = torch.tensor(epochs[-1].confusion)
    assert int(confusion[:, 10].sum()) == int((model.excess(images) > 0).sum())
    statuses = {str(status) for status in PGD(steps=5)(model, test.images[:20], test.labels[:20]).status}
    assert statuses <= {str(status) for status in Status}
    with pytest.raises(WrongInput, match="--mean and --std"):
        read_model(str(tmp_path), mean=(0.5,), std=(0.5,))
