"""Differential evolution: operators against scipy's solver on the same draws, and the search itself."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.optimize._differentialevolution import DifferentialEvolutionSolver
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import DifferentialEvolution
from workers.attacks.de import Draws, crossover, donors, phenotype, repair
from workers.errors import WrongInput
from workers.images import Dataset

STRATEGIES: tuple[Literal["best1bin", "rand1bin"], ...] = ("best1bin", "rand1bin")


def solver_for(population: np.ndarray, strategy: str, recombination: float) -> Any:
    return DifferentialEvolutionSolver(
        lambda x: 0.0,
        [(0, 1)] * population.shape[1],
        strategy=strategy,
        recombination=recombination,
        init=population,
        updating="deferred",
        rng=0,
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_operators_equal_scipys(strategy: Literal["best1bin", "rand1bin"]) -> None:
    rng = np.random.default_rng(19)
    population = rng.random((30, 6))
    solver = solver_for(population, strategy, 0.6)
    solver.scale = 0.83
    parents = np.array([rng.permutation(30)[:5] for _ in range(30)])
    theirs = (solver._best1 if strategy == "best1bin" else solver._rand1)(parents)
    used = parents[:, : 2 if strategy == "best1bin" else 3]
    batch = torch.tensor(np.stack([population[::-1].copy(), population]))
    mutants = donors(
        batch,
        torch.tensor([29, 0]),  # scipy keeps the best individual first
        torch.tensor(np.stack([29 - used, used])),
        torch.full((2,), 0.83, dtype=torch.float64),
        strategy,
    )
    for found in mutants:  # the reversed population with reversed parents must give the same mutants
        np.testing.assert_allclose(found.numpy(), theirs, rtol=0, atol=1e-12)

    taken = rng.random((30, 6)) < 0.6
    trials = crossover(batch[1:], mutants[1:], torch.tensor(taken)[None])[0].numpy()
    assert np.array_equal(trials, np.where(taken, theirs, population))

    fresh = rng.random((30, 6))
    mended = repair(torch.tensor(trials), torch.tensor(fresh)).numpy()
    outside = (trials < 0) | (trials > 1)
    assert outside.any()
    checked = trials.copy()
    solver._ensure_constraint(checked)
    assert np.array_equal(mended[~outside], checked[~outside])
    assert np.array_equal(mended[outside], fresh[outside])


def test_whole_generations_equal_scipys_rules() -> None:
    """A run on a smooth function, our draws fed to scipy's own mutation, crossover and acceptance rule."""
    attack = DifferentialEvolution(population=20, strategy="best1bin", recombination=0.7)
    draws = Draws(np.random.default_rng(20), attack, 3)
    population = draws.first_population().astype(np.float64)
    energies = np.array([((x - 0.4) ** 2).sum() for x in population])
    ours, fitness = torch.tensor(population)[None], torch.tensor(energies)[None]
    solver = solver_for(population, "best1bin", 0.7)
    for _ in range(15):
        parents, scale, taken, fresh = draws.parents(), draws.scale(), draws.taken(), draws.fresh()
        best = int(np.argmin(energies))
        solver.population, solver.scale = population[[best, *range(20)]], float(scale)
        theirs = np.where(taken, solver._best1(parents + 1), population)
        theirs = np.where((theirs < 0) | (theirs >= 1), fresh, theirs)
        their_energies = np.array([((x - 0.4) ** 2).sum() for x in theirs])
        accepted = np.array(
            [solver._accept_trial(e, True, 0, o, True, 0) for e, o in zip(their_energies, energies, strict=True)]
        )
        population = np.where(accepted[:, None], theirs, population)
        energies = np.where(accepted, their_energies, energies)

        mutants = donors(
            ours, fitness.argmin(dim=1), torch.tensor(parents)[None], torch.tensor(scale)[None], "best1bin"
        )
        trials = repair(crossover(ours, mutants, torch.tensor(taken)[None]), torch.tensor(fresh)[None])
        scores = ((trials - 0.4) ** 2).sum(dim=2)
        better = scores <= fitness
        ours, fitness = torch.where(better[:, :, None], trials, ours), torch.where(better, scores, fitness)
        np.testing.assert_allclose(ours[0].numpy(), population, atol=1e-6)
    assert energies.min() < 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("population", [4, 5, 40])
