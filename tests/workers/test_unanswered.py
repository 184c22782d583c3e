"""Answers that are not finite, ties, saturation: every search, certificate and replay against float64 brute force."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analysis.replay import first_difference
from tests.conftest import random_images
from tests.workers.planted_cases import WAYS, Hooked, Planted, drawn, hooked, judged
from tests.workers.test_fgsm import predictions
from workers.attacks import ATTACKS, OnePixelExact, attack_named
from workers.attacks.attack import Attack
from workers.evaluation.chain import read_chain
from workers.images import Dataset
from workers.results import SearchResult, Status

SEARCHES: list[tuple[str, dict[str, Any]]] = [
    ("one-pixel-exact", {}),
    ("one-pixel-exact", {"levels": "extremes"}),
    ("two-pixel-exact", {}),
    ("pixel-beam", {"pixels": 2, "width": 3, "candidates": 4}),
    ("pixel-beam", {"pixels": 1, "width": 2, "candidates": 0, "max_queries": 7}),
    ("de", {"pixels": 2, "population": 8, "generations": 4}),
    ("de", {"pixels": 1, "population": 6, "generations": 4, "fitness": "margin", "strategy": "rand1bin"}),
    ("random-pixels", {"pixels": 2, "max_queries": 30}),
    ("sparse-rs", {"pixels": 2, "max_queries": 30}),
    ("corner-search", {"pixels": 2, "ranked": 5, "max_queries": 60}),
    ("cma-es", {"pixels": 2, "max_queries": 60}),
    ("fgsm", {"epsilon": 0.2}),
    ("ifgsm", {"steps": 5, "step_size": 0.05}),
    ("pgd", {"epsilon": 0.3, "steps": 5, "restarts": 2}),
    ("pgd", {"epsilon": 0.9, "norm": "l2", "steps": 5, "loss": "margin"}),
    ("apgd", {"epsilon": 0.3, "steps": 6}),
    ("ddn", {"steps": 6}),
    ("adaptive", {"steps": 6}),
    ("adaptive", {"form": "penalty", "steps": 6}),
    ("square", {"epsilon": 0.3, "max_queries": 12}),
    ("square", {"epsilon": 0.9, "norm": "l2", "max_queries": 12, "loss": "ce"}),
    ("rays", {"epsilon": 0.3, "max_queries": 30}),
    ("noise", {"epsilon": 0.3, "max_queries": 8}),
    ("jsma", {"gamma": 0.8}),
    ("jsma", {"map": "pair", "theta": -0.5, "max_steps": 6}),
    ("jsma", {"map": "classes", "weighted": True, "max_steps": 6}),
]


def space(attack: Attack, image: np.ndarray) -> np.ndarray | None:
    """All images that an exact search tries; None for another search."""
    one, two = attack.NAME == "one-pixel-exact", attack.NAME == "two-pixel-exact"
    if not (one or two):
        return None
    channels, height, width = image.shape
    corners = list(itertools.product((0, 255), repeat=channels))
    whole = one and channels == 1 and attack.levels == "all"  # type: ignore[attr-defined]
    values = [(level,) for level in range(256)] if whole else corners
    made = []
    for places in itertools.combinations(range(height * width), 1 if one else 2):
        for chosen in itertools.product(values, repeat=len(places)):
            copy = image.copy()
            for place, value in zip(places, chosen, strict=True):
                copy[:, place // width, place % width] = value
            made.append(copy)
    return np.array(made)


def disagreements(
    attack: Attack, model: Planted, images: np.ndarray, labels: np.ndarray, targets: np.ndarray | None
) -> tuple[int, list[str]]:
    """How many rows a search gave, and which of them float64 says otherwise of."""
    result = attack(model, images, labels, targets=targets)
    found = []
    for row in range(len(images)):
        target = None if targets is None else int(targets[row])
        said = _expected(attack, model, images[row], int(labels[row]), target, result, row)
        found += [f"row {row}: {one}, got {result.status[row]} ({result.error[row]})" for one in said]
    data = Dataset(images, labels, "all", "planted")
    replayed = first_difference(
        result.to_table(), attack, 0, data, model, block=16, batch=64, on_rows=lambda count: None
    )
    found += [f"replay: {replayed}"] if replayed else []
    kept = np.flatnonzero(np.isfinite(model.exact(images)).all(axis=1))
    if 0 < len(kept) < len(images):
        alone = attack(model, images[kept], labels[kept], targets=None if targets is None else targets[kept], ids=kept)
        rows = (
            table.drop_columns(["seconds"]).to_pylist() for table in (alone.to_table(), result.to_table().take(kept))
        )
        found += [] if next(rows) == next(rows) else ["other images of the call change a row"]
    return len(images), found


def _expected(
    attack: Attack, model: Planted, image: np.ndarray, label: int, target: int | None, result: SearchResult, row: int
) -> list[str]:
    status, error = result.status[row], result.error[row]
    (clean,) = model.exact(image[None])
    if not np.isfinite(clean).all():
        return [] if status == Status.FAILED and "clean image" in error else ["clean has no answer"]
    if clean.argmax() != label:
        return [] if status == Status.ALREADY_WRONG else ["clean is wrong"]
    if target == label:
        return [] if status == Status.SKIPPED else ["target is the label"]
    if status == Status.FAILED and not model.share:
        return ["nothing is planted"]
    if status != Status.FAILED:
        known, reached, _ = judged(model.exact(result.adversarial[row : row + 1]), label, target)
        if not known[0] or reached[0] != (status == Status.SUCCESS):
            return [f"the stored image has an answer: {known[0]}, reaches: {reached[0]}"]
    elif "changes" in error:
        bad, asked = int(error.split()[0]), int(error.split()[2])
        if not 0 < bad <= asked == result.queries[row]:
            return ["impossible counts"]
    if (made := space(attack, image)) is None:
        return []
    known, reached, ties = judged(model.exact(made), label, target)
    untried = result.by_products["untried"][row]
    if not known.all():
        wanted, why = Status.FAILED, f"{(~known).sum()} of {len(known)} changes were answered by "
    else:
        wanted = Status.SUCCESS if reached.any() else Status.EXHAUSTED if untried else Status.CERTIFIED
        why = ""
    said = [] if status == wanted and (error or "").startswith(why) else [f"{wanted}, {why}"]
    if result.by_products["successes"][row] != reached.sum():
        said.append(f"{reached.sum()} successes")
    tied = result.by_products["ties"][row] if "ties" in result.by_products else 0
    if tied != ties.sum():
        said.append(f"{ties.sum()} ties, not {tied}")
    return said


def tried(count: int, seed: int) -> None:
    """Draws networks until so many rows were compared."""
    rng, rows, statuses = np.random.default_rng(seed), 0, 0
    for name, parameters in itertools.cycle(SEARCHES):
        if rows >= count:
            break
        model, images, labels, targets = drawn(rng)
        attack = ATTACKS[name](**parameters)
        compared, found = disagreements(attack, model, images, labels, targets)
        assert not found, (name, parameters, rows, found)
        rows, statuses = rows + compared, statuses + 1
    assert rows >= count


def test_searches_agree_with_float64() -> None:
    tried(2 * 4 * len(SEARCHES), 5)


@pytest.mark.slow
def test_searches_agree_with_float64_ten_thousand_times() -> None:
    tried(10_000, 6)


class Root(nn.Module):
    """A linear network on √x, whose slope at black is infinite unless something is added."""

    def __init__(self, added: float, features: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.linear = nn.Linear(features, 4)
        self.added = added

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear((images.flatten(1) + self.added).sqrt())
        return found


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("jsma", {"gamma": 0.9}),
        ("jsma", {"map": "pair", "gamma": 0.9}),
        ("jsma", {"map": "classes", "gamma": 0.9}),
        ("fgsm", {"epsilon": 0.5}),
        ("ifgsm", {"steps": 60, "step_size": 0.02}),
        ("pgd", {"epsilon": 0.7, "steps": 20}),
        ("pgd", {"epsilon": 4.0, "norm": "l2", "steps": 20}),
        ("apgd", {"epsilon": 0.7, "steps": 20}),
        ("ddn", {"steps": 40}),
        ("adaptive", {"steps": 40}),
        ("adaptive", {"form": "penalty", "steps": 60}),
        ("torchattacks:PGD", {"eps": 0.7, "steps": 20}),
        ("foolbox:LinfFastGradientAttack", {"epsilon": 0.5}),
    ],
)
def test_features_without_a_finite_gradient_are_left_out(name: str, parameters: dict[str, Any]) -> None:
    images = np.random.default_rng(9).integers(40, 200, (8, 1, 6, 6), dtype=np.uint8)
    images[:, :, :, 0] = 0
    twin, model = Root(1e-4, 36), Root(0.0, 36)
    labels = predictions(model, images)
    assert np.array_equal(labels, predictions(twin, images))
    attack = attack_named(name)(**parameters)
    found, finite = attack(model, images, labels), attack(twin, images, labels)
    assert finite.success.all()
    assert found.success.all() or (name == "torchattacks:PGD" and found.success.sum() >= 5)  # it comes back to black
    assert "gradients_not_finite" not in finite.by_products
    if name not in ("pgd", "apgd", "torchattacks:PGD"):  # these start elsewhere
        shares = found.by_products["gradients_not_finite"]
        assert (shares > 0).all()
        assert (shares <= 1 / 3).all()
    if name == "jsma":  # black features stay black
        assert not found.adversarial[:, :, :, 0].any()


def test_a_chain_that_may_overflow_is_not_evaluated_in_parts() -> None:
    """There a ReLU would make a 0 of the NaN that the whole model passes on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)
        )
    images = random_images((1, 6, 6), 3, 2)
    assert read_chain(model.eval(), (1, 6, 6)) is not None
    for factor in (1e18, 3e37):
        with torch.no_grad():
            for layer in (model[0], model[3]):
                layer.weight.mul_(factor**0.5)
        assert (read_chain(model, (1, 6, 6)) is None) == (factor > 1e30)
        with torch.no_grad():
            for layer in (model[0], model[3]):
                layer.weight.div_(factor**0.5)
    with torch.no_grad():
        model[0].weight.mul_(1e38)
        model[3].weight[0] = torch.tensor([1e30, -1e30]).repeat(72)
    made = np.repeat(images[:1], 36 * 256, axis=0).reshape(-1, 36)
    made[np.arange(len(made)), np.arange(36).repeat(256)] = np.tile(np.arange(256), 36)
    with torch.no_grad():
        logits = model(torch.tensor(made.reshape(-1, 1, 6, 6)).float().div(255))
        clean = model(torch.tensor(images).float().div(255))
    silent = int((~logits.isfinite().all(dim=1)).sum())
    result = OnePixelExact()(model, images[:1], clean[:1].nan_to_num(0).argmax(dim=1))
    assert result.status[0] == Status.FAILED
    if bool(clean[0].isfinite().all()):
        assert result.error[0] == f"{silent} of {len(made)} changes were answered by numbers that are not finite"


