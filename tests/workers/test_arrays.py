"""Arrays of images and labels: the order of axes, and refusals that name the row."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.errors import WrongInput
from workers.images import Dataset, read_dataset

LABELS = np.array([0, 1, 2, 1])


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)


def npz(path: Path, images: np.ndarray, labels: Any = LABELS) -> Path:
    np.savez(path / "x.npz", images=images, labels=labels)
    return path / "x.npz"


def table(path: Path, image: Any, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": image, "label": LABELS} | columns), path / "x.parquet")
    return path / "x.parquet"


def nested(path: Path, images: np.ndarray) -> Path:
    return table(path, images.tolist())


def flat(path: Path, images: np.ndarray) -> Path:
    return table(path, images.reshape(4, -1).tolist(), shape=[list(images.shape[1:])] * 4)


def tensor(path: Path, images: np.ndarray) -> Path:
    return table(path, pa.FixedShapeTensorArray.from_numpy_ndarray(images))


def idx(path: Path, images: np.ndarray) -> Path:
    for name, array in (("x-images-idx4-ubyte", images), ("x-labels-idx1-ubyte", LABELS.astype(np.uint8))):
        sides = np.array(array.shape, ">u4").tobytes()
        (path / name).write_bytes(bytes([0, 0, 8, array.ndim]) + sides + array.tobytes())
    return path / "x-images-idx4-ubyte"


def refusal(path: Path) -> str:
    with pytest.raises(WrongInput) as caught:
        read_dataset(path, None)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert len(line.splitlines()) == 1
    return line.removeprefix(f"{path}: ")


# --- the order of axes


@pytest.mark.parametrize("write", [npz, nested, flat, tensor, idx])
@pytest.mark.parametrize("shape", [(10, 12, 3), (10, 12, 1), (12, 10, 4), (4, 12, 3), (64, 64, 13), (10, 12, 2)])
def test_channels_that_seem_to_be_last_are_asked_for(
    shape: tuple[int, ...], write: Callable[[Path, np.ndarray], Path], tmp_path: Path
) -> None:
    images = pixels(*shape)
    path = write(tmp_path, images)
    sides = "×".join(map(str, shape))
    assert f"images of {sides} seem to have their channels last: read them by --layout hwc" in refusal(path)
    last, first = read_dataset(path, None, layout="hwc"), read_dataset(path, None, layout="chw")
    assert np.array_equal(last.images, images.transpose(0, 3, 1, 2))
    assert last.images.flags.c_contiguous
    assert np.array_equal(first.images, images)
    assert (last.layout, first.layout) == ("hwc", "chw")
    same = Dataset.checked(images.transpose(0, 3, 1, 2), LABELS, split="all", name="x")
    assert last.content_hash() == same.content_hash() != first.content_hash()


@pytest.mark.parametrize("write", [npz, nested])
@pytest.mark.parametrize("shape", [(3, 12, 3), (3, 12, 1), (1, 12, 3), (1, 12, 1), (4, 12, 4)])
def test_a_shape_that_may_be_either_is_asked_for(
    shape: tuple[int, ...], write: Callable[[Path, np.ndarray], Path], tmp_path: Path
) -> None:
    images = pixels(*shape)
    path = write(tmp_path, images)
    assert "may have their channels first or last: say which by --layout chw or --layout hwc" in refusal(path)
    assert np.array_equal(read_dataset(path, None, layout="chw").images, images)
    assert np.array_equal(read_dataset(path, None, layout="hwc").images, images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("write", [npz, nested])
@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 28, 28), (4, 9, 8), (3, 5, 4), (1, 4, 4), (2, 8, 8), (13, 64, 64), (5, 5, 5), (1, 1, 1)]
)
def test_channels_that_seem_to_be_first_are_taken_so(
    shape: tuple[int, ...], write: Callable[[Path, np.ndarray], Path], tmp_path: Path
) -> None:
    dataset = read_dataset(write(tmp_path, pixels(*shape)), None)
    assert np.array_equal(dataset.images, pixels(*shape))
    assert dataset.layout is None


@pytest.mark.parametrize("layout", [None, "chw", "hwc"])
def test_grey_images_of_two_axes_have_no_layout(layout: Any, tmp_path: Path) -> None:
    assert np.array_equal(read_dataset(npz(tmp_path, pixels(9, 3)), None, layout=layout).images[:, 0], pixels(9, 3))


# --- rows


def with_value(array: np.ndarray, row: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[row].flat[-1] = value
    return changed


GREY = pixels(9, 7) // 2 + 100


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (with_value(GREY / 255, 2, np.nan), "got float64; row 2 holds nan"),
        (with_value((GREY / 255).astype(np.float16), 3, -np.inf), "got float16; row 3 holds -inf"),
        (with_value(GREY / 1.0, 1, -3), "got float64; row 1 holds -3.0"),
        (with_value(GREY / 1.0, 3, 255.5), "got float64; row 3 holds 255.5"),
        (with_value(GREY / 1.0, 3, 7.25), "got float64; row 3 holds 7.25"),
        (GREY / 127.5 - 1, "got float64; row 0 holds"),
        (GREY / 255, "got float64 of 0 to 1; store (255 * images).round().astype('uint8')"),
        (GREY / 1.0, "got float64; store images.astype('uint8')"),
        (GREY.astype(np.int64), "got int64; store images.astype('uint8')"),
        (GREY.astype(">u2"), "got >u2; store images.astype('uint8')"),
        (with_value(GREY.astype(np.uint16), 2, 256), "got uint16; row 2 holds 256"),
        (with_value(GREY.astype(np.int16), 2, -1), "got int16; row 2 holds -1"),
        (GREY > 150, "got bool; store 255 * images.astype('uint8')"),
        (GREY.astype(complex), "got complex128"),
        (GREY.astype(str), "got <U3"),
    ],
)
def test_images_that_are_no_levels_name_the_row_or_say_how_to_store_them(
    images: np.ndarray, says: str, tmp_path: Path
) -> None:
    line = refusal(npz(tmp_path, images))
    assert line.startswith("images must be uint8 (0 to 255), ")
    assert says in line


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (with_value(GREY / 255, 2, np.nan), "got double; row 2 holds nan"),
        (with_value(GREY / 1.0, 1, -3), "got double; row 1 holds -3.0"),
        (with_value(GREY.astype(int), 3, 256), "got int64; row 3 holds 256"),
        (GREY / 255, "got double of 0 to 1; store (255 * images)"),
        (GREY.astype(str), "got string"),
    ],
)
def test_lists_that_hold_no_levels_name_the_row(images: np.ndarray, says: str, tmp_path: Path) -> None:
    assert refusal(nested(tmp_path, images)).startswith(f"images must be lists of uint8 (0 to 255), {says}")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (LABELS - 1, "must lie in 0 to 9999, got -1 to 1; row 0 holds -1"),
        (LABELS * 0 - 1, "got -1 to -1; row 0 holds -1, as test sets without labels do"),
        (np.array([0, 1, 10000, 1]), "got 0 to 10000; row 2 holds 10000"),
        (np.array([0, 1, 1, 2**64 - 1], np.uint64), "row 3 holds 18446744073709551615"),
        (np.array([0, 1, 1.5, 1]), "must be integers, got float64; row 2 holds 1.5"),
        (np.array([0, 1, np.nan, 1]), "must be integers, got float64; row 2 holds nan"),
        (LABELS / 1.0, "must be integers, got float64; store labels.astype('int64')"),
        (LABELS > 0, "must be integers, got bool"),
        (np.array(["cat", "dog", "cat", "x" * 99]), "row 0 holds 'cat'"),
        (LABELS.astype("M8[s]"), "must be integers, got datetime64[s]; row 0 holds"),
    ],
)
def test_labels_that_are_no_classes_name_the_row(labels: np.ndarray, says: str, tmp_path: Path) -> None:
    for path in (npz(tmp_path, GREY, labels), table(tmp_path, GREY.tolist(), label=pa.array(labels))):
        line = refusal(path)
        assert line.startswith("labels must ")
        if path.suffix == ".npz" or labels.dtype.kind in "iuf":
            assert says in line


@pytest.mark.parametrize("labels", [["a"] * 4, [[1]] * 4, pa.array(["a", "b", "a", "a"]).dictionary_encode()])
def test_labels_of_a_table_that_are_no_numbers(labels: Any, tmp_path: Path) -> None:
    assert re.match(
        r"labels must be integers, got object; row 0 holds", refusal(table(tmp_path, [[[1]]] * 4, label=labels))
    )
