"""Differential evolution: operators against scipy's solver on the same draws, and the search itself."""

import tracemalloc
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.optimize._differentialevolution import DifferentialEvolutionSolver
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers import compiled
from workers.attacks import CMAES, DifferentialEvolution, de, de_kernel
from workers.attacks.de import adopt, crossover, donors, first_population, phenotype, repair, trials
from workers.draws import philox, three_others, unit
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
    """A run on a smooth function, our parents fed to scipy's own mutation, crossover and acceptance rule."""
    attack = DifferentialEvolution(population=20, strategy="best1bin", mutation=0.7)
    keys, individuals = torch.tensor([[3, 4]]), torch.arange(20)
    ours = first_population(keys, 20, 3)
    population = ours[0].numpy().astype(np.float64)
    energies = ((population - 0.4) ** 2).sum(axis=1)
    fitness = torch.tensor(energies)[None]
    solver = solver_for(population, "best1bin", 1.0)
    for generation in range(1, 16):
        words = philox(individuals, generation, de_kernel.PARENTS, 0, keys[:, 0], keys[:, 1])
        _, plus, minus = three_others(*words[:3], individuals, 20)
        solver.population, solver.scale = population[[int(np.argmin(energies)), *range(20)]], 0.7
        theirs = solver._best1(np.stack([plus, minus], axis=1) + 1)
        made = trials(attack, ours, fitness.argmin(dim=1), keys, generation, slice(0, 20))
        inside = (theirs >= 0) & (theirs < 1)
        np.testing.assert_allclose(made[0].numpy()[inside], theirs[inside], atol=1e-5)
        assert ((made >= 0) & (made < 1)).all()
        theirs = np.where(inside, theirs, made[0].numpy())  # what is drawn anew is ours
        their_energies = ((theirs - 0.4) ** 2).sum(axis=1)
        accepted = np.array(
            [solver._accept_trial(e, True, 0, o, True, 0) for e, o in zip(their_energies, energies, strict=True)]
        )
        population = np.where(accepted[:, None], theirs, population)
        energies = np.where(accepted, their_energies, energies)
        scores = ((made.double() - 0.4) ** 2).sum(dim=2)
        better = scores <= fitness
        ours, fitness = torch.where(better[:, :, None], made, ours), torch.where(better, scores, fitness)
        np.testing.assert_allclose(ours[0].numpy(), population, atol=1e-4)
    assert energies.min() < 1e-3


@pytest.mark.parametrize("population", [4, 5, 40])
def test_first_population_is_a_latin_hypercube(population: int) -> None:
    keys = torch.tensor([[5, 6], [7, 8]])
    first = first_population(keys, population, 6)
    assert first.dtype == torch.float32
    strata = np.sort(np.floor(first.numpy().astype(np.float64) * population), axis=1)
    assert np.array_equal(strata, np.tile(np.arange(population)[:, None], (2, 1, 6)))  # one in each stratum
    assert not torch.equal(first[0], first[1])
    order = first.argsort(dim=1)
    assert len({tuple(column) for image in order for column in image.T.tolist()}) > (1 if population < 6 else 11)
    assert torch.equal(first_population(keys[1:], population, 6), first[1:])