def test_draws(strategy: Literal["best1bin", "rand1bin"], population: int) -> None:
    attack = DifferentialEvolution(population=population, strategy=strategy, recombination=0.3)
    draws = Draws(np.random.default_rng(21), attack, 6)
    first = draws.first_population()
    assert first.dtype == np.float32
    strata = np.sort(np.floor(first.astype(np.float64) * population), axis=0)
    assert np.array_equal(strata, np.tile(np.arange(population)[:, None], (1, 6)))  # one in each stratum
    seen = np.zeros((population, population), dtype=int)
    scales = []
    for _ in range(200):
        parents = draws.parents()
        everyone = np.concatenate([np.arange(population)[:, None], parents], axis=1)
        assert all(len(set(row)) == everyone.shape[1] for row in everyone.tolist())
        assert parents.min() >= 0
        assert parents.max() < population
        for column in parents.T:
            np.add.at(seen, (np.arange(population), column), 1)
        scales.append(float(draws.scale()))
        assert draws.taken().any(axis=1).all()
    off_diagonal = seen[~np.eye(population, dtype=bool)]
    expected = 200 * parents.shape[1] / (population - 1)
    assert abs(off_diagonal.mean() - expected) < 1e-9
    assert (np.abs(off_diagonal - expected) < 6 * np.sqrt(expected) + 3).all()  # no one is preferred
    assert min(scales) >= 0.5
    assert max(scales) <= 1
    assert len(set(scales)) > 150
    assert float(Draws(np.random.default_rng(0), DifferentialEvolution(mutation=0.7), 3).scale()) == np.float32(0.7)


def test_phenotype_reaches_every_row_column_and_level() -> None:
    top = np.nextafter(np.float32(1), np.float32(0))
    genes = torch.tensor([[0, 0, 0, 0.5, 0.999], [top, top, top, top, top]])
    position, levels = phenotype(genes, 1, 13, 7)
    assert position.flatten().tolist() == [0, 12 * 7 + 6]
    assert levels.flatten().tolist() == [0, 128, 255, 255, 255, 255]
    grid = torch.rand((200_000, 3), generator=torch.Generator().manual_seed(1))
    position, levels = phenotype(grid, 1, 3, 11)
    assert sorted(set(position.flatten().tolist())) == list(range(33))
    assert sorted(set(levels.flatten().tolist())) == list(range(256))


class Spot(nn.Module):
    """Class 1 wins only where one given pixel of one channel holds exactly one level."""

    def __init__(self, channel: int, row: int, column: int, level: int) -> None:
        super().__init__()
        self.place, self.level = (channel, row, column), level

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        channel, row, column = self.place
        near = 1 - (images[:, channel, row, column] * 255 - self.level).abs() / 255
        return torch.stack([torch.full_like(near, 0.999), near], dim=1)


@pytest.mark.parametrize("fitness", ["probability", "margin"])
@pytest.mark.parametrize("target", [None, 1])
def test_finds_a_needle(fitness: Literal["probability", "margin"], target: int | None) -> None:
    images = np.zeros((2, 1, 5, 4), dtype=np.uint8)
    attack = DifferentialEvolution(population=60, generations=60, fitness=fitness)
    result = attack(Spot(0, 4, 3, 255), images, np.array([0, 0]), targets=target, seed=3)
    assert result.success.all()
    assert (result.adversarial[:, 0, 4, 3] == 255).all()
    assert (result.distances.l0 == 1).all()
    assert (result.queries == 60 * (result.generations + 1)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stays_within_its_pixels(strategy: Literal["best1bin", "rand1bin"]) -> None:
    model, shape, classes = random_model("colour", 22)
    images = random_images(shape, 5, 23)
    labels = predictions(model, images)
    attack = DifferentialEvolution(pixels=3, population=16, generations=6, strategy=strategy)
    result = attack(model, images, labels, targets=(labels + 1) % classes)
    assert result.distances.l0.max() <= 3
    assert (result.queries <= 16 * 7).all()
    assert (result.gradients == 0).all()


def test_lowers_the_true_class_on_mnist(mnist: Dataset, mnist_model: nn.Module, correct: np.ndarray) -> None:
    ids = correct[::900][:8]
    attack = DifferentialEvolution(pixels=5, population=100, generations=10)
    result = attack(mnist_model, mnist.images[ids], mnist.labels[ids], ids=ids)
    first = DifferentialEvolution(pixels=5, population=100, generations=0)
    start = first(mnist_model, mnist.images[ids], mnist.labels[ids], ids=ids)
    assert (result.queries == 1100).sum() >= 4
    assert result.adversarial_confidence[~result.success].mean() < start.adversarial_confidence[~result.success].mean()


@pytest.mark.parametrize(
    "wrong", [{"population": 3}, {"pixels": 0}, {"generations": -1}, {"strategy": "best2bin"}, {"recombination": 1.2}]
)
def test_refuses_wrong_parameters(wrong: dict[str, Any]) -> None:
    with pytest.raises(WrongInput, match=f"--{next(iter(wrong))}"):
        DifferentialEvolution(**wrong)


def test_refuses_more_pixels_than_there_are() -> None:
    model, shape, _ = random_model("grey", 24)
    images = random_images(shape, 1, 25)
    with pytest.raises(WrongInput, match="--pixels"):
        DifferentialEvolution(pixels=9 * 12 + 1)(model, images, predictions(model, images))
