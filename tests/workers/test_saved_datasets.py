"""Encoded images in tables, and the folders that ``save_to_disk`` of Hugging Face's datasets writes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workers.errors import WrongInput
from workers.images import read_dataset

GREY = np.random.default_rng(7).integers(0, 256, (10, 9, 7), dtype=np.uint8)
COLOUR = np.random.default_rng(8).integers(0, 256, (10, 9, 7, 3), dtype=np.uint8)
LABELS = np.arange(10) % 4


def png(image: np.ndarray, mode: str | None = None) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture if mode is None else picture.convert(mode)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def save_to_disk(folder: Path, columns: dict[str, Any], *, shards: int = 1) -> None:
    """The layout of ``Dataset.save_to_disk`` of Hugging Face's datasets 5.2, which is too large to install for this."""
    table = pa.table(columns)
    folder.mkdir(parents=True)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    size = -(-len(table) // shards)
    for shard, name in enumerate(names):
        part = table.slice(shard * size, size)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset_dict_has_its_splits(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 10)):
        columns = {"image": [png(image) for image in GREY[:count]], "label": LABELS[:count]}
        save_to_disk(tmp_path / "saved" / split, columns, shards=3)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split, count in ((None, 10), ("test", 10), ("train", 6)):
        found = read_dataset(tmp_path / "saved", split)
        assert np.array_equal(found.images[:, 0], GREY[:count])
        assert np.array_equal(found.labels, LABELS[:count])
        assert found.split == (split or "test")
    with pytest.raises(WrongInput, match="has no split validation, only test, train"):
        read_dataset(tmp_path / "saved", "validation")


@pytest.mark.parametrize("kind", ["image", "Array3D", "lists of int64"])
def test_a_saved_dataset_of_every_feature(kind: str, tmp_path: Path) -> None:
    first = COLOUR.transpose(0, 3, 1, 2)
    image: Any = {
        "image": [png(image) for image in COLOUR],
        "Array3D": pa.array(first.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
        "lists of int64": first.tolist(),
    }[kind]
    save_to_disk(tmp_path / "saved", {"img": image, "labels": pa.array(LABELS, pa.int32())}, shards=2)
    found = read_dataset(tmp_path / "saved", None)
    assert np.array_equal(found.images, first)
    assert np.array_equal(found.labels, LABELS)
    assert found.split == "all"
    with pytest.raises(WrongInput, match="has no splits"):
        read_dataset(tmp_path / "saved", "test")


def test_parquet_of_encoded_images(tmp_path: Path) -> None:
    for name, mode in (("rgb", None), ("palette", "P"), ("bits", "1")):
        pq.write_table(pa.table({"image": [png(i, mode) for i in COLOUR], "label": LABELS}), tmp_path / "a.parquet")
        found = read_dataset(tmp_path / "a.parquet", None)
        if name == "rgb":
            assert np.array_equal(found.images, COLOUR.transpose(0, 3, 1, 2))
        assert found.shape == ((1 if name == "bits" else 3), 9, 7)


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (
            [png(GREY[0]), {"bytes": b"no image", "path": None}],
            "row 1: cannot be decoded: no PNG, .* it begins with b'no image'",
        ),
        ([png(GREY[0]), {"bytes": None, "path": "a.png"}], "row 1 is only a path"),
        ([png(GREY[0]), png(GREY[0][:5])], "every image must have the same shape, row 1 is 1×5×7, row 0 is 1×9×7"),
        ([png(GREY[0]), png(COLOUR[0])], "every image must have the same shape, row 1 is 3×9×7, row 0 is 1×9×7"),
        ([png(COLOUR[0], "RGBA")], "row 0: must be grey or RGB of 8 bits, got RGBA"),
        ([png(GREY[0].astype(np.uint16) * 256)], "row 0: must be grey or RGB of 8 bits, got I;16"),
    ],
)
def test_encoded_images_that_cannot_be_used(cells: list[Any], says: str, tmp_path: Path) -> None:
    save_to_disk(tmp_path / "saved", {"image": cells, "label": LABELS[: len(cells)]})
    with pytest.raises(WrongInput, match=says):
        read_dataset(tmp_path / "saved", None)


@pytest.mark.parametrize(
    "state", ["", "[]", "{}", '{"_data_files": [{"filename": "../x.arrow"}]}', '{"_data_files": [{"filename": "a"}]}']
)
def test_a_saved_dataset_that_is_broken(state: str, tmp_path: Path) -> None:
    save_to_disk(tmp_path / "saved", {"image": [png(GREY[0])], "label": LABELS[:1]})
    (tmp_path / "saved" / "state.json").write_text(state)
    with pytest.raises(WrongInput, match="not a readable data set of save_to_disk"):
        read_dataset(tmp_path / "saved", None)