@pytest.mark.parametrize("share", [0, 200])
@pytest.mark.parametrize("way", WAYS)
def test_a_certificate_is_of_the_model_and_not_of_its_layers(way: str, share: int) -> None:
    shape, rng = (1, 6, 6), np.random.default_rng(12)
    with hooked(shape, 3, rng, share, way) as model:
        images = random_images(shape, 6, 13)
        labels = np.nan_to_num(model.exact(images)).argmax(axis=1)
        for name, parameters in SEARCHES[:3]:
            rows, found = disagreements(ATTACKS[name](**parameters), model, images, labels, None)
            assert rows == 6
            assert not found, (name, parameters, found)
        assert way == "unless traced" or read_chain(model, shape) is None


def test_a_model_is_read_anew_at_each_search() -> None:
    shape, rng = (1, 6, 6), np.random.default_rng(14)
    model = Hooked(shape, 3, rng, 0, "").eval()
    model.turned = 10**9
    images = random_images(shape, 6, 15)
    for step in range(3):
        assert (read_chain(model, shape) is None) == (step == 2)
        labels = model.exact(images).argmax(axis=1)
        _, found = disagreements(OnePixelExact(), model, images, labels, None)
        assert not found, (step, found)
        if step == 0:  # other weights
            model.second = np.roll(model.second, 1, axis=0)
            model.outer.weight.copy_(torch.tensor(model.second.T, dtype=torch.float32))
        else:  # the same, and a hook
            model.turned = 5
            model.register_forward_hook(lambda module, given, raw: module.planted(given[0], raw))


@pytest.mark.parametrize("name", ["torchattacks:PGD", "foolbox:LinfPGD"])
def test_a_toolkit_that_meets_an_image_without_an_answer_fails_on_it(name: str) -> None:
    rng = np.random.default_rng(2)
    shape, classes = (1, 3, 3), 3
    model = Planted(shape, classes, rng, 1)  # all images but those that are spared
    images = random_images(shape, 2, 3)
    spared = {bytes(image) for image in images}
    planted = model.bad
    model.bad = lambda levels: np.where(  # type: ignore[method-assign]
        [[row.astype(np.uint8).tobytes() in spared] for row in levels], 0, planted(levels)
    )
    labels = model.exact(images).argmax(axis=1)
    parameters = {"eps": 0.3, "steps": 3} if name.startswith("torch") else {"epsilon": 0.3, "steps": 3}
    result = attack_named(name)(**parameters)(model, images, labels)
    assert list(result.status) == [Status.FAILED] * 2
    assert all("changes were answered by numbers that are not finite" in str(error) for error in result.error)
