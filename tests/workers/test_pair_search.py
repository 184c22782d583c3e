"""The pair search against a float64 brute force over all pairs."""

import numpy as np
import pytest
import torch

from workers.attacks import pair_search
from workers.attacks.pair_search import best_pair


def points(kind: str, rows: int, features: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """u and v float32 ``[rows, features]`` of one shape of cloud."""
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=(2, rows, features))
    t = rng.uniform(size=(rows, features))
    u, v = {
        "independent": (u, v),
        "ties": (np.round(u), np.round(v)),  # many equal points, many equal scores
        "negative": (u - 2, v - 2),
        "opposed": (u, -u + 0.1 * v),
        "bulging front": (np.cos(t), np.sin(t)),  # no point dominates another
        "hollow front": (t**2, (1 - t) ** 2),
        "heavy tails": (u**5, v**5),
        "zero": (np.zeros_like(u), v),
    }[kind]
    return torch.tensor(u, dtype=torch.float32), torch.tensor(v, dtype=torch.float32)


KINDS = ["independent", "ties", "negative", "opposed", "bulging front", "hollow front", "heavy tails", "zero"]


def compare(u: torch.Tensor, v: torch.Tensor, domain: torch.Tensor) -> None:
    scores, pairs = best_pair(u, v, domain)
    for row in range(len(u)):
        inside = torch.nonzero(domain[row])[:, 0]
        sums = [x[row, inside].double()[:, None] + x[row, inside].double() for x in (u, v)]
        products = (sums[0].clamp(min=0) * sums[1].clamp(min=0)).fill_diagonal_(0)
        best = float(products.max()) if len(inside) else 0.0
        assert float(scores[row]) == pytest.approx(best, rel=1e-6, abs=1e-12)
        if best > 0:
            p, q = pairs[row].tolist()
            assert p != q
            assert domain[row, p]
            assert domain[row, q]
            assert (u[row, p] + u[row, q]) * (v[row, p] + v[row, q]) == scores[row]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [1, 2, 3, 40, 300])
def test_equals_all_pairs(kind: str, features: int) -> None:
    u, v = points(kind, 12, features, features)
    rng = np.random.default_rng(features)
    for inside in (np.ones((12, features)), rng.uniform(size=(12, features)) < 0.5, np.arange(features) < [[1]] * 12):
        compare(u, v, torch.tensor(inside, dtype=torch.bool))


def test_few_or_none_in_the_domain() -> None:
    u, v = points("independent", 6, 50, 1)
    u, v = u.abs() + 0.1, v.abs() + 0.1
    domain = torch.zeros((6, 50), dtype=torch.bool)
    for row in range(6):
        domain[row, 7 : 7 + row] = True
    scores, _ = best_pair(u, v, domain)
    assert (scores > 0).tolist() == [False, False, True, True, True, True]
    compare(u, v, domain)


def test_sums_of_zero_are_not_admissible() -> None:
    u, v = torch.tensor([[1.0, -1.0, -3.0]]), torch.tensor([[1.0, 5.0, 5.0]])
    assert best_pair(u, v, torch.ones_like(u, dtype=torch.bool))[0].tolist() == [0.0]
    u = torch.tensor([[1.0, -0.5, -3.0]])  # one of the pair may be negative by itself
    score, pair = best_pair(u, v, torch.ones_like(u, dtype=torch.bool))
    assert (score.tolist(), sorted(pair[0].tolist())) == ([3.0], [0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_and_blocks_of_rows_find_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    u, v = points(kind, 10, 200, 3)
    domain = torch.tensor(np.random.default_rng(4).uniform(size=(10, 200)) < 0.9)
    whole = best_pair(u, v, domain)
    monkeypatch.setattr(pair_search, "VALUES", 400)
    blocks = best_pair(u, v, domain)
    assert torch.equal(blocks[0], whole[0])
    assert torch.equal(blocks[1], whole[1])
    monkeypatch.setattr(pair_search, "AT_ONCE", 2)
    monkeypatch.setattr(pair_search, "TILE", 7)
    tiles = best_pair(u, v, domain)
    assert torch.equal(tiles[0], whole[0])
    compare(u, v, domain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind: str) -> None:
    u, v = points(kind, 20, 150, 5)
    if kind != "bulging front":
        u[7], v[7] = points("bulging front", 1, 150, 6)[0][0], points("bulging front", 1, 150, 6)[1][0]
    domain = torch.tensor(np.random.default_rng(7).uniform(size=(20, 150)) < 0.8)
    scores, pairs = best_pair(u, v, domain)
    for row in range(20):
        score, pair = best_pair(u[row : row + 1], v[row : row + 1], domain[row : row + 1])
        assert torch.equal(score[0], scores[row])
        assert torch.equal(pair[0], pairs[row])


def test_a_front_of_many_thousands_needs_no_square_of_memory() -> None:
    u, v = points("bulging front", 1, 60_000, 8)
    score, pair = best_pair(u, v, torch.ones_like(u, dtype=torch.bool))
    partner = (u[0, pair[0, 0]] + u[0]) * (v[0, pair[0, 0]] + v[0])
    partner[pair[0, 0]] = 0
    assert score[0] == partner.max()  # no better partner for either
    angle = torch.tensor(np.pi / 4).cos()
    assert float(score[0]) == pytest.approx(float(4 * angle * angle), rel=1e-3)
