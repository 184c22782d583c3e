"""Few-pixel search by CMA-ES, as the `cmaes` library does it."""

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import Field

from workers.attacks.de import LARGEST, phenotype
from workers.attacks.few_pixel import FewPixelAttack, Incumbents
from workers.budgets import Number
from workers.errors import WrongInput

if TYPE_CHECKING:
    from workers.search import Batch

__all__ = ["CMAES", "Restarting", "reflected"]

SEPARABLE_ABOVE = 100
"""Genes above which the covariance is kept diagonal: a full one takes their square, and their cube to decompose."""


class CMAES(FewPixelAttack):
    """Few-pixel attack by the covariance matrix adaptation evolution strategy.

    Hansen (2016), "The CMA evolution strategy: a tutorial"; above 100 genes its separable form (Ros & Hansen,
    2008). The genotype is that of differential evolution (`workers.attacks.de`), folded into [0, 1]; the margin
    is minimised. It starts from a uniform point, and again from another one whenever the library says that it
    has converged, until the queries are spent.
    """

    NAME: ClassVar[str] = "cma-es"

    pixels: int = Field(5, ge=1, description="k, how many pixels may change.")
    population: int | None = Field(
        None, ge=4, description="Individuals a generation; 4 + ⌊3·ln(genes)⌋ when absent, as in the tutorial."
    )
    sigma: Number = Field(0.3, gt=0, le=1, description="The first step size; genes lie in [0, 1].")
    max_queries: int = Field(10_000, ge=1, description="Most queries an image.")

    @property
    def shard_size(self) -> int:
        return max(1, min(256, 1_000_000 // self.max_queries))

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        most = min(self.max_queries, LARGEST // (self.pixels * (2 + shape[0])))
        if self.population is not None and self.population > most:
            raise WrongInput(
                f"--population: must be at most {most}, for the queries (--max-queries) and the memory of an image, "
                f"got {self.population}"
            )
        return super().check(shape, classes)

    def _search(self, batch: "Batch") -> None:
        import torch
        from threadpoolctl import threadpool_limits

        height, width = batch.images.shape[2:]
        incumbents, rows = Incumbents(batch), batch.all_rows
        with threadpool_limits(1, user_api="blas"):  # matrices this small only wait for each other's threads
            searches = [Restarting(self, stream, batch.images.shape[1]) for stream in batch.draws(rows)]
            used = 0
            while len(rows) and used < self.max_queries:
                mine = [searches[row] for row in rows.tolist()]
                asked = np.stack([one.ask() for one in mine])
                count = min(asked.shape[1], self.max_queries - used)
                used += count
                genes = torch.from_numpy(asked[:, :count]).to(rows.device).flatten(0, 1)
                position, levels = phenotype(genes, self.pixels, height, width)
                _, margin = incumbents.judge(rows.repeat_interleave(count), position, levels)
                margin.clamp_(max=torch.finfo(margin.dtype).max)  # the library subtracts them, and ∞ − ∞ is none
                batch.generations[rows] += 1
                if count == asked.shape[1]:
                    for one, fitness in zip(mine, margin.view(-1, count).tolist(), strict=True):
                        one.tell(fitness)
                rows = rows[~incumbents.done[rows]]


class Restarting:
    """One image's optimiser, begun anew where it has converged."""

    def __init__(self, attack: CMAES, stream: np.random.Generator, channels: int) -> None:
        self._attack, self._stream = attack, stream
        self._genes = attack.pixels * (2 + channels)
        self._start()

    def _start(self) -> None:
        from cmaes import CMA, SepCMA

        kind: Any = CMA if self._genes <= SEPARABLE_ABOVE else SepCMA
        self._optimiser = kind(
            mean=self._stream.random(self._genes),
            sigma=self._attack.sigma,
            seed=int(self._stream.integers(1 << 32)),
            population_size=self._attack.population,
        )

    def ask(self) -> np.ndarray:
        """A generation, ``[population, genes]`` in [0, 1]."""
        self._asked = np.stack([self._optimiser.ask() for _ in range(self._optimiser.population_size)])
        return reflected(self._asked)  # the library's own bounds draw again until all genes fit, which seldom ends

    def tell(self, fitness: list[float]) -> None:
        """Takes the fitness of each individual asked for."""
        self._optimiser.tell(list(zip(self._asked, fitness, strict=True)))
        if self._optimiser.should_stop():
            self._start()


def reflected(genes: np.ndarray) -> np.ndarray:
    """Real genes folded into [0, 1] at its ends, as by mirrors."""
    around = np.abs(genes) % 2
    return np.where(around > 1, 2 - around, around)
