"""One generation of differential evolution on the CPU: trials and phenotypes, each in one compiled pass.

`workers.attacks.de` has the same in torch operations, for other devices; the tests hold them equal bit for bit.
"""

from typing import Any

import numpy as np

from workers.compiled import kernel
from workers.draws import below, philox, three_others

__all__ = ["FRESH", "PARENTS", "SCALE", "STRATA", "TAKEN", "adopt", "phenotype", "strata_keys", "trials"]

PARENTS, TAKEN, FRESH, STRATA, SCALE = range(5)
"""What numbers are drawn for, the third word of the counter; the others: individual, generation, four genes."""

_OPTIONS: dict[str, Any] = {"nogil": True}  # no fastmath: the sums must round as torch's do
_STEP, _HALF = np.float32(2**-24), np.float32(0.5)


@kernel(**_OPTIONS)
def trials(start, stop, before, best, keys, generation, first, mutation, threshold, random_base, out):  # type: ignore[no-untyped-def]
    """Mutation, crossover and repair, as of `workers.attacks.de.trials`.

    Args:
        start, stop: which of the b·n trials to make.
        before: float32 ``[b, population, genes]``.
        best: int64 ``[b]``.
        keys: int64 ``[b, 2]``.
        generation: its number.
        first: the first individual of ``out``.
        mutation: float32, F; dithered where zero.
        threshold: a gene is taken from the mutant where a word lies below; 2³² takes all without drawing.
        random_base: the strategy, rand1bin or best1bin.
        out: float32 ``[b, n, genes]``, receives the trials of n individuals.
    """
    population, genes = before.shape[1:]
    count = out.shape[1]
    drawn_for, scale = -1, mutation
    for at in range(start, stop):
        image, number = at // count, at % count
        individual, k0, k1 = first + number, keys[image, 0], keys[image, 1]
        if mutation == 0 and drawn_for != image:
            word = philox(0, generation, SCALE, 0, k0, k1)[0]
            drawn_for, scale = image, _HALF + _HALF * (np.float32(word >> 8) * _STEP)
        words = philox(individual, generation, PARENTS, 0, k0, k1)
        base, plus, minus = three_others(words[0], words[1], words[2], individual, population)
        if not random_base:
            base = best[image]
        always = below(words[3], genes)
        for gene in range(genes):
            drawn = threshold < 1 << 32 and gene != always
            if drawn and philox(individual, generation, TAKEN, gene // 4, k0, k1)[gene % 4] >= threshold:
                out[image, number, gene] = before[image, individual, gene]
                continue
            value = before[image, base, gene] + scale * (before[image, plus, gene] - before[image, minus, gene])
            if not 0 <= value < 1:
                word = philox(individual, generation, FRESH, gene // 4, k0, k1)[gene % 4]
                value = np.float32(word >> 8) * _STEP
            out[image, number, gene] = value


@kernel(**_OPTIONS)
def adopt(start, stop, made, scores, slots, first, population, fitness):  # type: ignore[no-untyped-def]
    """Puts the trials that are no worse in their parents' places, as of `workers.attacks.de.adopt`."""
    count = made.shape[1]
    for at in range(start, stop):
        slot, number = slots[at // count], at % count
        if scores[at // count, number] <= fitness[slot, first + number]:
            fitness[slot, first + number] = scores[at // count, number]
            population[slot, first + number] = made[at // count, number]


@kernel(**_OPTIONS)
def strata_keys(keys, out):  # type: ignore[no-untyped-def]
    """A word for each gene with the individual's number behind it: int64 ``[b, genes, population]``, to be sorted."""
    images, genes, population = out.shape
    for image in range(images):
        for block in range((genes + 3) // 4):
            for individual in range(population):
                words = philox(individual, 0, STRATA, block, keys[image, 0], keys[image, 1])
                for gene in range(4 * block, min(4 * block + 4, genes)):
                    out[image, gene, individual] = (words[gene % 4] >> 1) << 32 | individual


@kernel(**_OPTIONS)
def latin(ranked, keys, out):  # type: ignore[no-untyped-def]
    """The first population from the sorted `strata_keys`, as of `workers.attacks.de.first_population`."""
    images, population, genes = out.shape
    share, top = np.float32(1 / population), np.float32(1 - 2**-24)
    for image in range(images):
        for block in range((genes + 3) // 4):
            for individual in range(population):
                words = philox(individual, 0, FRESH, block, keys[image, 0], keys[image, 1])
                for gene in range(4 * block, min(4 * block + 4, genes)):
                    stratum = np.float32(ranked[image, gene, individual] & 0xFFFFFFFF)
                    within = np.float32(words[gene % 4] >> 8) * _STEP
                    out[image, individual, gene] = min((stratum + within) * share, top)


@kernel(**_OPTIONS)
def phenotype(start, stop, individuals, height, width, position, levels):  # type: ignore[no-untyped-def]
    """Floors genes ``[n, k·(2 + C)]`` into ``position`` and ``levels``, as of `workers.attacks.de.phenotype`."""
    pixels, channels = levels.shape[1:]
    for number in range(start, stop):
        for pixel in range(pixels):
            gene = pixel * (2 + channels)
            row = min(np.int64(individuals[number, gene] * np.float32(height)), height - 1)
            column = min(np.int64(individuals[number, gene + 1] * np.float32(width)), width - 1)
            position[number, pixel] = row * width + column
            for channel in range(channels):
                level = min(individuals[number, gene + 2 + channel] * np.float32(256), np.float32(255))
                levels[number, pixel, channel] = np.uint8(np.int64(level))
