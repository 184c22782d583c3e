"""Killed at random, a search ends with every row once, equal to an undisturbed run."""

from pathlib import Path

import pytest

from tests.chaos import rampage


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_nothing_is_lost_or_doubled(mnist_folder: Path, tmp_path: Path, kills: int) -> None:
    damage = rampage(str(mnist_folder), "mnist", kills, seed=kills, folder=tmp_path)
    assert damage.none, damage
    assert damage.kills.total() >= kills
    assert damage.rows >= 400
