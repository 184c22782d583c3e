"""The gradient attacks, Square and noise: closed forms on linear models, and the geometry of the ball."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import nn

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import APGD, DDN, PGD, Attack, Noise, Square
from workers.attacks.apgd import checkpoints
from workers.attacks.norm_ball import NormBallAttack, unit
from workers.attacks.square import pattern, share_of_pixels
from workers.errors import WrongInput
from workers.threat import lengths

SHAPE = (3, 5, 4)


class Plane(nn.Module):
    """Two classes apart by a plane: logits 0 and ±(w·x − b)."""

    def __init__(self, seed: int, offset: float) -> None:
        super().__init__()
        weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.Parameter(weights / weights.norm(), requires_grad=False)
        self.offset = offset

    def lead(self, images: torch.Tensor) -> torch.Tensor:
        return (self.weights * (images - 0.5)).flatten(1).sum(dim=1) + self.offset

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(len(images)), self.lead(images)], dim=1)


def middle_images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(118, 138, (count, *SHAPE)).astype(np.uint8)


def ball(norm: str, epsilon: float) -> NormBallAttack:
    return PGD(norm=norm, epsilon=epsilon)


@pytest.mark.parametrize("attack", [PGD, APGD])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("targeted", [False, True])
def test_linf_on_a_plane_is_the_corner(attack: type[Attack], loss: str, targeted: bool) -> None:
    model = Plane(0, offset=2.0)  # too far for this ε
    images = random_images(SHAPE, 9, 1)
    images[model.lead(torch.tensor(images) / 255).numpy() < 1.9] = 128
    labels = np.ones(9, dtype=np.int64)
    found = attack(epsilon=0.1, steps=20, loss=loss)(model, images, labels, targets=0 if targeted else None)
    corner = np.clip(images - 25 * np.sign(model.weights.numpy()), 0, 255)
    assert not found.success.any()
    assert np.array_equal(found.adversarial, corner)


@pytest.mark.parametrize(
    "attack", [PGD(epsilon=0.3, norm="l2", steps=30, step_size=0.3), APGD(epsilon=0.3, norm="l2", steps=30)]
)
def test_l2_on_a_plane_is_the_normal(attack: Attack) -> None:
    model = Plane(2, offset=2.0)
    images = middle_images(9, 3)
    found = attack(model, images, np.ones(9, dtype=np.int64))
    change = (found.adversarial.astype(float) - images).reshape(9, -1)
    ideal = -0.3 * 255 * model.weights.numpy().reshape(-1)
    assert not found.success.any()
    assert np.abs(change - ideal).max() < 1.5
    assert (found.distances.l2 > 0.29).all()


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_ddn_on_a_plane_is_the_distance_to_it(targeted: bool, loss: str) -> None:
    model = Plane(4, offset=0.35)
    images = middle_images(12, 5)
    found = DDN(steps=100, loss=loss)(model, images, np.ones(12, dtype=np.int64), targets=0 if targeted else None)
    distance = model.lead(torch.tensor(images) / 255).numpy()  # the weights have norm 1
    assert found.success.all()
    assert (found.distances.l2 >= distance - 1e-5).all()
    assert (found.distances.l2 <= 1.01 * distance + 1 / 255).all()
    assert (found.queries == 101).all()
    assert (found.gradients == 100).all()


def test_success_at_the_first_iterate_ends_pgd() -> None:
    model = Plane(6, offset=0.05)
    images = middle_images(20, 7)
    images = images[predictions(model, images) == 1]
    found = PGD(epsilon=0.2, steps=10, restarts=3)(model, images, np.ones(len(images), dtype=np.int64))
    assert found.success.all()
    assert found.queries.max() <= 11
    assert (found.queries == found.generations + 1).all()


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_restarts_help_and_failures_alone_start_again(attack: type[Attack]) -> None:
    model, shape, _ = random_model("colour", 30)
    images = random_images(shape, 40, 31)
    labels = predictions(model, images)
    once, often = (attack(epsilon=0.03, steps=3, restarts=r)(model, images, labels) for r in (1, 6))
    assert (often.success >= once.success).all()
    assert often.success.sum() > once.success.sum()
    assert np.array_equal(often.queries[once.success], once.queries[once.success])
    assert (often.queries[~often.success] == 6 * 4).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_apgd_finds_what_pgd_finds(norm: str, goal: str) -> None:
    model, shape, classes = random_model("colour", 30)
    images = random_images(shape, 40, 31)
    labels = predictions(model, images)
    targets = None if goal == "untargeted" else (labels + 1) % classes
    epsilon = (0.04 if norm == "linf" else 0.3) * (1 if targets is None else 2)
    pgd, apgd = (
        kind(epsilon=epsilon, norm=norm, steps=20)(model, images, labels, targets=targets) for kind in (PGD, APGD)
    )
    assert 5 < pgd.success.sum() < 35
    assert apgd.success.sum() >= pgd.success.sum()


def test_checkpoints_of_the_paper() -> None:
    assert checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    assert checkpoints(1000) == {220, 410, 570, 700, 800, 870, 930, 990}
    assert checkpoints(20) == {4, 7, *range(9, 21)}
    assert checkpoints(1) == {1}


@pytest.mark.parametrize("epsilon", [1 / 255, 0.1, 0.2, 0.5, 1.0])
def test_l2_rounding_keeps_the_budget(epsilon: float) -> None:
    attack = ball("l2", epsilon)
    clean = torch.tensor(np.random.default_rng(12).integers(0, 256, (100, 3, 6, 7)))
    clean[20:] = clean[20:] // 4 + 96  # most without saturated levels, which clipping would take into the ball
    clean, stream = clean.float(), torch.Generator().manual_seed(13)
    direction = torch.randn(clean.shape, generator=stream) ** torch.randint(1, 4, (100, 1, 1, 1), generator=stream)
    moved = attack.ball.project(clean + attack.ball.radius * unit(direction), clean)
    images = attack.ball.rounded(moved, clean)
    change = images.numpy().astype(np.int64) - clean.numpy().astype(np.int64)
    squares = (change**2).reshape(100, -1).sum(axis=1)
    assert all(int(s) <= Fraction(epsilon).limit_denominator(255) ** 2 * 255**2 for s in squares)
    nearest = np.rint(moved.numpy()) - clean.numpy()
    stays = (nearest**2).reshape(100, -1).sum(axis=1) <= (255 * epsilon) ** 2
    assert 0.1 < stays.mean() < 1
    assert np.array_equal(change[stays], nearest[stays])
    assert (np.abs(change) <= np.abs(nearest)).all()
    for row in np.flatnonzero(~stays):  # one threshold an image, the largest of 128 that stays inside
        size = np.abs((moved[row] - clean[row]).numpy().astype(np.float64))
        rounded = [np.maximum(np.floor(size + t), 0) for t in np.arange(-64, 64) / 128]
        inside = [candidate for candidate in rounded if (candidate**2).sum() <= attack.ball.limit]
        assert (np.abs(change[row]) ** 2).sum() == (inside[-1] ** 2).sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection(norm: str) -> None:
    attack = ball(norm, 0.25)
    clean = torch.tensor(random_images((1, 6, 7), 50, 14)).float()
    stream = torch.Generator().manual_seed(15)
    far = clean + 80 * torch.randn(clean.shape, generator=stream)
    inside = attack.ball.project(far, clean)
    change = inside - clean
    sizes = change.abs().amax(dim=(1, 2, 3)) if norm == "linf" else change.flatten(1).norm(dim=1)
    assert (sizes <= attack.ball.radius * (1 + 1e-6)).all()
    assert inside.min() >= 0
    assert inside.max() <= 255
    torch.testing.assert_close(attack.ball.project(inside, clean), inside)
    near = (clean + 0.01 * torch.randn(clean.shape, generator=stream)).clamp(0, 255)
    torch.testing.assert_close(attack.ball.project(near, clean), near)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: str) -> None:
    attack = ball(norm, 0.2)
    clean = torch.full((400, 1, 2, 1), 128.0)
    streams = [np.random.default_rng(i) for i in range(400)]
    change = (attack.random_start(clean, streams) - clean).flatten(1)
    size = change.abs().amax(dim=1) if norm == "linf" else change.norm(dim=1)
    assert (size <= attack.ball.radius * (1 + 1e-6)).all()
    share = (size / attack.ball.radius).square().sort().values  # of the area: uniform, in both norms
    assert (share - torch.linspace(0, 1, 400)).abs().max() < 0.08
    assert change.mean(dim=0).abs().max() < 0.1 * attack.ball.radius


def test_lengths_do_not_depend_on_the_batch() -> None:
    threads = torch.get_num_threads()
    change = torch.randn((8, 3, 97, 101), generator=torch.Generator().manual_seed(16))
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            every = lengths(change)
            torch.testing.assert_close(every, change.flatten(1).norm(dim=1))
            assert all(torch.equal(lengths(change[i : i + 1])[0], every[i]) for i in range(8))
    finally:
        torch.set_num_threads(threads)


def test_unit_of_vanishing_and_zero_gradients() -> None:
    gradient = torch.zeros(3, 1, 2, 2)
    gradient[0] = 1e-30
    gradient[1, 0, 0, 0] = -1e30
    assert lengths(unit(gradient)).tolist() == pytest.approx([1, 1, 0])


@pytest.mark.parametrize(
    "attack",
    [
        PGD(epsilon=0.1),
        PGD(epsilon=0.3, norm="l2", steps=15),
        APGD(epsilon=0.1, steps=15),
        APGD(epsilon=0.3, norm="l2", steps=15),
        Square(epsilon=0.1, max_queries=60),
        Square(epsilon=0.3, norm="l2", max_queries=60),
        Noise(epsilon=0.1),
        Noise(epsilon=0.3, norm="l2"),
    ],
    ids=lambda attack: f"{attack.NAME} {attack.norm}",
)
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_budgets_are_met_on_the_integers(attack: Any, kind: str) -> None:
    model, shape, _ = random_model(kind, 17)
    images = random_images(shape, 30, 18)
    found = attack(model, images, predictions(model, images))
    change = np.abs(found.adversarial.astype(np.int64) - images)
    if attack.norm == "linf":
        assert change.max() <= 25
    else:
        assert (change**2).reshape(30, -1).sum(axis=1).max() <= 5852  # (255 · 0.3)² = 5852.25
    assert (change.reshape(30, -1).any(axis=1)).all()


def test_square_in_linf_stays_on_the_boundary() -> None:
    model, shape, _ = random_model("colour", 19)
    images = random_images(shape, 30, 20)
    found = Square(epsilon=0.05, max_queries=80)(model, images, predictions(model, images))
    levels = images.astype(int)
    low, high = np.maximum(levels - 12, 0), np.minimum(levels + 12, 255)
    assert ((found.adversarial == low) | (found.adversarial == high)).all()
    assert (found.queries[~found.success] == 80).all()
    assert (found.queries[found.success] <= 80).all()
    assert (found.gradients == 0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_square_gains_with_queries(norm: str, goal: str) -> None:
    model, shape, classes = random_model("colour", 30)
    images = random_images(shape, 40, 31)
    labels = predictions(model, images)
    targets = None if goal == "untargeted" else (labels + 1) % classes
    epsilon = 0.08 if norm == "linf" else 0.8
    few, many = (
        Square(epsilon=epsilon, norm=norm, max_queries=n)(model, images, labels, targets=targets) for n in (1, 60)
    )
    assert (many.success >= few.success).all()
    assert many.success.sum() > few.success.sum()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 9), (2, 1, 4), (3, 4, 3)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_on_tiny_images(shape: tuple[int, int, int], norm: str) -> None:
    images = random_images(shape, 6, 23)
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    labels = predictions(model, images)
    attack = Square(epsilon=0.2, norm=norm, max_queries=20)
    found = attack(model, images, labels)
    assert attack.within(found.distances, images[0].size).all()
    assert found.queries.min() >= 1


def test_noise_fills_the_ball_and_its_corners_in_turn() -> None:
    clean = torch.full((500, 1, 2, 1), 128.0)
    streams = [np.random.default_rng(i) for i in range(500)]
    attack = Noise(epsilon=0.1)
    inside, corner, other = (attack.drawn(query, clean, streams) - clean for query in range(3))
    assert set(corner.flatten().tolist()) == {-25, 25}
    patterns = torch.unique(corner.flatten(1), dim=0, return_counts=True)[1]
    assert len(patterns) == 4
    assert chisquare(patterns.numpy()).pvalue > 1e-3
    for change in (inside, other):
        share = change.abs().amax(dim=(1, 2, 3)).div(25).square().sort().values  # of the square: uniform
        assert (share - torch.linspace(0, 1, 500)).abs().max() < 0.08
    assert (inside - other).abs().flatten(1).amax(dim=1).min() > 0


def test_noise_in_l2_lies_on_the_sphere_in_every_direction() -> None:
    clean = torch.full((500, 1, 2, 1), 128.0)
    streams = [np.random.default_rng(i) for i in range(500)]
    for query in range(2):
        change = (Noise(epsilon=0.2, norm="l2").drawn(query, clean, streams) - clean).flatten(1)
        torch.testing.assert_close(change.norm(dim=1), torch.full((500,), 51.0))
        assert kstest(torch.atan2(change[:, 0], change[:, 1]) / (2 * np.pi) + 0.5, "uniform").pvalue > 1e-3


def test_noise_keeps_the_image_nearest_to_the_goal_and_ends_at_the_first_success() -> None:
    model = Plane(26, offset=0.8)
    images, labels = middle_images(40, 27), np.ones(40, dtype=np.int64)
    assert (model.lead(torch.tensor(images) / 255) > 0).all()
    leads, found = [], []
    for queries in range(1, 9):
        result = Noise(epsilon=0.5, max_queries=queries)(model, images, labels)
        leads.append(model.lead(torch.tensor(result.adversarial) / 255).numpy())
        found.append(result)
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(leads))
    assert (leads[-1] < leads[0]).any()
    last = found[-1]
    assert 0 < last.success.sum() < 40
    assert (last.queries[~last.success] == 8).all()
    first = np.argmax([result.success for result in found], axis=0) + 1
    assert np.array_equal(last.queries[last.success], first[last.success])
    assert np.array_equal(last.generations, last.queries)
    assert (last.gradients == 0).all()


@pytest.mark.parametrize("side", range(1, 12))
def test_bumps_of_square(side: int) -> None:
    bumps = pattern(side)
    assert bumps.shape == (side, side)
    assert np.linalg.norm(bumps) == pytest.approx(1)
    upper = side // 2
    assert (bumps[:upper] > 0).all()
    assert (bumps[upper:] < 0).all()
    row, column = np.unravel_index(np.argmin(bumps), bumps.shape)
    assert (row, column) == (upper + (side - upper) // 2, side // 2)


def test_sides_of_square_shrink_by_the_schedule() -> None:
    shares = [share_of_pixels(0.8, step, 10_000) for step in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert shares == [0.8, 0.8, *(0.8 / 2**n for n in range(1, 10))]
    assert share_of_pixels(0.8, 51, 1000) == share_of_pixels(0.8, 510, 10_000)


@pytest.mark.parametrize(
    ("kind", "wrong", "flag"),
    [
        (PGD, {"epsilon": 1.5}, "--epsilon"),
        (PGD, {"epsilon": 0.001, "norm": "l2"}, "--epsilon"),
        (PGD, {"norm": "l1"}, "--norm"),
        (PGD, {"steps": 0}, "--steps"),
        (PGD, {"step_size": 0.0}, "--step-size"),
        (APGD, {"restarts": 0}, "--restarts"),
        (APGD, {"loss": "mse"}, "--loss"),
        (DDN, {"gamma": 1.0}, "--gamma"),
        (Square, {"max_queries": 0}, "--max-queries"),
        (Noise, {"max_queries": 0}, "--max-queries"),
        (Square, {"p_init": 0.0}, "--p-init"),
    ],
)
def test_refuses_wrong_parameters(kind: type[Attack], wrong: dict[str, Any], flag: str) -> None:
    with pytest.raises(WrongInput, match=flag):
        kind(**wrong)


@pytest.mark.parametrize("kind", [PGD, APGD, DDN, Square, Noise])
def test_dlr_needs_three_classes(kind: type[Attack]) -> None:
    with pytest.raises(WrongInput, match="--loss"):
        kind(loss="dlr")(Plane(24, offset=0.1), middle_images(2, 25), np.ones(2, dtype=np.int64))


def test_a_wide_l2_ball_is_allowed() -> None:
    assert [PGD(epsilon=e, norm="l2").ball.limit for e in (1.0, 2.0, 0.2)] == [65025, 260100, 2601]
    assert [int(PGD(epsilon=k / 255).ball.radius) for k in range(1, 256)] == list(itertools.chain(range(1, 256)))


def test_ddn_leaves_the_last_image_of_a_search_that_failed() -> None:
    images = middle_images(4, 9)
    result = DDN(steps=15)(Plane(3, 100.0), images, np.ones(4, int))  # no 8-bit image is on the other side
    assert not result.success.any()
    assert (result.distances.l2 > 0.5).all()
