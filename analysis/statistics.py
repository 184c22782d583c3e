"""Rates, other estimates, and their intervals."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import binomtest, bootstrap

__all__ = ["Estimate", "Rate", "by_image", "median"]


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


def by_image(
    values: np.ndarray,
    images: np.ndarray,
    statistic: Literal["mean", "median"] = "mean",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A mean or median over rows of which several may be of one image, with its 95 % percentile bootstrap interval.

    Images are drawn again, each with all of its rows. The median is the least value that half of the rows reach.

    Args:
        values: finite floats ``[n]``, n ≥ 1.
        images: ``[n]``, what image each row is of.
        statistic: of all rows.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    order = np.argsort(values, kind="stable")
    ascending = np.asarray(values, dtype=np.float64)[order]
    kinds, image = np.unique(np.asarray(images)[order], return_inverse=True)

    def found(times: np.ndarray) -> np.ndarray:
        weights = times[:, image]
        if statistic == "mean":
            return np.asarray(weights @ ascending / weights.sum(axis=1))
        reached = np.cumsum(weights, axis=1)
        return np.asarray(ascending[(2 * reached >= reached[:, -1:]).argmax(axis=1)])

    middle = float(found(np.ones((1, len(kinds)), dtype=np.int64))[0])
    if len(kinds) == 1:
        return Estimate(middle, (-np.inf, np.inf))  # one says nothing of how others would vary
    rng, share = np.random.default_rng(seed), np.full(len(kinds), 1 / len(kinds))
    drawn = [
        found(rng.multinomial(len(kinds), share, size=min(250, resamples - start)))
        for start in range(0, resamples, 250)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Estimate(middle, (float(low), float(high)))
