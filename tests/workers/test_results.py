"""The schema of results, distances, and parts that are whole or absent."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import FGSM
from workers.places import Place
from workers.results import SCHEMA_VERSION, SearchResult, distances, schema, write_part


def some_rows() -> SearchResult:
    model, shape, _ = random_model("colour", 40)
    images = random_images(shape, 5, 41)
    return FGSM(epsilon=0.1)(model, images, predictions(model, images), worker="test")


def test_distances_by_hand() -> None:
    clean = np.zeros((2, 2, 2, 2), np.uint8)
    moved = clean.copy()
    moved[0, 0, 0, 0], moved[0, 1, 0, 0], moved[0, 1, 1, 1] = 255, 51, 102
    found = distances(clean, moved)
    assert found.l0.tolist() == [2, 0]
    assert found.l0_features.tolist() == [3, 0]
    assert found.l1.tolist() == pytest.approx([1 + 0.2 + 0.4, 0])
    assert found.l2.tolist() == pytest.approx([np.sqrt(1 + 0.04 + 0.16), 0])
    assert found.linf.tolist() == [1, 0]
    back = distances(moved, clean)  # a fall must not wrap round in uint8
    assert back.linf.tolist() == [1, 0]


def test_the_table_has_the_schema() -> None:
    result = some_rows()
    table = result.to_table()
    assert table.schema.equals(schema((3, 7, 6)), check_metadata=True)
    assert table.schema.metadata[b"brittle.schema_version"] == SCHEMA_VERSION.encode()
    assert table["target"].null_count == 5
    images = np.array(table["adversarial"].to_pylist(), dtype=np.uint8).reshape(5, *table["shape"][0].as_py())
    assert np.array_equal(images, result.adversarial)


def test_failed_rows_hold_nothing_but_the_reason() -> None:
    failed = SearchResult.failed(
        FGSM(),
        np.array([4]),
        np.array([1]),
        np.array([2]),
        split="test",
        seed=0,
        worker="w",
        shape=(3, 7, 6),
        reason="ValueError: no",
    )
    row = pa.concat_tables([some_rows().to_table(), failed.to_table()]).to_pylist()[-1]
    assert (row["status"], row["success"], row["error"]) == ("failed", False, "ValueError: no")
    for name in ("clean_prediction", "adversarial_prediction", "adversarial_confidence", "l0", "linf", "adversarial"):
        assert row[name] is None


def test_a_part_reads_back_everywhere(tmp_path: Path) -> None:
    table = some_rows().to_table()
    for number in range(2):
        write_part(table, Place.of(tmp_path / f"part-{number}.parquet"))
    assert pq.read_table(tmp_path).num_rows == 10
    assert pq.read_table(tmp_path / "part-0.parquet").equals(table)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0.parquet", "part-1.parquet"]
