"""Rates, other estimates, and their intervals."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

__all__ = ["Estimate", "Rate", "median"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, lower and upper bound."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f} to {high:.3f})"


@dataclass(frozen=True)
class Rate:
    """A share of independent images, with its 95 % Wilson interval (Wilson, 1927).

    Attributes:
        hits: images that count.
        total: images in all.
    """

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        """In [0, 1]; None without images."""
        return self.hits / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper bound in [0, 1]; None without images."""
        if not self.total:
            return None
        interval = binomtest(self.hits, self.total).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)

    def __str__(self) -> str:
        if self.interval is None:
            return "no images"
        low, high = self.interval
        return f"{self.hits / self.total:.1%} ({low:.1%} to {high:.1%}, {self.hits} of {self.total})"


def median(values: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """The median of independent images, with its 95 % percentile bootstrap interval.

    Ranks are resampled in the values' place, and the interval's ends are the values at the nearest ranks outwards: so
    it holds for infinite values (a distance where a search found nothing), between which no quantile can be taken.

    Args:
        values: float ``[n]``, n ≥ 1; may be infinite, not NaN.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    ascending = np.sort(values)
    middle = float(np.median(ascending))
    if len(ascending) == 1:
        return Estimate(middle, (-np.inf, np.inf))  # one says nothing of how others would vary
    found = bootstrap(
        (np.arange(len(ascending)),),
        np.median,
        n_resamples=resamples,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    low, high = ascending[int(np.floor(found.low))], ascending[int(np.ceil(found.high))]
    return Estimate(middle, (float(low), float(high)))
