"""Wilson intervals against the closed form, medians against the order statistics' binomial, summaries by hand."""

import numpy as np
import pytest
from scipy.stats import binom

from analysis.statistics import Rate, median
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
