"""Curves and paired differences against counting by hand, scipy's own interval and the exact distribution."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom, binomtest

from analysis.curves import paired_difference, success_by_queries
from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import RandomPixels
from workers.results import Status


def rows(status: list[Status], queries: list[int], ids: list[int] | None = None, targets: object = None) -> pa.Table:
    count = len(status)
    return pa.table(
        {
            "image_id": pa.array(range(count) if ids is None else ids, pa.int64()),
            "target": pa.array([None] * count if targets is None else targets, pa.int32()),
            "status": pa.array([str(one) for one in status]).dictionary_encode(),
            "success": [one == Status.SUCCESS for one in status],
            "queries": pa.array(queries, pa.int64()),
        }
    )


S, E, C = Status.SUCCESS, Status.EXHAUSTED, Status.CERTIFIED


def test_success_by_queries_by_hand() -> None:
    table = rows([S, S, S, E, C, Status.ALREADY_WRONG, Status.SKIPPED, Status.FAILED], [1, 10, 11, 10, 5, 0, 0, 0])
    found = success_by_queries(table, [0, 1, 9, 10, 11, 1000])
    assert [(rate.hits, rate.total) for rate in found] == [(0, 6), (1, 6), (1, 6), (2, 6), (3, 6), (3, 6)]
    assert {rate.unknown for rate in found} == {1}


def test_success_by_queries_equals_searches_with_those_budgets() -> None:
    """Random search has the same draws under every budget, so its curve can be had the slow way."""
    model, shape, _ = random_model("grey", 80)
    images = random_images(shape, 30, 81)
    labels = predictions(model, images)
    budgets = [8, 16, 64, 200]
    curve = success_by_queries(RandomPixels(pixels=3, max_queries=200)(model, images, labels).to_table(), budgets)
    for budget, rate in zip(budgets, curve, strict=True):
        alone = RandomPixels(pixels=3, max_queries=budget)(model, images, labels)
        assert rate.hits == alone.success.sum()
    assert 0 < curve[0].hits < curve[-1].hits < 30


def test_paired_difference_by_hand() -> None:
    first = rows([S, S, S, E, S, Status.FAILED], [5, 5, 50, 9, 5, 0], ids=[3, 1, 2, 0, 9, 4])
    second = rows([E, S, S, S, S], [9, 9, 9, 9, 5], ids=[1, 3, 2, 0, 4])
    found = paired_difference(first, second, queries=10)
    assert found.images == 5  # 0 to 4: image 9 is missing from the second
    # image 3 both, 1 the first alone, 2 and 0 the second alone; 4 failed, the second succeeded on it
    assert (found.low, found.high, found.value) == ((0 + 1 - 1 - 1 - 1) / 5, (0 + 1 - 1 - 1 + 0) / 5, None)
    assert found.interval[0] <= found.low
    assert found.high <= found.interval[1]
    late = paired_difference(first, second, queries=60)
    assert (late.low, late.high) == ((0 + 1 + 0 - 1 - 1) / 5, (0 + 1 + 0 - 1 + 0) / 5)
    assert str(found).startswith("-40.0 to -20.0 points (")
    turned = paired_difference(second, first, queries=10)
    assert (turned.low, turned.high) == (-found.high, -found.low)
    answered = [
        table.filter(pa.array([image != 4 for image in table["image_id"].to_pylist()])) for table in (first, second)
    ]
    assert paired_difference(*answered, queries=10).value == (0 + 1 - 1 - 1) / 4
    assert str(paired_difference(*answered, queries=10)).startswith("-25.0 points (")


@pytest.mark.parametrize("targets", [1, 4])
def test_an_interval_without_0_never_stands_beside_an_exact_test_that_sees_nothing(targets: int) -> None:
    rng, clear = np.random.default_rng(90 + targets), 0
    for trial in range(60):
        count = int(rng.integers(4, 40))
        ids, towards = np.repeat(np.arange(count), targets).tolist(), list(range(targets)) * count
        chances = rng.random(2)
        sides = [
            rows([S if hit else E for hit in rng.random(count * targets) < chance], [1] * count * targets, ids, towards)
            for chance in chances
        ]
        found = paired_difference(*sides, seed=trial)
        won = [np.reshape([status == S for status in side["status"].to_pylist()], (count, targets)) for side in sides]
        better = np.sign(won[0].sum(1) - won[1].sum(1))
        apart = int((better != 0).sum())
        p = binomtest(int((better > 0).sum()), apart).pvalue if apart else 1
        assert found.value is not None
        assert found.interval[0] <= found.value <= found.interval[1]
        if found.interval[0] > 0 or found.interval[1] < 0:
            assert p < 0.05
            clear += 1
        elif targets == 1:
            assert p > 0.01
    assert 10 < clear < 60


def test_paired_interval_has_the_quantiles_of_the_exact_bootstrap() -> None:
    """Where the second never succeeds, the resampled difference is a binomial share."""
    hits, count = 30, 100
    first = rows([S] * hits + [E] * (count - hits), [1] * count)
    second = rows([E] * count, [1] * count)
    found = paired_difference(first, second, queries=1)
    exact = binom(count, hits / count).ppf([0.025, 0.975]) / count
    assert found.value == 0.3
    np.testing.assert_allclose(found.interval, exact, atol=0.0101)


def test_targets_of_one_image_go_together() -> None:
    """An image's nine targets, all alike, say no more than one does."""
    rng = np.random.default_rng(82)
    outcome = [S if hit else E for hit in rng.random(40) < 0.5]
    once, none = rows(outcome, [1] * 40), rows([E] * 40, [1] * 40)
    ids, targets = np.repeat(np.arange(40), 9).tolist(), list(range(9)) * 40
    nine = rows([one for one in outcome for _ in range(9)], [1] * 360, ids, targets)
    no_nine = rows([E] * 360, [1] * 360, ids, targets)
    alone, together = (paired_difference(*pair, queries=1) for pair in ((once, none), (nine, no_nine)))
    assert together == alone


def test_no_difference_has_a_point_for_an_interval() -> None:
    table = rows([S, E, S], [1, 1, 1])
    found = paired_difference(table, table, queries=1)
    assert (found.value, found.interval) == (0, (0, 0))


def test_refuses_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        paired_difference(rows([S], [1]), rows([S], [1]), queries=1)
    twice = rows([S, S], [1, 1], ids=[0, 0])
    with pytest.raises(ValueError, match="more than once"):
        paired_difference(twice, twice, queries=1)
