"""The source–target matrix against a loop over the rows."""

import numpy as np
import pyarrow as pa
import pytest

from analysis.matrix import source_target_matrix
from analysis.statistics import Rate
from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import JSMA


def test_equals_a_loop_over_rows() -> None:
    model, shape, classes = random_model("colour", 70)
    images = np.repeat(random_images(shape, 12, 71), classes, axis=0)
    labels = predictions(model, images)
    labels[:classes] = (labels[0] + 1) % classes  # one that the model gets wrong
    targets = np.tile(np.arange(classes), 12)
    table = JSMA(gamma=0.08)(model, images, labels, targets=targets).to_table()
    matrix = source_target_matrix(table, classes)

    totals, successes = np.zeros((classes, classes), int), np.zeros((classes, classes), int)
    shares: dict[tuple[int, int], list[float]] = {}
    for row in table.to_pylist():
        if row["status"] in ("success", "exhausted"):
            totals[row["label"], row["target"]] += 1
            if row["success"]:
                successes[row["label"], row["target"]] += 1
                shares.setdefault((row["label"], row["target"]), []).append(row["l0_features"] / images[0].size)
    assert not matrix.failed.any()
    assert totals.sum() == 11 * (classes - 1)
    assert 0 < successes.sum() < totals.sum()
    assert np.array_equal(matrix.totals, totals)
    assert np.array_equal(matrix.successes, successes)
    assert (matrix.totals.diagonal() == 0).all()
    for cell in np.ndindex(classes, classes):
        if totals[cell]:
            assert matrix.rates[cell] == successes[cell] / totals[cell]
        else:
            assert np.isnan(matrix.rates[cell])
        if cell in shares:
            assert matrix.features[cell] == pytest.approx(np.mean(shares[cell]), abs=1e-12)
        else:
            assert np.isnan(matrix.features[cell])


def test_a_failed_search_leaves_its_cell_between_two_ends() -> None:
    table = pa.table(
        {
            "image_id": [0, 1, 2, 3], "label": [0, 0, 0, 1], "target": [1, 1, 1, 0],
            "status": ["success", "exhausted", "failed", "failed"], "success": [True, False, False, False],
            "l0_features": [2, 0, 0, 0], "shape": [[1, 2, 2], [1, 2, 2], None, None],
        }
    )  # fmt: skip
    matrix = source_target_matrix(table)
    assert matrix.rate(0, 1) == Rate(1, 3, unknown=1)
    assert matrix.rate(1, 0) == Rate(0, 1, unknown=1)
    assert np.isnan(matrix.rates).all()
    assert matrix.features[0, 1] == 0.5


def test_rows_without_a_target_are_left_out() -> None:
    model, shape, classes = random_model("grey", 72)
    images = random_images(shape, 3, 73)
    table = JSMA(max_steps=3)(model, images, predictions(model, images)).to_table()
    assert source_target_matrix(table, classes).totals.sum() == 0
    assert source_target_matrix(table).rates.shape == (0, 0)


def test_a_class_beyond_the_last_is_refused() -> None:
    model, shape, _ = random_model("grey", 74)
    images = random_images(shape, 3, 75)
    labels = predictions(model, images)
    table = JSMA(max_steps=3)(model, images, labels, targets=(labels + 1) % 4).to_table()
    with pytest.raises(ValueError, match="expected classes 0 to 0"):
        source_target_matrix(table, 1)