@pytest.mark.parametrize("recombination", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("population", "genes"), [(4, 3), (5, 10), (60, 7)])
def test_compiled_equals_torch_operations(
    monkeypatch: pytest.MonkeyPatch,
    strategy: Literal["best1bin", "rand1bin"],
    population: int,
    genes: int,
    recombination: float,
) -> None:
    """Bit for bit, so that a device without the compiled kernels makes the same search."""
    for mutation in (None, 0.9):
        attack = DifferentialEvolution(
            population=population, strategy=strategy, recombination=recombination, mutation=mutation
        )
        keys = torch.tensor([[1, 2], [0xFFFFFFFF, 0x80000000], [77, 0]])
        part = slice(1, population)

        def made(keys: torch.Tensor = keys, part: slice = part, attack: Any = attack) -> list[torch.Tensor]:
            before = first_population(keys, population, genes)
            best = before[:, :, 0].argmin(dim=1)
            found = [trials(attack, before, best, keys, generation, part) for generation in (1, 2, 400)]
            flat = torch.cat(found).flatten(0, 1)[:, : 6 if genes > 5 else 3]
            return [before, *found, *phenotype(flat, 2 if genes > 5 else 1, 9, 14)]

        monkeypatch.setattr(compiled, "on_host", lambda tensor: True)
        fast = made()
        monkeypatch.setattr(compiled, "on_host", lambda tensor: False)
        for one, other in zip(fast, made(), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        one = trials(attack, fast[0], fast[0][:, :, 0].argmin(dim=1), keys, 1, slice(2, 3))
        assert torch.equal(one, fast[1][:, 1:2])  # whatever is made with it
    kept = (fast[1] == fast[0][:, part]).float()
    assert not kept.all(dim=2).any()  # at least one gene is the mutant's
    if population == 60:
        assert abs(float(kept.mean()) - (1 - recombination) * (1 - 1 / genes)) < 0.06


@pytest.mark.parametrize("on_host", [True, False])
def test_adopts_what_is_no_worse(monkeypatch: pytest.MonkeyPatch, on_host: bool) -> None:
    monkeypatch.setattr(compiled, "on_host", lambda tensor: on_host)
    rng = np.random.default_rng(44)
    population, made = rng.random((5, 9, 3), dtype=np.float32), rng.random((3, 4, 3), dtype=np.float32)
    fitness = rng.integers(0, 4, (5, 9)).astype(np.float32)  # with ties
    scores = rng.integers(0, 4, (3, 4)).astype(np.float32)
    found, energies, slots = torch.tensor(population), torch.tensor(fitness), [4, 0, 3]
    adopt(torch.tensor(made), torch.tensor(scores), torch.tensor(slots), slice(2, 6), found, energies)
    for row, slot in enumerate(slots):
        for number in range(4):
            if scores[row, number] <= fitness[slot, 2 + number]:
                population[slot, 2 + number], fitness[slot, 2 + number] = made[row, number], scores[row, number]
    assert np.array_equal(found, population)
    assert np.array_equal(energies, fitness)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trials_equal_the_operators(strategy: Literal["best1bin", "rand1bin"]) -> None:
    """The difference of two parents is scaled by an F of U(0.5, 1), one a generation and image."""
    attack = DifferentialEvolution(population=12, strategy=strategy)
    keys, individuals = torch.tensor([[9, 1], [2, 6]]), torch.arange(12)
    before, scales = first_population(keys, 12, 3), []
    best = torch.tensor([4, 11])
    for generation in range(1, 100):
        made = trials(attack, before, best, keys, generation, slice(0, 12))
        scale = 0.5 + 0.5 * unit(philox(0, generation, de_kernel.SCALE, 0, keys[:, 0], keys[:, 1])[0])
        words = philox(individuals, generation, de_kernel.PARENTS, 0, keys[:, :1], keys[:, 1:])
        base, plus, minus = three_others(*words[:3], individuals, 12)
        if strategy == "best1bin":
            base = best[:, None].expand(2, 12)
        for image in range(2):
            mutant = before[image, base[image]] + scale[image] * (
                before[image, plus[image]] - before[image, minus[image]]
            )
            inside = (mutant >= 0) & (mutant < 1)
            assert torch.equal(made[image][inside], mutant[inside])
            assert not (made[image][~inside] == mutant[~inside]).any()
        scales += scale.tolist()
    assert 0.5 <= min(scales) < 0.53
    assert 0.97 < max(scales) <= 1
    assert abs(np.mean(scales) - 0.75) < 0.04


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


class Observed(TorchDispatchMode):
    """What torch is asked to do: what makes the host wait for the device, and the tensors made."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.made: dict[tuple[int, ...], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique2"):
            self.waits.append(name)
        elif masked:
            self.waits.append("mask")
        made = func(*args, **(kwargs or {}))
        for part in made if isinstance(made, tuple | list) else [made]:
            if isinstance(part, torch.Tensor) and not part._is_view():
                self.made[tuple(part.shape)] = part.nbytes
        return made


@pytest.mark.parametrize("fitness", ["probability", "margin"])
@pytest.mark.parametrize("target", [None, 1])
def test_a_device_runs_it_and_is_asked_once_a_generation(
    monkeypatch: pytest.MonkeyPatch, fitness: Literal["probability", "margin"], target: int | None
) -> None:
    model, shape, _ = random_model("colour", 40)  # no chain: whole images, as on a GPU
    images = random_images(shape, 7, 41)
    labels = predictions(model, images)

    def run(generations: int) -> tuple[Any, Observed]:
        attack = DifferentialEvolution(
            pixels=2, population=8, generations=generations, fitness=fitness, recombination=0.8
        )
        with Observed() as observed:
            result = attack(model, images, labels, targets=target, seed=1)
        return result, observed

    fast, _ = run(6)
    monkeypatch.setattr(compiled, "on_host", lambda tensor: False)
    slow, six = run(6)
    assert np.array_equal(fast.adversarial, slow.adversarial)
    assert np.array_equal(fast.queries, slow.queries)
    assert (fast.queries == 8 * 7).any()  # someone stays to the end
    _, none = run(0)
    counted = {kind: six.waits.count(kind) - none.waits.count(kind) for kind in {*six.waits, *none.waits}}
    assert counted.pop("nonzero") == 6
    assert not any(counted.values())


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape, _ = random_model("grey", 42)
    images = random_images(shape, 6, 43)
    labels = predictions(model, images)
    attack = DifferentialEvolution(pixels=2, population=40, generations=2)
    whole = attack(model, images, labels)
    for name, size in (("CHUNK", 100), ("IMAGES", 4), ("CHUNK", 16), ("STATE", 1)):  # 16: a population takes several
        monkeypatch.setattr(de, name, size)
        parts = attack(model, images, labels)
        assert np.array_equal(whole.adversarial, parts.adversarial)
        assert np.array_equal(whole.queries, parts.queries)


def test_memory_is_bounded_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(de, "CHUNK", 800)
    monkeypatch.setattr(de, "IMAGES", 4)

    def most(count: int, population: int) -> tuple[set[tuple[int, ...]], int, int]:
        """The shapes of all tensors, the bytes of the largest beside the state, and of numpy's arrays at most."""
        attack = DifferentialEvolution(population=population, generations=1)
        images = np.zeros((count, 1, 5, 4), dtype=np.uint8)
        tracemalloc.start()
        with Observed() as observed:
            attack(Spot(0, 4, 3, 255), images, np.zeros(count, dtype=np.int64))
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        state = {(min(count, 4), population, 3), (min(count, 4), population)}
        return set(observed.made), max(n for shape, n in observed.made.items() if shape not in state), arrays

    most(1, 10)  # what the first call imports and keeps
    _, tensor, arrays = most(4, 400)
    shapes, largest, peak = most(12, 400)
    assert (4, 400, 3) in shapes
    assert (12, 400, 3) not in shapes
    assert largest == tensor
    assert peak < 1.5 * arrays
    _, tensor, arrays = most(1, 2400)  # one image's population is more than a chunk
    assert tensor <= 2400 * 3 * 8
    assert arrays < 2400 * 3 * 8 * 4


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


def test_a_population_that_no_memory_holds_is_refused_before_the_search() -> None:
    largest = de.LARGEST // 3  # a grey pixel has three genes
    DifferentialEvolution(population=largest).check((1, 28, 28), 10)
    with pytest.raises(WrongInput, match=f"--population: .* {largest} .*, got {largest + 1}"):
        DifferentialEvolution(population=largest + 1).check((1, 28, 28), 10)
    with pytest.raises(WrongInput, match="--population: must be at most 10000"):
        CMAES(population=100_000_000).check((1, 28, 28), 10)
