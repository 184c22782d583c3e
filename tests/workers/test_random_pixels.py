"""Random pixels: what is drawn, and that a needle is found by it."""

from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from tests.workers.test_de import Spot
from workers.attacks import RandomPixels
from workers.search import Around


@pytest.mark.parametrize(("levels", "values"), [("extremes", [0, 255]), ("all", range(256))])
def test_every_pixel_and_level_is_as_likely(
    levels: Literal["extremes", "all"], values: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    judge = Around.judge

    def spy(self: Around, index: torch.Tensor, position: torch.Tensor, level: torch.Tensor) -> object:
        drawn.append((position, level))
        return judge(self, index, position, level)

    monkeypatch.setattr(Around, "judge", spy)
    images = np.zeros((1, 2, 5, 4), dtype=np.uint8)
    RandomPixels(pixels=3, levels=levels, max_queries=20_000)(Spot(0, 0, 0, -300), images, np.array([0]))
    position, level = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    assert len(position) == 20_000
    assert all(len(set(row)) == 3 for row in position[:2000].tolist())  # distinct
    assert chisquare(np.bincount(position.flatten(), minlength=20)).pvalue > 1e-3
    counts = np.bincount(level.flatten(), minlength=256)
    assert counts.sum() == counts[list(values)].sum()
    assert chisquare(counts[list(values)]).pvalue > 1e-3
    both = np.bincount((level[:, 0, 0].int() // 128 * 2 + level[:, 0, 1].int() // 128).numpy(), minlength=4)
    assert chisquare(both).pvalue > 1e-3  # channels are independent


@pytest.mark.parametrize("target", [None, 1])
def test_finds_a_needle_as_often_as_it_should(target: int | None) -> None:
    """One corner of one of 20 pixels, both channels counted: a candidate of 2 pixels hits it with 2/20 · 1/2."""
    count, budget = 400, 16
    images = np.zeros((count, 1, 5, 4), dtype=np.uint8)
    result = RandomPixels(pixels=2, max_queries=budget)(
        Spot(0, 4, 3, 255), images, np.zeros(count, np.int64), targets=target
    )
    found = int(result.success.sum())
    low, high = binom(count, 1 - (1 - 0.05) ** budget).ppf([1e-4, 1 - 1e-4])
    assert low <= found <= high
    assert (result.adversarial[result.success, 0, 4, 3] == 255).all()
    assert set(result.queries[result.success].tolist()) == {8, 16}
    assert (result.queries[~result.success] == budget).all()
