"""CMA-ES: the library's own run replayed, a smooth margin against chance, and a needle."""

import numpy as np
import pytest
import torch
from cmaes import CMA, SepCMA
from torch import nn

from tests.workers.test_de import Spot
from workers.attacks import CMAES, RandomPixels
from workers.attacks.cmaes import Restarting, reflected


def test_reflected_in_closed_form() -> None:
    genes = np.linspace(-5, 5, 1001)
    np.testing.assert_allclose(reflected(genes), np.arccos(np.cos(np.pi * genes)) / np.pi, atol=1e-7)
    assert reflected(np.array([0.25, -0.25, 1.25, 1.0, -1.0])).tolist() == [0.25, 0.25, 0.75, 1.0, 1.0]


class Bump(nn.Module):
    """A smooth margin: pixels count by how near they are to one place, and levels by how near to one level."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(15.0), indexing="ij")
        weight = torch.exp(-((rows - 13.4) ** 2 + (columns - 4.8) ** 2) / 32)
        near = (weight * (1 - (images[:, 0] - 0.63) ** 2)).sum(dim=(1, 2))
        return torch.stack([torch.full_like(near, float(weight.sum())), near], dim=1) / 10


@pytest.mark.parametrize("target", [None, 1])
def test_better_than_chance_on_a_smooth_margin(target: int | None) -> None:
    images, labels = np.zeros((12, 1, 20, 15), dtype=np.uint8), np.zeros(12, np.int64)
    ours = CMAES(pixels=2, max_queries=400)(Bump(), images, labels, targets=target)
    chance = RandomPixels(pixels=2, levels="all", max_queries=400)(Bump(), images, labels, targets=target)
    assert not (ours.success | chance.success).any()
    assert (ours.queries == 400).all()
    assert (ours.adversarial_confidence < chance.adversarial_confidence).sum() >= 11
    changed = ours.adversarial[ours.adversarial > 0] / 255
    assert np.abs(changed - 0.63).mean() < 0.08


@pytest.mark.parametrize("target", [None, 1])
def test_finds_a_needle(target: int | None) -> None:
    images = np.zeros((4, 1, 5, 4), dtype=np.uint8)
    result = CMAES(pixels=1, max_queries=5000)(Spot(0, 4, 3, 255), images, np.zeros(4, np.int64), targets=target)
    assert result.success.all()
    assert (result.adversarial[:, 0, 4, 3] == 255).all()
    assert (result.queries % 7 == 0).all()  # 4 + ⌊3·ln 3⌋ individuals a generation


@pytest.mark.parametrize(("pixels", "kind", "population"), [(2, CMA, 9), (33, CMA, 17), (34, SepCMA, 17)])
def test_is_the_librarys(pixels: int, kind: type, population: int) -> None:
    """The same start and seed, asked and told by hand, give the same generations."""
    genes = 3 * pixels
    ours = Restarting(CMAES(pixels=pixels), np.random.default_rng(120), channels=1)
    stream = np.random.default_rng(120)
    theirs = kind(mean=stream.random(genes), sigma=0.3, seed=int(stream.integers(1 << 32)))
    for _ in range(3):
        asked = np.stack([theirs.ask() for _ in range(theirs.population_size)])
        folded = ours.ask()
        assert folded.shape == (population, genes)
        np.testing.assert_array_equal(folded, reflected(asked))
        fitness = ((folded - 0.4) ** 2).sum(axis=1).tolist()
        ours.tell(fitness)
        theirs.tell(list(zip(asked, fitness, strict=True)))


def test_begins_anew_where_it_has_converged() -> None:
    ours = Restarting(CMAES(pixels=1), np.random.default_rng(121), channels=1)
    centres, spread = [], []
    for _ in range(300):
        asked = ours.ask()
        centres.append(asked.mean(axis=0))
        spread.append(asked.std())
        ours.tell([1.0] * len(asked))  # a plateau: the library stops on a flat history
    jumps = np.abs(np.diff(np.array(centres), axis=0)).max(axis=1)
    assert (jumps > 0.2).sum() >= 2
