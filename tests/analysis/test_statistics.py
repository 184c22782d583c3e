"""Wilson intervals against the closed form, medians against the order statistics' binomial, summaries by hand."""

from typing import Literal

import numpy as np
import pytest
from scipy.stats import binom

from analysis.statistics import Rate, by_image, median
from analysis.summary import summarise
from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import FGSM
from workers.results import Status


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (3, 17), (151, 200), (1, 1)])
def test_wilson_in_closed_form(hits: int, total: int) -> None:
    z, p = 1.959963984540054, hits / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    interval = Rate(hits, total).interval
    assert interval is not None
    assert interval == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)


def test_nothing_has_no_rate() -> None:
    assert (Rate(0, 0).value, Rate(0, 0).interval, str(Rate(0, 0))) == (None, None, "no images")


@pytest.mark.parametrize("size", [31, 200])
def test_a_median_s_interval_is_that_of_order_statistics(size: int) -> None:
    values = np.random.default_rng(size).permutation(np.arange(size) ** 2.0)
    found = median(values)
    assert found.value == np.median(values)
    low, high = np.sqrt(found.interval)
    # the interval without a model: order statistics whose binomial probabilities are the bounds
    assert low == pytest.approx(binom.ppf(0.025, size, 0.5), abs=2)
    assert high == pytest.approx(binom.ppf(0.975, size, 0.5), abs=2)


def test_a_median_of_what_may_be_infinite() -> None:
    values = np.linspace(1, 2, 100)
    finite = median(values)
    values[75:] = np.inf
    assert median(values) == finite
    values[55:] = np.inf
    assert median(values).value == finite.value
    assert median(values).interval == (finite.interval[0], np.inf)
    values[45:] = np.inf
    assert median(values).value == np.inf
    assert median(values).interval[1] == np.inf
    assert np.isfinite(median(values).interval[0])
    assert median(np.full(7, np.inf)).interval == (np.inf, np.inf)
    assert median(np.array([2.0])).interval == (-np.inf, np.inf)


def test_summary_by_hand() -> None:
    model, shape, classes = random_model("colour", 60)
    images = random_images(shape, 40, 61)
    labels = predictions(model, images)
    labels[:4] = (labels[:4] + 1) % classes
    targets = (labels + 1) % classes
    targets[4:7] = labels[4:7]
    result = FGSM(epsilon=0.2)(model, images, labels, targets=targets)
    summary = summarise(result.to_table())
    hits = int(result.success.sum())
    assert summary.counts[Status.ALREADY_WRONG] == 4
    assert summary.counts[Status.SKIPPED] == 3
    assert (summary.success.hits, summary.success.total) == (hits, 33)
    assert hits
    assert summary.l2 == pytest.approx(float(np.median(result.distances.l2[result.success])), rel=1e-6)
    assert summary.queries == 1
    assert summary.seconds == pytest.approx(result.seconds.sum())


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_rows_of_the_same_image_are_drawn_together(statistic: Literal["mean", "median"]) -> None:
    rng = np.random.default_rng(21)
    images = rng.integers(12, size=50)
    values = rng.standard_normal(50) + images  # rows of one image are alike
    found = by_image(values, images, statistic, resamples=1000, seed=3)

    def value(rows: np.ndarray) -> float:
        return float(rows.mean() if statistic == "mean" else np.sort(rows)[(len(rows) - 1) // 2])

    assert found.value == pytest.approx(value(values))
    kinds = np.unique(images)
    drawn = [
        value(np.concatenate([values[images == one] for one in rng.choice(kinds, len(kinds))])) for _ in range(2000)
    ]
    np.testing.assert_allclose(found.interval, np.quantile(drawn, [0.025, 0.975]), atol=0.6)
    alone = by_image(values, np.arange(50), statistic, resamples=1000)
    assert alone.interval[1] - alone.interval[0] < 0.8 * (found.interval[1] - found.interval[0])
    assert by_image(values[:3], np.zeros(3), statistic).interval == (-np.inf, np.inf)
