"""Few-pixel search by differential evolution, many images and all their individuals in one tensor."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from workers.attacks.few_pixel import FewPixelAttack

if TYPE_CHECKING:
    from torch import Tensor

    from workers.search import Around, Batch

__all__ = ["DifferentialEvolution", "Draws", "crossover", "donors", "phenotype", "repair"]

CHUNK = 1 << 16
"""Candidates judged at a time, which bounds the memory whatever the population and the number of images."""

Strategy = Literal["best1bin", "rand1bin"]


class DifferentialEvolution(FewPixelAttack):
    """Few-pixel attack by differential evolution.

    Su, Vargas & Sakurai (2019), "One pixel attack for fooling deep neural networks"; the strategies are
    Storn & Price's (1997) DE/best/1/bin and DE/rand/1/bin. An individual is k pixels, each a row, a column and
    a level for each channel; the genotype is real in [0, 1), the phenotype its floor on H, W and 256 levels,
    so that 255 is reached. A generation is made from the one before it (deferred updating), out-of-bounds
    genes are drawn anew, and every individual of every generation is checked for success. Where an
    individual names a pixel twice, the later one counts. The defaults are the seed's.
    """

    NAME: ClassVar[str] = "de"

    pixels: int = Field(1, ge=1, description="k, how many pixels may change.")
    population: int = Field(5000, ge=4, description="Individuals an image (a number, not a multiplier).")
    generations: int = Field(400, ge=0, description="Most generations after the first population.")
    strategy: Strategy = Field("best1bin", description="Base vector of the mutation: the best, or a random one.")
    fitness: Literal["probability", "margin"] = Field(
        "probability", description="What is minimised: the true (1 − the target) probability, or the logit margin."
    )
    mutation: float | None = Field(
        None, gt=0, le=2, description="F, fixed; drawn from U(0.5, 1) each generation when absent."
    )
    recombination: float = Field(1.0, ge=0, le=1, description="CR, the share of genes taken from the mutant.")

    @property
    def shard_size(self) -> int:
        return max(1, min(256, 200_000 // (self.population * (self.generations + 1))))

    def _search(self, batch: "Batch") -> None:
        import torch

        rows = batch.all_rows
        around = batch.around(batch.images, rows)
        genes = self.pixels * (2 + batch.images.shape[1])
        streams = [Draws(stream, self, genes) for stream in batch.draws(rows)]

        def drawn(parts: Iterable[np.ndarray]) -> "Tensor":
            return torch.from_numpy(np.stack(list(parts))).to(rows.device)

        population = trials = drawn(stream.first_population() for stream in streams)
        fitness = torch.full(population.shape[:2], torch.inf, device=rows.device)
        for generation in range(self.generations + 1):
            scores, hits = self._evaluate(batch, around, trials, rows)
            better = scores <= fitness
            fitness = torch.where(better, scores, fitness)
            population = torch.where(better[:, :, None], trials, population)
            best, done = fitness.argmin(dim=1), hits.any(dim=1)
            fittest_hit = scores.masked_fill(~hits, torch.inf).argmin(dim=1)
            each = torch.arange(len(rows), device=rows.device)
            shown = torch.where(done[:, None], trials[each, fittest_hit], population[each, best])
            position, levels = phenotype(shown, self.pixels, batch.images.shape[2], batch.images.shape[3])
            batch.adversarial[rows] = around.images(rows, position, levels)
            if generation == self.generations or bool(done.all()):
                return
            going = ~done
            streams = [stream for stream, keep in zip(streams, going.tolist(), strict=True) if keep]
            rows, population, fitness, best = rows[going], population[going], fitness[going], best[going]
            mutants = donors(
                population,
                best,
                drawn(stream.parents() for stream in streams),
                drawn(stream.scale() for stream in streams),
                self.strategy,
            )
            trials = crossover(population, mutants, drawn(stream.taken() for stream in streams))
            trials = repair(trials, drawn(stream.fresh() for stream in streams))
            batch.generations[rows] += 1

    def _evaluate(
        self, batch: "Batch", around: "Around", individuals: "Tensor", rows: "Tensor"
    ) -> tuple["Tensor", "Tensor"]:
        """Fitness and success, each ``[b, population]``, of individuals ``[b, population, genes]``."""
        import torch

        owner, flat = rows.repeat_interleave(individuals.shape[1]), individuals.flatten(0, 1)
        fitness, success = [], []
        for start in range(0, len(owner), CHUNK):
            part = slice(start, start + CHUNK)
            position, levels = phenotype(flat[part], self.pixels, batch.images.shape[2], batch.images.shape[3])
            logits, margin, hits = around.judge(owner[part], position, levels)
            fitness.append(self._fitness(batch, logits, margin, owner[part]))
            success.append(hits)
        shape = individuals.shape[:2]
        return torch.cat(fitness).view(shape), torch.cat(success).view(shape)

    def _fitness(self, batch: "Batch", logits: "Tensor", margin: "Tensor", rows: "Tensor") -> "Tensor":
        if self.fitness == "margin":
            return margin
        probability = logits.softmax(dim=1).gather(1, batch.goal.classes[rows][:, None])[:, 0]
        return probability if batch.goal.targets is None else 1 - probability


@dataclass(frozen=True)
class Draws:
    """One image's random numbers, in the order the search asks for them.

    Attributes:
        stream: the image's own generator.
        attack: gives population, strategy, F and CR.
        genes: the length of an individual.
    """

    stream: np.random.Generator
    attack: DifferentialEvolution
    genes: int

    def first_population(self) -> np.ndarray:
        """float32 ``[population, genes]`` in [0, 1): a Latin hypercube (McKay, Beckman & Conover, 1979)."""
        size = self.attack.population
        strata = self.stream.permuted(np.tile(np.arange(size, dtype=np.float32)[:, None], (1, self.genes)), axis=0)
        return np.minimum((strata + self.fresh()) / size, np.float32(1 - 2**-24))

    def parents(self) -> np.ndarray:
        """int64 ``[population, 2 or 3]``: for each individual, others distinct from it and from each other."""
        size = self.attack.population
        taken = np.arange(size)[:, None]
        for excluded in range(1, 3 if self.attack.strategy == "best1bin" else 4):
            drawn = self.stream.integers(0, size - excluded, size)
            for other in np.sort(taken, axis=1).T:  # step over those already taken, from the lowest up
                drawn += drawn >= other
            taken = np.concatenate([taken, drawn[:, None]], axis=1)
        return taken[:, 1:]

    def scale(self) -> np.ndarray:
        """float32 scalar: F of this generation, dithered over U(0.5, 1) unless it is fixed."""
        drawn = self.stream.uniform(0.5, 1)
        return np.asarray(self.attack.mutation or drawn, dtype=np.float32)

    def taken(self) -> np.ndarray:
        """bool ``[population, genes]``: the genes to take from the mutant, at least one an individual."""
        size = self.attack.population
        mask = self.stream.random((size, self.genes), dtype=np.float32) < self.attack.recombination
        mask[np.arange(size), self.stream.integers(0, self.genes, size)] = True
        return mask

    def fresh(self) -> np.ndarray:
        """float32 ``[population, genes]`` in [0, 1): what out-of-bounds genes become."""
        return self.stream.random((self.attack.population, self.genes), dtype=np.float32)


def donors(population: "Tensor", best: "Tensor", parents: "Tensor", scale: "Tensor", strategy: Strategy) -> "Tensor":
    """Mutant vectors ``[b, population, genes]``: base + F·(difference of two) (Storn & Price, 1997, Eq. 2).

    Args:
        population: ``[b, population, genes]``.
        best: int64 ``[b]``, the fittest individual of each image.
        parents: int64 ``[b, population, 2]`` (best1bin) or ``[…, 3]`` (rand1bin, the first is the base).
        scale: ``[b]``, F.
        strategy: which base vector.
    """
    image = best.new_tensor(range(len(best)))
    chosen = population[image[:, None, None], parents]
    base = population[image, best][:, None] if strategy == "best1bin" else chosen[:, :, 0]
    return base + scale[:, None, None] * (chosen[:, :, -2] - chosen[:, :, -1])


def crossover(population: "Tensor", mutants: "Tensor", taken: "Tensor") -> "Tensor":
    """Binomial crossover: the mutant's gene where ``taken``, else the individual's own."""
    return mutants.where(taken, population)


def repair(trials: "Tensor", fresh: "Tensor") -> "Tensor":
    """Genes outside [0, 1) are replaced by fresh draws, as scipy does."""
    return trials.where((trials >= 0) & (trials < 1), fresh)


def phenotype(individuals: "Tensor", pixels: int, height: int, width: int) -> tuple["Tensor", "Tensor"]:
    """Positions row·W + column, int64 ``[n, k]``, and levels, uint8 ``[n, k, C]``, of genotypes ``[n, k·(2 + C)]``."""
    import torch

    genes = individuals.view(len(individuals), pixels, -1)
    row = (genes[:, :, 0] * height).long().clamp(0, height - 1)
    column = (genes[:, :, 1] * width).long().clamp(0, width - 1)
    return row * width + column, (genes[:, :, 2:] * 256).clamp(0, 255).to(torch.uint8)
