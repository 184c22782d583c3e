"""The RBF network: its units, and where it begins."""

from pathlib import Path

import torch

from tests.conftest import random_images, random_model
from tests.workers.defense_cases import run
from workers.models.loading import read_model
from workers.models.rbf import RBFNetwork
from workers.training.rbf import RBF


def test_the_units_are_gaussians_of_the_distance_to_their_centres() -> None:
    torch.manual_seed(4)
    model = RBFNetwork(1, 9, 12, 4, units=5, beta=3.0).requires_grad_(False)
    images = torch.tensor(random_images((1, 9, 12), 6, 2)).float().div(255)
    answers = torch.empty(6, 5)
    for row, p in enumerate(model.base(images).softmax(dim=1)):
        for unit, centre in enumerate(model.centres):
            answers[row, unit] = torch.exp(-3.0 * torch.dist(p, centre) ** 2)
    assert torch.allclose(model.units(images), answers, atol=1e-6)
    assert torch.allclose(model(images), answers @ model.linear.weight.T, atol=1e-5)


def test_the_rbf_network_begins_with_the_trained_cnn(tmp_path: Path) -> None:
    first = random_model("grey", 1)[0]
    torch.manual_seed(4)
    model = RBFNetwork(1, 9, 12, 4, units=5)
    RBF().start(model, first)
    images = torch.tensor(random_images((1, 9, 12), 6, 2)).float().div(255)
    assert torch.equal(model.base(images), first(images))
    assert run(tmp_path, RBF(units=50, base_epochs=5), 10)[-1].accuracy > 0.9
    state = read_model(str(tmp_path)).build().state_dict()
    assert state["centres"].shape == (50, 10)
    assert state["betas"].std() > 0  # they are learned
