"""Which images of a run are looked at."""

import numpy as np
import pytest

from analysis.pairs import Pairs
from tests.conftest import random_images, random_model
from workers.attacks import FGSM
from workers.images import Dataset
from workers.results import Status, distances


@pytest.mark.parametrize(("limit", "won", "lost"), [(6, 3, 3), (14, 10, 4), (9, 5, 4), (1, 1, 0), (100, 20, 4)])
def test_failures_get_half_of_the_places(limit: int, won: int, lost: int) -> None:
    model, shape, classes = random_model("colour", 4)
    images = random_images(shape, 30, 5)
    labels = np.arange(30) % classes
    found = FGSM(epsilon=0.1)(model, images, labels)
    status = np.full(30, str(Status.ALREADY_WRONG), dtype=object)
    status[:20], status[20:25] = str(Status.SUCCESS), str(Status.EXHAUSTED)
    stored = images.copy()
    stored[:24] ^= 1  # 24 failed without any change
    found = type(found)(
        **(vars(found) | {"status": status, "adversarial": stored, "distances": distances(images, stored)})
    )
    data = Dataset(images, labels, "test", "random")
    pairs = Pairs.drawn("run", "fgsm", found.to_table(), data, limit=limit, seed=1)
    assert (pairs.success.sum(), (~pairs.success).sum()) == (won, lost)
    assert pairs.left_out == 1
    assert len(set(pairs.image)) == len(pairs)
    np.testing.assert_array_equal(pairs.clean, images[pairs.image])
    np.testing.assert_array_equal(pairs.adversarial, stored[pairs.image])
    np.testing.assert_array_equal(pairs.label, labels[pairs.image])
    assert pairs.keys == tuple(f"run/{image}//{found.params_hash[:8]}" for image in pairs.image)
    again = Pairs.drawn("run", "fgsm", found.to_table(), data, limit=limit, seed=1)
    assert again.keys == pairs.keys


def test_a_run_of_which_nothing_was_searched() -> None:
    model, shape, _ = random_model("cnn", 4)
    images = random_images(shape, 3, 5)
    found = FGSM(epsilon=0.1)(model, images, np.zeros(3, dtype=np.int64))
    found = type(found)(**(vars(found) | {"status": np.full(3, str(Status.SKIPPED), dtype=object)}))
    data = Dataset(images, np.zeros(3, dtype=np.int64), "test", "random")
    assert len(Pairs.drawn("run", "fgsm", found.to_table(), data, limit=5, seed=0)) == 0
