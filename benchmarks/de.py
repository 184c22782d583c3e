"""Differential evolution: its speed beside the bare evaluator's, its recall, and self-adaptation.

    python benchmarks/de.py --model MODEL

Speed: candidates a second through the attack class, as a share of the incremental evaluator's own on the same
candidates in the same process; a median over rounds in which both are timed one after the other, in processor
time unless ``--wall`` (on a machine that is shared, the first is the steadier).
Recall: of the digits that one pixel can turn (the exact verdict of the digits of the lowest margins and of a
random sample), the share that one-pixel search finds, by population and generations.
Self-adaptation: success at an equal number of queries, against fixed parameters on the same digits.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from workers.attacks import DifferentialEvolution, OnePixelExact
from workers.attacks.de import crossover, first_population, phenotype, repair
from workers.evaluation.chain import read_chain
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.incremental import CleanState, IncrementalEvaluator
from workers.images import Dataset
from workers.models.loading import read_model
from workers.results import SearchResult
from workers.search import Batch
from workers.sources import load_data

ROUNDS = 5
RESAMPLES = 10_000
FITNESS: tuple[Literal["probability", "margin"], ...] = ("probability", "margin")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of the kernel")
    parser.add_argument("--wall", action="store_true", help="time by the clock; needed with several threads")
    parser.add_argument("--tables", nargs="+", default=["speed", "recall", "adaptation"], help="which to print")
    parser.add_argument("--hard", type=int, default=150, help="exact verdicts of this many digits of lowest margin")
    parser.add_argument("--random", type=int, default=50, help="exact verdicts of this many random correct digits")
    parser.add_argument("--verdicts", help="file that keeps the exact verdicts (.npz), read when it is there")
    parser.add_argument("--populations", type=int, nargs="+", default=[100, 400, 1000, 5000])
    parser.add_argument("--generations", type=int, nargs="+", default=[10, 25, 75, 400])
    parser.add_argument("--digits", type=int, default=60, help="random digits of the table of self-adaptation")
    parser.add_argument("--pixels", type=int, nargs="+", default=[3, 5], help="k of that table")
    parser.add_argument("--budgets", nargs="+", default=["100x99"], help="its populations × generations")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, data = read_model(options.model).build(), load_data("mnist", "test")
    correct, margin = confident(model, data)
    if "speed" in options.tables:
        speed(model, data, options.threads, time.perf_counter if options.wall else time.process_time)
    if {"recall", "adaptation"} & {*options.tables}:
        attackable = verdicts(model, data, correct, margin, options)
    if "recall" in options.tables:
        recall(model, data, attackable, options.populations, options.generations)
    if "adaptation" in options.tables:
        chosen = np.random.default_rng(1).permutation(correct)[: options.digits]
        for budget in options.budgets:
            population, generations = (int(part) for part in budget.split("x"))
            adaptation(model, data, attackable, 1, population, generations)
            for pixels in options.pixels:
                adaptation(model, data, chosen, pixels, population, generations)


def confident(model: nn.Module, data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the digits that the model gets right, and by how much each."""
    logits = DenseEvaluator(model).logits(torch.tensor(data.images))
    correct = np.flatnonzero(logits.argmax(dim=1).numpy() == data.labels)
    top = logits[correct].topk(2).values
    return correct, (top[:, 0] - top[:, 1]).numpy()


def attack(search: DifferentialEvolution | OnePixelExact, model: nn.Module, data: Dataset, ids: Any) -> SearchResult:
    """A search of the digits ``ids``."""
    return search(model, data.images[ids], data.labels[ids], ids=ids)


def speed(model: nn.Module, data: Dataset, threads: int, clock: Callable[[], float]) -> None:
    """Prints candidates a second through the attack class beside those of the evaluator alone.

    The evaluator is given the very candidates that the search made: those of later generations gather where the
    digit is and cost more than random ones, whose rate is the last column.
    """
    chain = read_chain(model, (1, 28, 28))
    assert chain is not None
    evaluator = IncrementalEvaluator(chain, (1, 28, 28), threads=threads)
    rng = np.random.default_rng(0)
    columns = f"{'bare/s':>10} {'through the class/s':>20} {'share':>6} {'bare, random/s':>15}"
    print(f"{threads} threads\n{'k':>3} {'population':>11} {'images':>7} {columns}")
    for pixels in (1, 5):
        for population, images, generations in ((400, 1, 100), (400, 64, 15), (5000, 1, 30), (5000, 16, 5)):
            ids = np.arange(100, 100 + images)
            state = evaluator.clean_state(torch.tensor(data.images[ids]))
            search = DifferentialEvolution(pixels=pixels, population=population, generations=generations)
            made = candidates(search, model, data, ids)
            rates = []
            for _ in range(ROUNDS):
                start = clock()
                evaluator.logits(state, *made)
                middle = clock()
                queries = attack(search, model, data, ids).queries.sum()
                rates.append((len(made[0]) / (middle - start), queries / (clock() - middle)))
            bare, through = np.median(rates, axis=0)
            share = np.median([b / a for a, b in rates])
            count = 100_000 // pixels
            anywhere = rng.integers(0, 784, (count, pixels))
            levels = rng.integers(0, 256, (count, pixels, 1)).astype(np.uint8)
            start = clock()
            evaluator.logits(state, np.sort(rng.integers(0, images, count)), anywhere, levels)
            random = count / (clock() - start)
            found = f"{bare:>10,.0f} {through:>20,.0f} {share:>6.0%} {random:>15,.0f}"
            print(f"{pixels:>3} {population:>11} {images:>7} {found}", flush=True)


