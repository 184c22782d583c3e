"""Few-pixel search by differential evolution, many images and all their individuals in one tensor."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from workers.attacks.few_pixel import FewPixelAttack
from workers.budgets import Number
from workers.errors import WrongInput

if TYPE_CHECKING:
    from torch import Tensor

    from workers.search import Around, Batch

__all__ = ["DifferentialEvolution", "adopt", "crossover", "donors", "first_population", "phenotype", "repair", "trials"]

CHUNK = 1 << 14
"""Individuals made and judged at a time, which bounds the memory whatever the population and the number of images."""

STATE = 1 << 26
"""Genes of all populations held at a time: 256 MB. More images than that wait for those before them."""

LARGEST = 1 << 26
"""Most genes of one image's population: 256 MB."""

IMAGES = 1024
"""Most images searched at a time: their clean activations are held as well."""

Strategy = Literal["best1bin", "rand1bin"]


class DifferentialEvolution(FewPixelAttack):
    """Few-pixel attack by differential evolution.

    Su, Vargas & Sakurai (2019), "One pixel attack for fooling deep neural networks"; the strategies are
    Storn & Price's (1997) DE/best/1/bin and DE/rand/1/bin. An individual is k pixels, each a row, a column and
    a level for each channel; the genotype is real in [0, 1), the phenotype its floor on H, W and 256 levels,
    so that 255 is reached. A generation is made from the one before it (deferred updating), out-of-bounds
    genes are drawn anew, and every individual of every generation is checked for success. Where an
    individual names a pixel twice, the later one counts. The defaults are the seed's.

    The probability is minimised by its log-odds: the same order, without the ties of what rounds to 1. F and CR
    that adapt themselves (jDE, SHADE) found less at k = 3 and 5 than best/1/bin (``benchmarks/de.py``): none is here.

    Of each image searched at a time (at most 1024, and 256 MB of genes in all, but at least one) the
    population, float32 ``[population, k·(2 + C)]``, and its fitness, float32 ``[population]``, are kept: 80 kB
    for one grey pixel and population 5000. All else is made for 16,384 individuals, or one image's, at a time.
    Every draw is a function of the image's key, the generation and the individual. A generation asks the device
    once, for which images are left.
    """

    NAME: ClassVar[str] = "de"

    pixels: int = Field(1, ge=1, description="k, how many pixels may change.")
    population: int = Field(5000, ge=4, description="Individuals an image (a number, not a multiplier).")
    generations: int = Field(400, ge=0, description="Most generations after the first population.")
    strategy: Strategy = Field("best1bin", description="Base vector of the mutation: the best, or a random one.")
    fitness: Literal["probability", "margin"] = Field(
        "probability", description="What is minimised: the true (1 − the target) probability, or the logit margin."
    )
    mutation: Number | None = Field(
        None, gt=0, le=2, description="F, fixed; drawn from U(0.5, 1) each generation when absent."
    )
    recombination: Number = Field(1.0, ge=0, le=1, description="CR, the share of genes taken from the mutant.")

    @property
    def shard_size(self) -> int:
        return max(1, min(256, 200_000 // (self.population * (self.generations + 1))))

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        most = LARGEST // (self.pixels * (2 + shape[0]))
        if self.population > most:
            raise WrongInput(f"--population: memory is for at most {most} such individuals, got {self.population}")
        return super().check(shape, classes)

    def _search(self, batch: "Batch") -> None:
        genes = self.pixels * (2 + batch.images.shape[1])
        at_once = max(1, min(IMAGES, STATE // (self.population * genes)))
        for start in range(0, len(batch), at_once):
            self._evolve(batch, batch.all_rows[start : start + at_once], genes)

    def _evolve(self, batch: "Batch", rows: "Tensor", genes: int) -> None:
        """Searches for some rows of the batch; what is kept of an image lies at its place among them, its slot."""
        import torch

        around, keys = batch.around(batch.images[rows], rows), batch.keys(rows)
        population = torch.empty((len(rows), self.population, genes), device=rows.device)
        fitness = torch.full(population.shape[:2], torch.inf, device=rows.device)
        strongest = torch.full(rows.shape, torch.inf, device=rows.device)  # the fitness of the successes found
        shown = torch.empty((len(rows), genes), device=rows.device)  # and their genes
        left = torch.arange(len(rows), device=rows.device)
        images = max(1, CHUNK // self.population)
        for generation in range(self.generations + 1):
            for first in range(0, len(left), images):
                slots = left[first : first + images]
                key = keys[slots]
                if generation:
                    before, best = _copy(population, slots), _copy(fitness, slots).argmin(dim=1)
                else:
                    before = first_population(key, self.population, genes)
                for start in range(0, self.population, CHUNK):
                    part = slice(start, min(start + CHUNK, self.population))
                    made = before[:, part]
                    if generation:
                        made = trials(self, before, best, key, generation, part)
                    scores, hits = self._judge(batch, around, slots, made)
                    adopt(made, scores, slots, part, population, fitness)
                    hit, number = scores.masked_fill(~hits, torch.inf).min(dim=1)
                    closer = hit < strongest[slots]
                    chosen = made[torch.arange(len(slots), device=rows.device), number]
                    shown[slots] = chosen.where(closer[:, None], shown[slots])
                    strongest[slots] = hit.where(closer, strongest[slots])
            if generation:
                batch.generations[rows[left]] += 1
            done = strongest[left] < torch.inf
            going = torch.nonzero(~done)[:, 0]
            if generation == self.generations or len(going) < len(left):
                fittest = population[left, fitness[left].argmin(dim=1)]
                position, levels = phenotype(shown[left].where(done[:, None], fittest), self.pixels, *_sides(batch))
                batch.adversarial[rows[left]] = around.images(left, position, levels)
            left = left[going]
            if not len(left):
                return

    def _judge(
        self, batch: "Batch", around: "Around", slots: "Tensor", individuals: "Tensor"
    ) -> tuple["Tensor", "Tensor"]:
        """Fitness and success, each ``[b, n]``, of individuals ``[b, n, genes]`` of the images ``slots``."""
        shape = individuals.shape[:2]
        index = slots[:, None].expand(shape).flatten()
        position, levels = phenotype(individuals.flatten(0, 1), self.pixels, *_sides(batch))
        logits, scores, success = around.judge(index, position, levels)
        if self.fitness == "probability":
            scores = batch.goal.log_odds(logits, around.rows[index])
        return scores.view(shape), success.view(shape)


def _sides(batch: "Batch") -> tuple[int, int]:
    return batch.images.shape[2], batch.images.shape[3]


def first_population(keys: "Tensor", population: int, genes: int) -> "Tensor":
    """float32 ``[b, population, genes]`` in [0, 1): Latin hypercubes (McKay, Beckman & Conover, 1979).

    Args:
        keys: int64 ``[b, 2]``, of the images' draws.
        population: how many individuals; each gene has one of them in each of as many strata.
        genes: of an individual.
    """
    import torch

    from workers import compiled
    from workers.attacks import de_kernel
    from workers.draws import unit

    if compiled.on_host(keys):
        ranked = np.empty((len(keys), genes, population), np.int64)
        de_kernel.strata_keys(keys.numpy(), ranked)
        ranked.sort(axis=2)
        made = np.empty((len(keys), population, genes), np.float32)
        de_kernel.latin(ranked, keys.numpy(), made)
        return torch.from_numpy(made)
    individuals = torch.arange(population, device=keys.device)
    ranks = _words(keys, 0, individuals, de_kernel.STRATA, genes) >> 1 << 32 | individuals[:, None]
    strata = (ranks.sort(dim=1).values & 0xFFFFFFFF).to(torch.float32)
    within = unit(_words(keys, 0, individuals, de_kernel.FRESH, genes))
    share = float(np.float32(1 / population))
    return ((strata + within) * share).clamp(max=1 - 2**-24)


def trials(
    attack: DifferentialEvolution,
    before: "Tensor",
    best: "Tensor",
    keys: "Tensor",
    generation: int,
    part: slice,
) -> "Tensor":
    """The trial vectors float32 ``[b, n, genes]`` of the n individuals ``part``: mutation, crossover, repair.

    Args:
        attack: gives strategy, F and CR.
        before: ``[b, population, genes]``, the generation before.
        best: int64 ``[b]``, the fittest of each image.
        keys: int64 ``[b, 2]``, of the images' draws.
        generation: its number.
        part: start and stop.
    """
    import torch

    from workers import compiled
    from workers.attacks import de_kernel
    from workers.draws import below, philox, three_others, unit

    threshold, count = round(attack.recombination * 2**32), before.shape[1]
    random_base = attack.strategy == "rand1bin"
    if compiled.on_host(before):
        made = np.empty((len(before), part.stop - part.start, before.shape[2]), np.float32)
        compiled.spread(
            de_kernel.trials, made.shape[0] * made.shape[1], before.numpy(), best.numpy(), keys.numpy(),
            generation, part.start, np.float32(attack.mutation or 0), threshold, random_base, made,
        )  # fmt: skip
        return torch.from_numpy(made)
    k0, k1 = keys[:, 0], keys[:, 1]
    dithered = 0.5 + 0.5 * unit(philox(0, generation, de_kernel.SCALE, 0, k0, k1)[0])
    scale = dithered if attack.mutation is None else torch.full_like(dithered, attack.mutation)
    individuals = torch.arange(part.start, part.stop, device=keys.device)
    words = philox(individuals, generation, de_kernel.PARENTS, 0, k0[:, None], k1[:, None])
    others = torch.stack(three_others(*words[:3], individuals, count), dim=2)
    mutants = donors(before, best, others if random_base else others[:, :, 1:], scale, attack.strategy)
    if threshold < 1 << 32:
        genes = torch.arange(before.shape[2], device=keys.device)
        taken = _words(keys, generation, individuals, de_kernel.TAKEN, len(genes)) < threshold
        taken |= below(words[3], len(genes))[:, :, None] == genes
        mutants = crossover(before[:, part], mutants, taken)
    return repair(mutants, unit(_words(keys, generation, individuals, de_kernel.FRESH, before.shape[2])))


def adopt(
    made: "Tensor", scores: "Tensor", slots: "Tensor", part: slice, population: "Tensor", fitness: "Tensor"
) -> None:
    """Puts the trials that are no worse in their parents' places (Storn & Price, 1997, section 2).

    Args:
        made: float32 ``[b, n, genes]``, trials of the individuals ``part``.
        scores: float32 ``[b, n]``, their fitness.
        slots: int64 ``[b]``, where their images lie in the next two, all different.
        part: start and stop.
        population: float32 ``[B, population, genes]``, written to.
        fitness: float32 ``[B, population]``, written to.
    """
    from workers import compiled
    from workers.attacks import de_kernel

    if compiled.on_host(made):
        arrays = made.numpy(), scores.numpy(), slots.numpy(), part.start, population.numpy(), fitness.numpy()
        compiled.spread(de_kernel.adopt, scores.numel(), *arrays)
        return
    before = fitness[slots, part]
    better = scores <= before
    fitness[slots, part] = scores.where(better, before)
    population[slots, part] = made.where(better[:, :, None], population[slots, part])


def _copy(state: "Tensor", slots: "Tensor") -> "Tensor":
    """``state[slots]``; on the CPU by numpy, as torch would wake its threads for a copy."""
    import torch

    from workers import compiled

    return torch.from_numpy(state.numpy()[slots.numpy()]) if compiled.on_host(state) else state[slots]


def _words(keys: "Tensor", generation: int, individuals: "Tensor", purpose: int, genes: int) -> "Tensor":
    """A word for each gene, int64 ``[b, n, genes]``."""
    import torch

    from workers.draws import philox

    blocks = torch.arange(-(-genes // 4), device=keys.device)
    key = keys[:, None, None]
    words = philox(individuals[:, None], generation, purpose, blocks, key[..., 0], key[..., 1])
    return torch.stack(words, dim=3).flatten(2)[:, :, :genes]


def donors(population: "Tensor", best: "Tensor", parents: "Tensor", scale: "Tensor", strategy: Strategy) -> "Tensor":
    """Mutant vectors ``[b, population, genes]``: base + F·(difference of two) (Storn & Price, 1997, Eq. 2).

    Args:
        population: ``[b, population, genes]``.
        best: int64 ``[b]``, the fittest individual of each image.
        parents: int64 ``[b, population, 2]`` (best1bin) or ``[…, 3]`` (rand1bin, the first is the base).
        scale: ``[b]``, F.
        strategy: which base vector.
    """
    import torch

    image = torch.arange(len(best), device=best.device)
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

    from workers import compiled
    from workers.attacks import de_kernel

    genes = individuals.view(len(individuals), pixels, -1)
    if compiled.on_host(individuals):
        places = np.empty(genes.shape[:2], np.int64)
        values = np.empty((*genes.shape[:2], genes.shape[2] - 2), np.uint8)
        compiled.spread(de_kernel.phenotype, len(places), individuals.numpy(), height, width, places, values)
        return torch.from_numpy(places), torch.from_numpy(values)
    row = (genes[:, :, 0] * height).long().clamp(max=height - 1)
    column = (genes[:, :, 1] * width).long().clamp(max=width - 1)
    return row * width + column, (genes[:, :, 2:] * 256).clamp(max=255).to(torch.uint8)
