"""Rates, other estimates, and their intervals."""

from dataclasses import dataclass

from scipy.stats import binomtest

__all__ = ["Estimate", "Rate"]


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