def candidates(search: DifferentialEvolution, model: nn.Module, data: Dataset, ids: Any) -> tuple[np.ndarray, ...]:
    """What a search asks the evaluator: owner, position and levels of all its candidates."""
    asked: list[tuple[np.ndarray, ...]] = []
    logits = IncrementalEvaluator.logits

    def listening(self: IncrementalEvaluator, state: CleanState, *changes: np.ndarray) -> np.ndarray:
        asked.append(changes)
        return logits(self, state, *changes)

    with patch.object(IncrementalEvaluator, "logits", listening):
        attack(search, model, data, ids)
    return tuple(np.concatenate(part) for part in zip(*asked, strict=True))


def verdicts(model: nn.Module, data: Dataset, correct: np.ndarray, margin: np.ndarray, options: Any) -> np.ndarray:
    """The ids of the attackable digits among those of lowest margin and a random sample."""
    kept = Path(options.verdicts) if options.verdicts else None
    hard = correct[margin.argsort(kind="stable")[: options.hard]]
    random = np.random.default_rng(0).permutation(correct)[: options.random]
    ids = np.unique(np.concatenate([hard, random]))
    known: dict[int, int] = {}
    if kept and kept.exists():
        known = dict(zip(*(part.tolist() for part in np.load(kept).values()), strict=True))
    missing = np.array([number for number in ids if number not in known], dtype=np.int64)
    for start in range(0, len(missing), 50):
        part = missing[start : start + 50]
        found = attack(OnePixelExact(), model, data, part).by_products["successes"]
        known |= dict(zip(part.tolist(), found.tolist(), strict=True))
        if kept:
            np.savez(kept, ids=np.array([*known]), successes=np.array([*known.values()]))
    for name, group in (("of lowest margin", hard), ("random", random)):
        turned = sum(known[number] > 0 for number in group.tolist())
        print(f"one pixel turns {turned} of {len(group)} digits {name}{interval(turned, len(group))}")
    return np.array([number for number in ids.tolist() if known[number] > 0])


def interval(hits: int, count: int) -> str:
    """The 95 % Wilson interval."""
    if not count:
        return ""
    low, high = binomtest(hits, count).proportion_ci(method="wilson")
    return f" ({hits / count:.1%}, {low:.1%} to {high:.1%})"


def recall(model: nn.Module, data: Dataset, ids: np.ndarray, populations: list[int], generations: list[int]) -> None:
    """Prints the share of attackable digits that one-pixel search finds; one run answers all generations."""
    print(f"\nrecall of {len(ids)} attackable digits, k = 1, best1bin")
    for fitness in FITNESS:
        for population in populations:
            longest = DifferentialEvolution(population=population, generations=max(generations), fitness=fitness)
            result = attack(longest, model, data, ids)
            print(f"{fitness:>12} {population:>6}", end="")
            for most in generations:
                hits = int((result.success & (result.generations <= most)).sum())
                print(f"   {most} generations:{interval(hits, len(ids))}", end="")
            print(flush=True)


def adaptation(
    model: nn.Module, data: Dataset, ids: np.ndarray, pixels: int, population: int, generations: int
) -> None:
    """Prints success by scheme, and its difference to best1bin with a paired bootstrap interval."""
    print(f"\n{len(ids)} digits, k = {pixels}, population {population} × {generations} generations")
    sizes: dict[str, Any] = {"pixels": pixels, "population": population, "generations": generations}
    for fitness in FITNESS:
        fixed = None
        for search in (
            DifferentialEvolution(fitness=fitness, **sizes),
            DifferentialEvolution(fitness=fitness, strategy="rand1bin", **sizes),
            SelfAdaptive(fitness=fitness, scheme="jde", **sizes),
            SelfAdaptive(fitness=fitness, scheme="shade", **sizes),
        ):
            success = attack(search, model, data, ids).success.astype(float)
            fixed = success if fixed is None else fixed
            draws = np.random.default_rng(0).integers(0, len(ids), (RESAMPLES, len(ids)))
            low, high = np.quantile((success - fixed)[draws].mean(axis=1), [0.025, 0.975])
            name = search.scheme if isinstance(search, SelfAdaptive) else search.strategy
            print(
                f"{fitness:>12} {name:>9}{interval(int(success.sum()), len(ids))}"
                f"   difference {(success - fixed).mean():+.1%} ({low:+.1%} to {high:+.1%})",
                flush=True,
            )


