"""Rates, other estimates, and their intervals."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import bootstrap

__all__ = ["Estimate", "Rate", "by_image", "median", "percent", "widened", "with_interval"]

Z = 1.959963984540054
"""Of a 95 % interval."""


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
    """A share of rows, with its 95 % Wilson interval (Wilson, 1927).

    The denominator of a rate is every row that was asked, a row without an answer too (a search that failed, a score
    that is not finite): whether a row fails may hang on what its answer would have been. Such rows could all have
    counted or none, so the share is then known between two ends, `low` and `high`, and has no single value; the
    interval runs from Wilson's lower end of the one to his upper end of the other.

    Rows of one image are not independent of one another, images are: of several rows an image the interval is that of
    the same share of as many images. It is then too wide rather than too narrow, as far as images have about as many
    rows each.

    Attributes:
        hits: rows that count.
        total: rows in all.
        images: that the rows are of, fewer than rows; None for one of each row.
        unknown: rows of `total` that have no answer; none of them is among `hits`.
    """

    hits: int
    total: int
    images: int | None = None
    unknown: int = 0

    @classmethod
    def of(cls, hits: np.ndarray, images: np.ndarray, answered: np.ndarray | None = None) -> "Rate":
        """Of rows, of which several may be of one image.

        Args:
            hits: bool ``[n]``, which rows count; what it says of a row without an answer is not read.
            images: ``[n]``, what image each row is of.
            answered: bool ``[n]``, which rows have an answer; None for all.
        """
        count, known = len(np.unique(images)), np.ones(len(hits), dtype=bool) if answered is None else answered
        clustered = count if count < len(hits) else None
        return cls(int(np.sum(hits & known)), len(hits), clustered, int(np.sum(~known)))

    @classmethod
    def between(cls, least: np.ndarray, most: np.ndarray) -> "Rate":
        """Of rows for which something is so in ``least`` (bool ``[n]``), and may be so in ``most``."""
        return cls(int(least.sum()), len(least), unknown=int((most & ~least).sum()))

    @property
    def value(self) -> float | None:
        """In [0, 1]; None without rows, and where a row has no answer."""
        return None if self.unknown else self.low

    @property
    def low(self) -> float | None:
        """The share if no row without an answer counts; `value` where all have one, None without rows."""
        return self.hits / self.total if self.total else None

    @property
    def high(self) -> float | None:
        """The share if every row without an answer counts; `value` where all have one, None without rows."""
        return (self.hits + self.unknown) / self.total if self.total else None

    def reaches(self, share: float) -> bool | None:
        """Whether it is at least a share; None where that hangs on rows without an answer, or there are no rows."""
        if self.low is None or self.high is None:
            return None
        return True if self.low >= share else False if self.high < share else None

    def exceeds(self, share: float) -> bool | None:
        """Whether it is above a share beyond chance, by the interval's lower end; None as of `reaches`."""
        if self.low is None or self.high is None:
            return None
        least, most = (_wilson(end, self.images or self.total)[0] for end in (self.low, self.high))
        return True if least > share else False if most <= share else None

    @property
    def clustered(self) -> bool:
        """Whether there are fewer images than rows."""
        return self.images is not None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper bound in [0, 1]; None without rows."""
        if self.low is None or self.high is None:
            return None
        count = self.images or self.total
        return _wilson(self.low, count)[0], _wilson(self.high, count)[1]

    @property
    def share(self) -> str:
        """The share alone, or both of its ends; a dash without rows."""
        return percent(self.low) if self.low == self.high else f"{percent(self.low)} to {percent(self.high)}"

    def __str__(self) -> str:
        if self.interval is None:
            return "no images"
        low, high = self.interval
        count = f"{self.hits} to {self.hits + self.unknown}" if self.unknown else str(self.hits)
        of = f" searches of {self.images} images" if self.clustered else ""
        return f"{self.share} ({percent(low)} to {percent(high)}, {count} of {self.total}{of})"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as every text of the program writes one, ``98.8%``; a dash for None.

    Args:
        share: in [0, 1].
        digits: behind the point.
    """
    return "–" if share is None else f"{share:.{digits}%}"


def _wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share of `count` independent images, which need not be a whole number of them."""
    centre = share + Z**2 / (2 * count)
    reach = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    low, high = ((centre + way * reach) / (1 + Z**2 / count) for way in (-1, 1))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def widened(found: Estimate, images: float) -> Estimate:
    """A share with its bootstrap interval, no narrower than Wilson's: none of 40 does not mean none of all.

    Args:
        found: of a value in [0, 1].
        images: that it rests on.
    """
    (low, high), (least, most) = found.interval, _wilson(found.value, images)
    return Estimate(found.value, (min(low, least), max(high, most)))


def with_interval(share: Estimate) -> str:
    """A share in per cent, its interval beside it."""
    low, high = share.interval
    return f"{percent(share.value)} ({percent(low)} to {percent(high)})"


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
    statistic: Literal["share", "median"] = "share",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A share or median over rows of which several may be of one image, with its 95 % percentile bootstrap interval.

    Images are drawn again, each with all of its rows. The share is the mean, and its interval no narrower than Wilson's
    for as many images; where values lie between 0 and 1 too, for as many as would have the mean's variance if each were
    either 0 or 1, but no fewer. The median is the least value that half of the rows reach.

    Args:
        values: finite floats ``[n]``, n ≥ 1; of a share in [0, 1].
        images: ``[n]``, what image each row is of.
        statistic: of all rows.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ValueError: for a share of values that are not in [0, 1].
    """
    if statistic == "share" and not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a share is of values in [0, 1]")
    order = np.argsort(values, kind="stable")
    ascending = np.asarray(values, dtype=np.float64)[order]
    kinds, image = np.unique(np.asarray(images)[order], return_inverse=True)

    def found(times: np.ndarray) -> np.ndarray:
        weights = times[:, image]
        if statistic == "share":
            return np.asarray(weights @ ascending / weights.sum(axis=1))
        reached = np.cumsum(weights, axis=1)
        return np.asarray(ascending[(2 * reached >= reached[:, -1:]).argmax(axis=1)])

    middle = float(found(np.ones((1, len(kinds)), dtype=np.int64))[0])
    if len(kinds) == 1:
        return Estimate(
            middle, (0.0, 1.0) if statistic == "share" else (-np.inf, np.inf)
        )  # one says nothing of how others would vary
    rng, share = np.random.default_rng(seed), np.full(len(kinds), 1 / len(kinds))
    drawn = [
        found(rng.multinomial(len(kinds), share, size=min(250, resamples - start)))
        for start in range(0, resamples, 250)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    estimate = Estimate(middle, (float(low), float(high)))
    if statistic == "median":
        return estimate
    if np.isin(ascending, (0, 1)).all():
        return widened(estimate, len(kinds))
    apart = np.bincount(image, ascending - middle)
    variance = float(np.sum(apart**2)) * len(kinds) / (len(kinds) - 1) / len(values) ** 2
    return widened(estimate, max(len(kinds), middle * (1 - middle) / variance) if variance else math.inf)
