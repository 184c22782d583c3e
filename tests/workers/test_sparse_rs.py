"""Sparse-RS: the paper's schedule, every step against a slow replay, and needles."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import random_images, random_model
from tests.workers.test_de import Spot
from tests.workers.test_few_pixel import Never
from tests.workers.test_fgsm import predictions
from workers.attacks import SparseRS, sparse_rs
from workers.attacks.sparse_rs import corner_of_each_pixel

PAPER = [(50, 2), (200, 4), (500, 5), (1000, 6), (2000, 8), (4000, 10), (6000, 12), (8000, 15), (10_000, 20)]
"""Up to and with each of these iterations of 10,000, α_i = α_init over this."""


@pytest.mark.parametrize("budget", [10_000, 1_000, 50_000])
def test_the_schedule_is_the_papers(budget: int) -> None:
    attack = SparseRS(pixels=600, alpha=0.8, max_queries=budget)
    edges = [0, *(last for last, _ in PAPER)]
    for (last, divisor), before in zip(PAPER, edges, strict=False):
        expected = int(0.8 / divisor * 600)
        scale = budget / 10_000
        for iteration in {before * scale + 1 if scale >= 1 else (before + 10) * scale, last * scale}:
            if scale <= 1 or iteration == last * scale:
                assert attack.moved(int(iteration)) == expected, (iteration, divisor)
    assert [SparseRS(pixels=5).moved(one) for one in (1, 50, 51, 9999)] == [1, 1, 1, 1]
    assert [SparseRS(pixels=150).moved(one) for one in (1, 51, 9999)] == [22, 11, 2]  # the paper's k and α_init


def test_blocks_cover_every_iteration_once() -> None:
    for budget in (1, 2, 3, 999, 10_000):
        attack = SparseRS(pixels=150, max_queries=budget)
        moved = [count for steps, count in attack._blocks() for _ in range(steps)]
        assert moved == [attack.moved(iteration) for iteration in range(1, budget)]


def test_corner_of_each_pixel() -> None:
    image = torch.zeros(1, 3, 1, 4, dtype=torch.uint8)
    image[0, :, 0] = torch.tensor([[0, 255, 255], [255, 0, 1], [255, 255, 255], [0, 0, 0]]).T
    assert corner_of_each_pixel(image).tolist() == [[3, -1, 7, 0]]


@pytest.mark.parametrize(("kind", "targeted"), [("grey", False), ("colour", False), ("colour", True)])
@pytest.mark.parametrize(("pixels", "alpha"), [(1, 0.3), (4, 0.3), (8, 0.9)])
def test_every_step_against_a_slow_replay(
    kind: str, targeted: bool, pixels: int, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    judge = sparse_rs._judge

    def spy(batch: Any, around: Any, rows: Any, position: Any, levels: Any) -> Any:
        loss, success = judge(batch, around, rows, position, levels)
        calls.append(tuple(part.clone().numpy() for part in (rows, position, levels, loss, success)))
        return loss, success

    monkeypatch.setattr(sparse_rs, "_judge", spy)
    model, shape, classes = random_model(kind, 100)
    images = np.where(random_images(shape, 4, 101) > 127, 255, 0).astype(np.uint8)  # so that no-ops could be drawn
    labels = predictions(model, images)
    targets = (labels + 1) % classes if targeted else None
    attack = SparseRS(pixels=pixels, alpha=alpha, max_queries=30)
    result = attack(model, images, labels, targets=targets)

    state: dict[int, dict[int, tuple[int, ...]]] = {}
    lowest: dict[int, float] = {}
    accepted = 0
    for iteration, call in enumerate(calls):
        for row, position, levels, loss, success in zip(*call, strict=True):
            changes = dict(zip(position.tolist(), map(tuple, levels.tolist()), strict=True))
            image = images[row].reshape(shape[0], -1).copy()
            for place, colour in changes.items():
                image[:, place] = colour
            with torch.no_grad():
                logits = model(torch.tensor(image.reshape(1, *shape)).float() / 255)[0]
            others = torch.cat([logits[: labels[row]], logits[labels[row] + 1 :]])
            slow = logits[labels[row]] - others.max()
            if targets is not None:
                target = targets[row]  # log((1 − p)/p), in the order of the cross-entropy −log p
                slow = torch.cat([logits[:target], logits[target + 1 :]]).logsumexp(dim=0) - logits[target]
            assert loss == pytest.approx(float(slow), abs=1e-3)
            assert len(changes) == pixels
            assert set(levels.flatten().tolist()) <= {0, 255}
            if iteration:
                new = changes.keys() - state[row].keys()
                assert len(new) == attack.moved(iteration)
                assert all(changes[place] == state[row][place] for place in changes.keys() - new)
                if len(new) == 1:
                    (place,) = new
                    assert changes[place] != tuple(images[row].reshape(shape[0], -1)[:, place].tolist())
            if not iteration or success or loss < lowest[row]:
                accepted += iteration > 0
                state[row], lowest[row] = changes, loss
                assert np.array_equal(result.adversarial[row].reshape(shape[0], -1), image) or not success
    assert accepted > 2
    for row, changes in state.items():
        image = images[row].reshape(shape[0], -1).copy()
        for place, colour in changes.items():
            image[:, place] = colour
        assert np.array_equal(result.adversarial[row].reshape(shape[0], -1), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("target", [None, 1])
def test_finds_a_needle(target: int | None, channels: int) -> None:
    """With a seed under which no first pixel is the needle in its own black: that one stays until another is better."""
    images = np.zeros((6, channels, 5, 4), dtype=np.uint8)
    attack = SparseRS(pixels=1, max_queries=400)
    result = attack(Spot(channels - 1, 4, 3, 255), images, np.zeros(6, np.int64), targets=target, seed=2)
    assert result.success.all()
    assert (result.adversarial[:, -1, 4, 3] == 255).all()
    assert (result.distances.l0 == 1).all()
    assert (result.queries == result.generations + 1).all()
    assert len(set(result.queries.tolist())) > 3  # each left when it was found


@pytest.mark.parametrize("channels", [1, 2])
def test_every_pixel_and_corner_is_reached(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    judge = sparse_rs._judge

    def spy(batch: Any, around: Any, rows: Any, position: Any, levels: Any) -> Any:
        flat = (levels // 255 * 2 ** torch.arange(channels)).sum(dim=2)
        seen.append((position * 2**channels + flat).numpy())
        return judge(batch, around, rows, position, levels)

    monkeypatch.setattr(sparse_rs, "_judge", spy)
    images = np.full((30, channels, 3, 4), 128, dtype=np.uint8)
    SparseRS(pixels=2, max_queries=30)(Never(), images, np.zeros(30, np.int64))
    counts = np.bincount(np.concatenate(seen).flatten(), minlength=12 * 2**channels)
    assert (counts > 0).all()