class SelfAdaptive(DifferentialEvolution):
    """The same search with parameters that adapt themselves: what the fixed scheme is compared with.

    jDE (Brest, Greiner, Bošković, Mernik & Žumer, 2006, Eq. 7-8): rand/1/bin, F and CR of each individual drawn
    anew with probability 0.1. SHADE (Tanabe & Fukunaga, 2013, Algorithm 1): current-to-pbest/1/bin with an archive
    and a memory of what succeeded.
    """

    NAME: ClassVar[str] = "self-adaptive-de"

    scheme: Literal["jde", "shade"] = "jde"

    def _evolve(self, batch: Batch, rows: Tensor, genes: int) -> None:
        for row in rows:
            self._one(batch, row[None], genes)

    def _one(self, batch: Batch, row: Tensor, genes: int) -> None:
        rng, size = batch.draws(row)[0], self.population
        around = batch.around(batch.images[row], row)
        slot = torch.zeros(1, dtype=torch.int64)
        trial = first_population(batch.keys(row), size, genes)
        population, fitness = trial, torch.full((1, size), torch.inf)
        scale, rate = np.full(size, 0.5), np.full(size, 0.9)
        tried = scale, rate
        memory = np.full((2, size), 0.5)
        archive, oldest = population[0, :0].numpy(), 0
        for generation in range(self.generations + 1):
            scores, hits = self._judge(batch, around, slot, trial)
            better = scores <= fitness
            if generation and self.scheme == "shade":
                gain = (fitness - scores)[0].numpy().astype(float)
                won = gain > 0
                archive = np.concatenate([archive, population[0].numpy()[won]])
                archive = archive[rng.permutation(len(archive))[:size]]
                if won.any():
                    weight = gain[won] / gain[won].sum()
                    memory[0, oldest] = (weight * tried[0][won] ** 2).sum() / (weight * tried[0][won]).sum()
                    memory[1, oldest] = (weight * tried[1][won]).sum()
                    oldest = (oldest + 1) % size
            taken = better[0].numpy()
            scale, rate = np.where(taken, tried[0], scale), np.where(taken, tried[1], rate)
            population = trial.where(better[:, :, None], population)
            fitness = scores.where(better, fitness)
            shown = population[:, int(fitness.argmin())]
            if hits.any():
                shown = trial[:, int(scores.masked_fill(~hits, torch.inf).argmin())]
            if hits.any() or generation == self.generations:
                position, levels = phenotype(shown, self.pixels, *batch.images.shape[2:])
                batch.adversarial[row] = around.images(slot, position, levels)
                return
            batch.generations[row] += 1
            own = population[0].numpy()
            order = np.array([rng.permutation(size)[:4] for _ in range(size)])
            order = np.array([line[line != number][:3] for number, line in enumerate(order)])
            if self.scheme == "jde":
                tried = (
                    np.where(rng.random(size) < 0.1, 0.1 + 0.9 * rng.random(size), scale),
                    np.where(rng.random(size) < 0.1, rng.random(size), rate),
                )
                mutant = own[order[:, 0]] + tried[0][:, None] * (own[order[:, 1]] - own[order[:, 2]])
            else:
                cell = rng.integers(0, size, size)
                drawn = memory[0, cell] + 0.1 * rng.standard_cauchy(size)
                while (drawn <= 0).any():
                    drawn = np.where(drawn <= 0, memory[0, cell] + 0.1 * rng.standard_cauchy(size), drawn)
                tried = drawn.clip(max=1), rng.normal(memory[1, cell], 0.1).clip(0, 1)
                fittest = fitness[0].argsort().numpy()
                top = fittest[(rng.random(size) * np.maximum(2, rng.uniform(2 / size, 0.2, size) * size)).astype(int)]
                pool = np.concatenate([own, archive])
                second = rng.integers(0, len(pool), size)
                again = (second == np.arange(size)) | (second == order[:, 0])
                second = np.where(again, order[:, 1], second)
                mutant = own + tried[0][:, None] * (own[top] - own + own[order[:, 0]] - pool[second])
                mutant = np.where(mutant < 0, own / 2, np.where(mutant >= 1, (own + 1) / 2, mutant))
            mask = rng.random((size, genes)) < tried[1][:, None]
            mask[np.arange(size), rng.integers(0, genes, size)] = True
            made = crossover(
                population, torch.from_numpy(mutant.astype(np.float32))[None], torch.from_numpy(mask)[None]
            )
            trial = repair(made, torch.from_numpy(rng.random((1, size, genes), dtype=np.float32)))


if __name__ == "__main__":
    main()
