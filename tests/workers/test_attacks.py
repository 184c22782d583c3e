"""One table runs every attack over every model: what holds for all of them."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import ATTACKS, Attack
from workers.errors import WrongInput
from workers.results import SearchResult, Status, distances

RANDOM = {"pgd", "apgd", "square", "rays", "noise", "de", "random-pixels", "sparse-rs", "corner-search", "cma-es"}
SMALL: dict[str, dict[str, Any]] = {
    "fgsm": {"epsilon": 0.05},
    "ifgsm": {"steps": 30, "step_size": 0.003},
    "pgd": {"epsilon": 0.05, "steps": 7, "restarts": 2, "loss": "margin"},
    "pgd l2": {"epsilon": 0.4, "norm": "l2", "steps": 7, "restarts": 2},
    "apgd": {"epsilon": 0.05, "steps": 12, "restarts": 2, "loss": "dlr"},
    "apgd l2": {"epsilon": 0.4, "norm": "l2", "steps": 12},
    "ddn": {"steps": 12},
    "adaptive": {"steps": 12},
    "adaptive penalty": {"form": "penalty", "epsilon": 0.3, "steps": 12},
    "adaptive linf": {"norm": "linf", "form": "orthogonal", "steps": 12, "loss": "margin"},
    "square": {"epsilon": 0.1, "max_queries": 30},
    "square l2": {"epsilon": 0.6, "norm": "l2", "max_queries": 30, "loss": "ce"},
    "rays": {"epsilon": 0.1, "max_queries": 200},
    "noise": {"epsilon": 0.1, "max_queries": 9},
    "noise l2": {"epsilon": 0.6, "norm": "l2", "loss": "ce"},
    "jsma": {"max_steps": 12},
    "de": {"pixels": 2, "population": 12, "generations": 4},
    "one-pixel-exact": {"levels": "extremes"},
    "two-pixel-exact": {},
    "pixel-beam": {"pixels": 2, "width": 2},
    "random-pixels": {"pixels": 2, "levels": "all", "max_queries": 60},
    "sparse-rs": {"pixels": 2, "max_queries": 25},
    "corner-search": {"pixels": 2, "ranked": 20, "max_queries": 400},
    "cma-es": {"pixels": 2, "max_queries": 60},
}
FEWER = {"two-pixel-exact": 5, "corner-search": 7}
"""Images for the attacks whose cost cannot be made small; 21 for the others."""


def small(name: str) -> Attack:
    """The attack of an entry of the table: its name, and behind a space what sets the entry apart."""
    return ATTACKS[name.split()[0]](**SMALL[name])


def columns(result: SearchResult, rows: np.ndarray | slice = slice(None)) -> dict[str, list[Any]]:
    table = result.to_table().drop_columns(["seconds", "worker"])
    chosen = table.take(rows) if isinstance(rows, np.ndarray) else table
    return {name: chosen[name].to_pylist() for name in chosen.column_names}


def test_the_table_is_complete() -> None:
    assert {name.split()[0] for name in SMALL} == set(ATTACKS)


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("goal", ["untargeted", "one", "each"])
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_attack_on_every_model(name: str, goal: str, kind: str) -> None:
    model, shape, classes = random_model(kind, 30)
    count = FEWER.get(name, 21)
    images = random_images(shape, count, 31)
    labels = predictions(model, images)
    labels[3] = (labels[3] + 1) % classes  # one that the model gets wrong
    targets = {"untargeted": None, "one": 1, "each": (labels + 1) % classes}[goal]
    model.train()
    before = images.copy()
    attack = small(name)
    result = attack(model, images, labels, targets=targets, seed=5)

    assert model.training  # left in the mode it came in
    model.eval()
    assert np.array_equal(images, before)
    assert result.status[3] == Status.ALREADY_WRONG
    own = np.zeros(count, dtype=bool) if targets is None else labels == targets
    own[3] = False
    assert (result.status[own] == Status.SKIPPED).all()
    searched = np.isin(result.status, [Status.SUCCESS, Status.EXHAUSTED, Status.CERTIFIED])
    assert searched.sum() == count - 1 - own.sum()
    assert np.array_equal(result.adversarial[~searched], images[~searched])
    assert (result.queries[searched] > 0).all()
    assert (result.queries[~searched] == 0).all()
    final = predictions(model, result.adversarial)
    assert np.array_equal(final, result.adversarial_prediction)
    reached = final != labels if targets is None else final == targets
    assert np.array_equal(result.success, reached & searched)
    moved = distances(images, result.adversarial)
    assert attack.within(moved, images[0].size).all()
    assert np.array_equal(moved.l0, result.distances.l0)

    order = np.random.default_rng(32).permutation(count)
    each = np.broadcast_to(targets, count) if targets is not None else None
    again = attack(
        model, images[order], labels[order], targets=None if each is None else each[order], ids=order, seed=5
    )
    assert columns(again) == columns(result, order)
    for row in (0, count // 3, count - 1):
        alone = attack(
            model,
            images[row : row + 1],
            labels[row : row + 1],
            targets=None if each is None else each[row : row + 1],
            ids=[row],
            seed=5,
        )
        assert columns(alone) == columns(result, np.array([row]))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_parameters_are_hashed_and_frozen(name: str) -> None:
    attack = small(name)
    assert attack.params_hash == ATTACKS[name](**attack.model_dump()).params_hash
    assert (attack.params_hash == ATTACKS[name]().params_hash) == (not SMALL[name])
    with pytest.raises(WrongInput, match="unknown parameter --nonsense"):
        ATTACKS[name](nonsense=1)


def test_the_seed_changes_random_searches_alone() -> None:
    model, shape, _ = random_model("grey", 33)
    images = random_images(shape, 4, 34)
    labels = predictions(model, images)
    for name in SMALL:
        if name in FEWER.keys() - RANDOM:
            continue
        first, second = (columns(small(name)(model, images, labels, seed=seed)) for seed in (1, 2))
        assert (first["adversarial"] != second["adversarial"]) == (name.split()[0] in RANDOM), name


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"images": np.zeros((2, 9, 12), np.uint8)}, r"\[n, C, H, W\]"),
        ({"images": np.zeros((0, 1, 9, 12), np.uint8)}, "not empty"),
        ({"images": np.zeros((2, 1, 9, 12), np.int64)}, "uint8 or float"),
        ({"images": np.full((2, 1, 9, 12), 0.3331, np.float32)}, "multiples of 1/255"),
        ({"images": np.full((2, 1, 9, 12), 2.0, np.float32)}, "multiples of 1/255"),
        ({"images": np.full((2, 1, 9, 12), np.nan, np.float32)}, "multiples of 1/255"),
        ({"labels": np.array([0.0, 1.0])}, "labels must be integers"),
        ({"labels": np.array([0])}, "labels must be one number an image"),
        ({"labels": np.array([0, 4])}, "labels must lie in 0 to 3"),
        ({"targets": -1}, "targets must lie in 0 to 3"),
        ({"targets": np.array([1, 2, 3])}, "targets must be one number an image"),
    ],
)
def test_wrong_data_is_refused(wrong: dict[str, Any], says: str) -> None:
    model, shape, _ = random_model("grey", 35)
    data = {"images": random_images(shape, 2, 36), "labels": np.array([0, 1]), "targets": None} | wrong
    with pytest.raises(ValueError, match=says):
        small("fgsm")(model, data.pop("images"), data.pop("labels"), **data)


def test_floats_and_tensors_are_taken() -> None:
    model, shape, _ = random_model("colour", 37)
    images = random_images(shape, 3, 38)
    labels = predictions(model, images)
    eight_bit = small("ifgsm")(model, images, labels)
    floats = small("ifgsm")(model, torch.tensor(images).float().div(255), torch.tensor(labels))
    assert columns(eight_bit) == columns(floats)


@pytest.mark.parametrize("when", ["clean", "found"])
def test_an_image_that_is_answered_nan_fails_by_itself(when: str) -> None:
    """Not counted as wrong, nor as broken: what NaN says of an image is nothing."""
    model, shape, _ = random_model("grey", 70)
    images = random_images(shape, 4, 71)
    labels = predictions(model, images)

    class Moody(torch.nn.Module):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            levels = (given * 255).round().to(torch.uint8)
            clean = (levels == torch.tensor(images[1])).flatten(1).all(dim=1)
            near = (levels.int() - torch.tensor(images[1]).int()).abs().flatten(1).amax(dim=1) < 30
            silent = clean if when == "clean" else near & ~clean
            return model(given).masked_fill(silent[:, None], float("nan"))

    whole = ATTACKS["fgsm"](epsilon=0.1)(model, images, labels)
    found = ATTACKS["fgsm"](epsilon=0.1)(Moody(), images, labels)
    said = "the clean image was" if when == "clean" else "the image that the search left was"
    assert list(found.error) == [None, f"{said} answered by numbers that are not finite", None, None]
    assert found.status[1] == "failed"
    assert not found.success[1]
    rest = [0, 2, 3]
    assert list(found.status[rest]) == list(whole.status[rest])
    assert np.array_equal(found.adversarial[rest], whole.adversarial[rest])
    assert np.array_equal(found.adversarial_confidence[rest], whole.adversarial_confidence[rest])
    table = found.to_table()
    assert table["adversarial_prediction"].to_pylist()[1] is None
