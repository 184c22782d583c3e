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


def test_rows_without_an_answer_leave_a_rate_between_two_ends() -> None:
    rate, all_of, none_of = Rate(3, 8, unknown=5), Rate(8, 8), Rate(3, 8)
    assert (rate.value, rate.low, rate.high) == (None, 3 / 8, 1)
    assert none_of.interval is not None
    assert all_of.interval is not None
    assert rate.interval == (none_of.interval[0], all_of.interval[1])
    assert str(rate) == "37.5% to 100.0% (13.7% to 100.0%, 3 to 8 of 8)"
    assert (rate.share, none_of.share, Rate(0, 0).share) == ("37.5% to 100.0%", "37.5%", "–")
    nothing = Rate(0, 3, unknown=3)
    assert (nothing.low, nothing.high, nothing.interval) == (0, 1, (0, 1))
    assert (none_of.value, none_of.low, none_of.high) == (3 / 8, 3 / 8, 3 / 8)
    hits, answered = np.array([True, True, False, False]), np.array([True, False, True, False])
    order = [2, 0, 3, 1]
    for images in (np.arange(4), np.array([7, 7, 7, 9])):
        found = Rate.of(hits, images, answered)
        assert (found.hits, found.total, found.unknown) == (1, 4, 2)
        assert Rate.of(hits[order], images[order], answered[order]) == found
    assert str(found) == "25.0% to 75.0% (2.7% to 97.3%, 1 to 3 of 4 searches of 2 images)"
    assert Rate.of(hits, images, np.ones(4, dtype=bool)) == Rate.of(hits, images) == Rate(2, 4, 2)


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


@pytest.mark.parametrize("statistic", ["share", "median"])
def test_rows_of_the_same_image_are_drawn_together(statistic: Literal["share", "median"]) -> None:
    rng = np.random.default_rng(21)
    images = rng.integers(12, size=50)
    values = (images % 2 if statistic == "share" else rng.standard_normal(50) + images).astype(
        float
    )  # alike in an image
    found = by_image(values, images, statistic, resamples=1000, seed=3)

    def value(rows: np.ndarray) -> float:
        return float(rows.mean() if statistic == "share" else np.sort(rows)[(len(rows) - 1) // 2])

    assert found.value == pytest.approx(value(values))
    kinds = np.unique(images)
    drawn = [
        value(np.concatenate([values[images == one] for one in rng.choice(kinds, len(kinds))])) for _ in range(2000)
    ]
    np.testing.assert_allclose(
        found.interval, np.quantile(drawn, [0.025, 0.975]), atol=0.03 if statistic == "share" else 0.6
    )
    alone = by_image(values, np.arange(50), statistic, resamples=1000)
    assert alone.interval[1] - alone.interval[0] < 0.8 * (found.interval[1] - found.interval[0])
    nothing = (0, 1) if statistic == "share" else (-np.inf, np.inf)
    assert by_image(values[:3], np.zeros(3), statistic).interval == nothing


@pytest.mark.parametrize(("hits", "images"), [(0, 40), (40, 40), (3, 3), (1, 40), (20, 40)])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_share_of_alike_rows_is_no_surer_than_wilson_s_of_the_images(hits: int, images: int, rows: int) -> None:
    values, ids = np.repeat(np.arange(images) < hits, rows), np.repeat(np.arange(images), rows)
    found, wilson = by_image(values, ids), Rate(hits, images).interval
    assert wilson is not None
    assert found.value == pytest.approx(hits / images)
    assert found.interval[0] <= wilson[0] + 1e-12 < wilson[1] - 1e-12 <= found.interval[1]
    if hits in (0, images):
        assert found.interval == pytest.approx(wilson)
    assert Rate(hits * rows, images * rows, images).interval == pytest.approx(wilson)


@pytest.mark.parametrize("alike", [0.2, 3.0])
def test_intervals_of_several_rows_an_image_cover(alike: float) -> None:
    """Each image has a chance of its own: all rows of one image are alike where `alike` is small."""
    rng, images, rows, share = np.random.default_rng(33), 30, 9, 0.8
    ids, covered, taken_for_independent = np.repeat(np.arange(images), rows), np.zeros(2), 0
    for trial in range(200):
        chance = rng.beta(alike * share, alike * (1 - share), images)
        hits = rng.random(images * rows) < np.repeat(chance, rows)
        intervals = by_image(hits, ids, seed=trial).interval, Rate(int(hits.sum()), len(hits), images).interval
        plain = Rate(int(hits.sum()), len(hits)).interval
        for number, interval in enumerate((*intervals, plain)):
            assert interval is not None
            if number < 2:
                covered[number] += interval[0] <= share <= interval[1]
            else:
                taken_for_independent += interval[0] <= share <= interval[1]
    assert (covered >= 0.92 * 200).all()
    assert taken_for_independent < 0.85 * 200


def test_values_between_0_and_1_are_not_taken_for_either() -> None:
    values = np.random.default_rng(5).uniform(0.02, 0.04, 20)
    low, high = by_image(values, np.arange(20)).interval
    assert 0.02 < low < high < 0.04
    low, high = by_image(np.append(np.ones(39), 0.9), np.arange(40)).interval
    assert 0.97 < low < 0.99  # the bootstrap's own is above
    assert high == 1
    assert by_image(np.full(9, 0.5), np.arange(9)).interval == (0.5, 0.5)


def test_a_share_is_of_values_from_0_to_1() -> None:
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        by_image(np.array([0.5, 1.2]), np.arange(2))


def test_a_rate_says_of_how_many_images_it_is() -> None:
    assert str(Rate(45, 90, 10)).endswith("45 of 90 searches of 10 images)")
    assert Rate.of(np.ones(3, dtype=bool), np.array([4, 4, 5])) == Rate(3, 3, 2)
    assert Rate.of(np.arange(3) > 0, np.arange(3)) == Rate(2, 3)
