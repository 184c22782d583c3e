"""The readers of labelled images: what each accepted layout gives, and that broken files are refused by name."""

import gzip
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.errors import WrongInput
from workers.images import MAXIMUM_CLASSES, Dataset, read_dataset, read_idx

GREY = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 3, 1, 9])


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def nested(images: np.ndarray, leaf: pa.DataType | None = None) -> pa.Array:
    kind = leaf or pa.uint8()
    for _ in range(images.ndim - 1):
        kind = pa.list_(kind)
    return pa.array(images.tolist(), kind)


def flat(images: np.ndarray) -> pa.Array:
    return pa.array(images.reshape(len(images), -1).tolist(), pa.list_(pa.uint8()))


def fixed(images: np.ndarray, make: Callable[[pa.Array, int], pa.Array]) -> pa.Array:
    column = pa.array(images.ravel())
    for side in reversed(images.shape[1:]):
        column = make(column, side)
    return column


def fixed_list(column: pa.Array, side: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(column, side)


def large_list(column: pa.Array, side: int) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(range(0, len(column) + 1, side), pa.int64()), column)


def write_idx_pair(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "t10k", suffix: str = "") -> Path:
    pack = gzip.compress if suffix else bytes
    (folder / f"{split}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx_bytes(labels.astype(np.uint8))))
    path = folder / f"{split}-images-idx{images.ndim}-ubyte{suffix}"
    path.write_bytes(pack(idx_bytes(images)))
    return path


def expect(dataset: Dataset, images: np.ndarray, labels: np.ndarray = LABELS) -> None:
    assert dataset.images.dtype == np.uint8
    assert dataset.images.flags.c_contiguous
    assert dataset.labels.dtype == np.int64
    np.testing.assert_array_equal(dataset.images, images[:, None] if images.ndim == 3 else images)
    np.testing.assert_array_equal(dataset.labels, labels)


# --- what is accepted


def test_grey_images_get_a_channel_axis() -> None:
    dataset = Dataset.checked(GREY, LABELS, split="all", name="x")
    expect(dataset, GREY)
    assert dataset.shape == (1, 5, 4)
    assert dataset.classes == 10
    assert len(dataset) == 6


def test_colour_images_that_are_not_square_keep_their_shape() -> None:
    dataset = Dataset.checked(COLOUR, LABELS, split="all", name="x")
    expect(dataset, COLOUR)
    assert dataset.shape == (3, 5, 4)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.uint64])
def test_labels_of_any_integer_type_become_int64(kind: type) -> None:
    expect(Dataset.checked(GREY, LABELS.astype(kind), split="all", name="x"), GREY)


def test_plain_lists_are_refused_like_any_other_wide_integers() -> None:
    with pytest.raises(WrongInput, match="images must be uint8"):
        Dataset.checked(GREY.tolist(), LABELS.tolist(), split="all", name="x")


def test_strided_images_are_made_contiguous() -> None:
    expect(Dataset.checked(COLOUR[:, ::-1, :, ::2], LABELS, split="all", name="x"), COLOUR[:, ::-1, :, ::2])


def test_the_content_hash_sees_pixels_labels_and_shape_but_not_the_name() -> None:
    def content(images: np.ndarray, labels: np.ndarray, name: str = "x") -> str:
        return Dataset.checked(images, labels, split="all", name=name).content_hash()

    same = content(GREY, LABELS)
    other = GREY.copy()
    other[3, 2, 1] ^= 1
    assert content(GREY, LABELS, "y") == same
    assert len({same, content(other, LABELS), content(GREY, LABELS[::-1]), content(GREY.reshape(6, 4, 5), LABELS)}) == 4


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, images: np.ndarray, save: Callable[..., None]) -> None:
    save(tmp_path / "x.npz", images=images, labels=LABELS, more=np.arange(3))
    dataset = read_dataset(tmp_path / "x.npz", None)
    expect(dataset, images)
    assert (dataset.split, dataset.name) == ("all", str(tmp_path / "x.npz"))


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize(
    "layout",
    [
        nested,
        lambda x: fixed(x, fixed_list),
        lambda x: fixed(x, large_list),
        pa.FixedShapeTensorArray.from_numpy_ndarray,
    ],
    ids=["nested", "fixed", "large", "tensor"],
)
@pytest.mark.parametrize("rows", [2, 100], ids=["row groups", "one group"])
def test_parquet_layouts(
    tmp_path: Path, images: np.ndarray, layout: Callable[[np.ndarray], pa.Array], rows: int
) -> None:
    table = pa.table({"image": layout(images), "label": LABELS, "more": ["a"] * 6})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=rows)
    expect(read_dataset(tmp_path / "x.parquet", None), images)


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_parquet_flat_lists_with_a_shape(tmp_path: Path, images: np.ndarray) -> None:
    path = write_parquet(
        tmp_path / "x.parquet", image=flat(images), shape=[list(images.shape[1:])] * len(images), label=LABELS
    )
    expect(read_dataset(path, None), images)


def test_parquet_columns_may_be_plural(tmp_path: Path) -> None:
    expect(read_dataset(write_parquet(tmp_path / "x.parquet", images=nested(GREY), labels=LABELS), None), GREY)


def test_parquet_in_a_folder_named_like_a_partition_keeps_its_own_labels(tmp_path: Path) -> None:
    folder = tmp_path / "label=7"
    folder.mkdir()
    expect(read_dataset(write_parquet(folder / "x.parquet", image=nested(GREY), label=LABELS), None), GREY)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_idx(tmp_path: Path, images: np.ndarray, suffix: str) -> None:
    expect(read_dataset(write_idx_pair(tmp_path, images, LABELS, suffix=suffix), None), images)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_folder_of_idx_files_holds_two_splits(tmp_path: Path, suffix: str) -> None:
    write_idx_pair(tmp_path, GREY, LABELS, "train", suffix)
    write_idx_pair(tmp_path, GREY[:2], LABELS[:2], "t10k", suffix)
    assert [len(read_dataset(tmp_path, split)) for split in ("train", "test", None)] == [6, 2, 2]
    assert [read_dataset(tmp_path, split).split for split in ("train", "test", None)] == ["train", "test", "test"]


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_folder_of_two_files_holds_two_splits(tmp_path: Path, kind: str) -> None:
    for split, images, labels in (("train", GREY, LABELS), ("test", GREY[:2], LABELS[:2])):
        if kind == "npz":
            write_npz(tmp_path / f"{split}.npz", images=images, labels=labels)
        else:
            write_parquet(tmp_path / f"{split}.parquet", image=nested(images), label=labels)
    expect(read_dataset(tmp_path, "train"), GREY)
    expect(read_dataset(tmp_path, None), GREY[:2], LABELS[:2])


def test_errors_use_the_name_that_is_given(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", images=GREY.astype(float), labels=LABELS)
    with pytest.raises(WrongInput, match=r"^mnist: images must be uint8"):
        read_dataset(path, None, name="mnist")


# --- arrays that cannot be used


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (GREY.astype(np.float32) / 255, LABELS, "images must be uint8 (0 to 255), got float32"),
        (GREY.astype(np.int8), LABELS, "images must be uint8 (0 to 255), got int8"),
        (GREY.astype(bool), LABELS, "images must be uint8 (0 to 255), got bool"),
        (GREY.reshape(6, 20), LABELS, "images must be N×H×W or N×C×H×W, got shape (6, 20)"),
        (COLOUR[None], LABELS, "images must be N×H×W or N×C×H×W, got shape (1, 6, 3, 5, 4)"),
        (np.uint8(3), LABELS, "images must be N×H×W or N×C×H×W, got shape ()"),
        (GREY[:0], LABELS[:0], "holds no images"),
        (GREY[:, :0], LABELS, "no empty side, got shape (6, 1, 0, 4)"),
        (COLOUR[:, :0], LABELS, "no empty side, got shape (6, 0, 5, 4)"),
        (GREY, LABELS[:5], "6 images but 5 labels"),
        (GREY[:5], LABELS, "5 images but 6 labels"),
        (GREY, LABELS.astype(float), "labels must be integers, got float64"),
        (GREY, LABELS.astype(bool), "labels must be integers, got bool"),
        (GREY, LABELS.astype(str), "labels must be integers, got <U"),
        (GREY, np.eye(10, dtype=int)[LABELS], "labels must be one number an image, got shape (6, 10)"),
        (GREY, np.int64(3), "labels must be one number an image, got shape ()"),
        (GREY, LABELS - 1, "labels must lie in 0 to 9999, got -1 to 8"),
        (GREY, LABELS + MAXIMUM_CLASSES, "labels must lie in 0 to 9999, got 10000 to 10009"),
        (GREY, LABELS.astype(np.uint64) + np.uint64(2**63), "labels must lie in 0 to 9999, got 9223372036854775808 to"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, images: Any, labels: Any, said: str) -> None:
    with pytest.raises(WrongInput, match=rf"^x: .*{re.escape(said)}"):
        Dataset.checked(images, labels, split="all", name="x")
    path = write_npz(tmp_path / "x.npz", images=images, labels=labels)
    with pytest.raises(WrongInput, match=re.escape(said)):
        read_dataset(path, None)


# --- files that cannot be read


def refused(path: Path, *said: str, split: str | None = None) -> None:
    """Reading is refused in one line that names the file and says all of this."""
    with pytest.raises(WrongInput) as caught:
        read_dataset(path, split)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert str(path.parent) in line
    for part in said:
        assert part in line


def test_absent_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.npz", "absent.npz", "no such file")


@pytest.mark.parametrize("name", ["x.csv", "x", "x.npz.bak", "x.NPZ2"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1,2,3")
    refused(tmp_path / name, "expected .npz, .parquet or an IDX file", name)


def test_a_single_file_has_no_splits(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS)
    refused(path, "no splits", "--split train", split="train")
    expect(read_dataset(path, "all"), GREY)


def test_a_folder_without_the_split(tmp_path: Path) -> None:
    write_npz(tmp_path / "train.npz", images=GREY, labels=LABELS)
    refused(tmp_path, "holds none of", "test.npz", "t10k-images-idx3-ubyte")


def test_a_folder_has_no_other_splits(tmp_path: Path) -> None:
    write_npz(tmp_path / "train.npz", images=GREY, labels=LABELS)
    with pytest.raises(WrongInput, match="--split must be train or test, got validation"):
        read_dataset(tmp_path, "validation")


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file at all", b"PK\x03\x04" + bytes(60)])
def test_npz_that_is_no_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    refused(tmp_path / "x.npz", "not a readable .npz file")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_npz(tmp_path: Path, keep: float) -> None:
    path = write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    refused(path, "not a readable .npz file")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_flipped_bytes(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "x.npz"
    save(path, images=GREY, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[200:216] = bytes(255 - byte for byte in content[200:216])
    path.write_bytes(content)
    refused(path, "not a readable .npz file")


def test_npz_of_pickled_objects_is_never_unpickled(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object), labels=LABELS)
    refused(path, "array images holds Python objects", "never loaded")


def test_a_pickle_named_npz_is_never_unpickled(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"\x80\x04N.")
    refused(tmp_path / "x.npz", "not a readable .npz file")


def test_a_single_array_named_npz(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, GREY)
    refused(tmp_path / "x.npz", "x.npz", "images", "labels")


def test_npz_whose_members_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images", b"abc")
        archive.writestr("labels", b"abc")
    refused(tmp_path / "x.npz", "images must be uint8")


def test_npz_whose_header_promises_more_than_fits_in_memory(tmp_path: Path) -> None:
    header = str({"descr": "|u1", "fortran_order": False, "shape": (2**44, 28, 28)}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        archive.writestr("labels.npy", b"")
    refused(tmp_path / "x.npz", "not a readable .npz file")


def test_encrypted_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", images=GREY, labels=LABELS)
    content = path.read_bytes()
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag bit that says: encrypted
        at = content.index(signature) + offset
        content = content[:at] + bytes([content[at] | 1]) + content[at + 1 :]
    path.write_bytes(content)
    refused(path, "not a readable .npz file")


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"images": GREY}, "holds images"),
        ({"labels": LABELS}, "holds labels"),
        ({"x": GREY, "y": LABELS}, "holds x, y"),
    ],
)
def test_npz_without_its_arrays(tmp_path: Path, arrays: dict[str, Any], found: str) -> None:
    refused(write_npz(tmp_path / "x.npz", **arrays), "needs arrays 'images' and 'labels'", found)


def test_npz_without_any_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w"):
        pass
    refused(tmp_path / "x.npz", "holds nothing")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + bytes(40) + b"PAR1"])
def test_parquet_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    refused(tmp_path / "x.parquet", "not a readable Parquet file")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_parquet(tmp_path: Path, keep: float) -> None:
    path = write_parquet(tmp_path / "x.parquet", image=nested(GREY), label=LABELS)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    refused(path, "not a readable Parquet file")


def with_holes(images: np.ndarray, make: Callable[[Any], None]) -> pa.Array:
    rows = images.tolist()
    make(rows)
    kind = pa.uint8()
    for _ in range(images.ndim - 1):
        kind = pa.list_(kind)
    return pa.array(rows, kind)


def drop_image(rows: Any) -> None:
    rows[2] = None


def drop_row(rows: Any) -> None:
    rows[2][1] = None


def drop_pixel(rows: Any) -> None:
    rows[2][1][3] = None


def shorten_image(rows: Any) -> None:
    rows[2].pop()


def shorten_row(rows: Any) -> None:
    rows[2][1].pop()


SHAPES = [[5, 4]] * 6
NULL_ROW = pa.FixedSizeListArray.from_arrays(pa.array(GREY.ravel()), 4, mask=pa.array([False] * 29 + [True]))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": LABELS}, "needs a column 'image', holds label"),
        ({"image": nested(GREY)}, "needs a column 'label', holds image"),
        ({"x": LABELS, "y": LABELS}, "needs a column 'image', holds x, y"),
        ({"image": nested(GREY[:0]), "label": LABELS[:0]}, "holds no images"),
        ({"image": with_holes(GREY, drop_image), "label": LABELS}, "images must have no nulls, row 2 has one"),
        ({"image": nested(GREY), "label": pa.array([0, 1, None, 3, 1, 9])}, "labels must have no nulls, row 2 has one"),
        ({"image": with_holes(GREY, drop_row), "label": LABELS}, "images must have no nulls, row 2 has one"),
        ({"image": with_holes(GREY, drop_pixel), "label": LABELS}, "images must have no nulls, row 2 has one"),
        ({"image": with_holes(GREY, shorten_image), "label": LABELS}, "same shape, row 2 is 4×4, row 0 is 5×4"),
        ({"image": with_holes(GREY, shorten_row), "label": LABELS}, "same shape, row 2 is ragged, row 0 is 5×4"),
        (
            {"image": pa.FixedSizeListArray.from_arrays(NULL_ROW, 5), "label": LABELS},
            "images must have no nulls, row 5 has one",
        ),
        (
            {"image": nested(GREY.astype(int) + 255, pa.int64()), "label": LABELS},
            "lists of uint8 (0 to 255), got int64",
        ),
        ({"image": nested(GREY / 255, pa.float32()), "label": LABELS}, "lists of uint8 (0 to 255), got float"),
        ({"image": LABELS, "label": LABELS}, "lists of uint8 (0 to 255), got int64"),
        ({"image": [b"abc"] * 6, "label": LABELS}, "lists of uint8 (0 to 255), got binary"),
        ({"image": LABELS.astype(np.uint8), "label": LABELS}, "images must be N×H×W or N×C×H×W, got shape (6,)"),
        ({"image": flat(GREY), "label": LABELS}, "images must be N×H×W or N×C×H×W, got shape (6, 20)"),
        ({"image": nested(GREY), "label": ["a"] * 6}, "labels must be integers"),
        ({"image": nested(GREY), "label": LABELS.astype(float)}, "labels must be integers, got float64"),
        ({"image": nested(GREY), "label": [[1]] * 6}, "labels must be integers"),
        ({"image": nested(GREY), "label": LABELS - 1}, "labels must lie in 0 to"),
        ({"image": flat(GREY), "shape": [[5, 5]] * 6, "label": LABELS}, "shape [5, 5] does not hold 20 values"),
        ({"image": flat(GREY), "shape": [[-5, -4]] * 6, "label": LABELS}, "shape"),
        ({"image": flat(GREY), "shape": [20] * 6, "label": LABELS}, "shape"),
        ({"image": flat(GREY), "shape": ["5x4"] * 6, "label": LABELS}, "shape"),
        ({"image": flat(GREY), "shape": [[5, None]] * 6, "label": LABELS}, "shape"),
        ({"image": flat(GREY), "shape": [[5.0, 4.0]] * 6, "label": LABELS}, "shape"),
        ({"image": flat(GREY), "shape": [None] * 6, "label": LABELS}, "x.parquet"),
        (
            {"image": flat(GREY), "shape": [[5, 4]] * 5 + [[4, 5]], "label": LABELS},
            "same shape, row 5 is 4×5, row 0 is 5×4",
        ),
        (
            {"image": flat(GREY), "shape": [[5, 4]] * 5 + [None], "label": LABELS},
            "same shape, row 5 is None, row 0 is 5×4",
        ),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    refused(write_parquet(tmp_path / "x.parquet", **columns), said)


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    table = pa.table([nested(GREY), nested(GREY), pa.array(LABELS)], names=["image", "image", "label"])
    pq.write_table(table, tmp_path / "x.parquet")
    refused(tmp_path / "x.parquet", "image")


def test_a_tensor_stored_in_another_order_of_axes_is_read_in_its_logical_order(tmp_path: Path) -> None:
    channels_last = np.ascontiguousarray(COLOUR.transpose(0, 2, 3, 1))
    kind = pa.fixed_shape_tensor(pa.uint8(), (5, 4, 3), permutation=[2, 0, 1])
    storage = pa.FixedSizeListArray.from_arrays(pa.array(channels_last.ravel()), 60)
    column = pa.ExtensionArray.from_storage(kind, storage)
    expect(read_dataset(write_parquet(tmp_path / "x.parquet", image=column, label=LABELS), None), COLOUR)


# --- IDX


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an IDX file of unsigned bytes (magic absent)"),
        (b"\0\0", "not an IDX file of unsigned bytes (magic 0000)"),
        (b"not idx", "not an IDX file of unsigned bytes (magic 6e6f7420)"),
        (idx_bytes(GREY, kind=0x0D), "not an IDX file of unsigned bytes (magic 00000d03)"),
        (gzip.compress(idx_bytes(GREY)), "not an IDX file of unsigned bytes (magic 1f8b"),
        (idx_bytes(GREY)[:10], "truncated: the header needs 16 bytes, got 10"),
        (idx_bytes(GREY)[:-1], "truncated: shape (6, 5, 4) needs 136 bytes, got 135"),
        (idx_bytes(GREY) + b"\0", "too long: shape (6, 5, 4) needs 136 bytes, got 137"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "truncated"),
        (b"\0\0\x08\x00" + b"\5", "images must be N×H×W"),
        (b"\0\0\x08\xc8" + struct.pack(">200I", *[1] * 200) + b"\5", "x-images-idx3-ubyte"),
        (idx_bytes(GREY[:0]), "holds no images"),
        (idx_bytes(GREY[:, :0]), "no empty side"),
        (idx_bytes(GREY.reshape(6, 20)), "images must be N×H×W"),
        (idx_bytes(GREY[:5]), "5 images but 6 labels"),
    ],
)
def test_broken_idx_images(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(content)
    (tmp_path / "x-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS.astype(np.uint8)))
    refused(path, said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "not an IDX file"),
        (idx_bytes(LABELS.astype(np.uint8))[:-2], "truncated"),
        (idx_bytes(LABELS.astype(np.uint8)) + b"\0", "too long"),
        (idx_bytes(GREY), "labels must be one number an image"),
    ],
    ids=["absent", "empty", "truncated", "too long", "images"],
)
def test_broken_idx_labels(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x-images-idx3-ubyte"
    path.write_bytes(idx_bytes(GREY))
    if content is not None:
        (tmp_path / "x-labels-idx1-ubyte").write_bytes(content)
    refused(path, said)


def test_idx_labels_given_as_the_images(tmp_path: Path) -> None:
    write_idx_pair(tmp_path, GREY, LABELS)
    refused(tmp_path / "t10k-labels-idx1-ubyte", "must hold 'images' and 'idx3'")


def test_idx_labels_that_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x-images-idx3-ubyte").write_bytes(idx_bytes(GREY))
    (tmp_path / "x-labels-idx1-ubyte").mkdir()
    refused(tmp_path / "x-images-idx3-ubyte", "Is a directory")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ""),
        (b"not gzip", "Not a gzipped file"),
        (idx_bytes(GREY), "Not a gzipped file"),
        (gzip.compress(idx_bytes(GREY))[:-12], "not a whole gzip file"),
        (gzip.compress(idx_bytes(GREY))[:-8] + bytes(8), "CRC"),
        (gzip.compress(idx_bytes(GREY))[:30] + bytes(40), "x-images-idx3-ubyte.gz"),
        (gzip.compress(idx_bytes(GREY)[:-1]), "truncated: shape (6, 5, 4)"),
    ],
    ids=["empty", "text", "plain", "truncated", "checksum", "garbled", "short inside"],
)
def test_broken_gzipped_idx(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x-images-idx3-ubyte.gz"
    path.write_bytes(content)
    (tmp_path / "x-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS.astype(np.uint8))))
    refused(path, said)


def test_read_idx_gives_the_array_of_any_number_of_axes(tmp_path: Path) -> None:
    for array in (LABELS.astype(np.uint8), GREY, COLOUR):
        (tmp_path / "x").write_bytes(idx_bytes(array))
        np.testing.assert_array_equal(read_idx(tmp_path / "x"), array)


def test_images_of_an_idx_file_are_mapped_not_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 4), dtype=np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(50, dtype=np.uint8) % 10))
    dataset = read_dataset(tmp_path, "test")
    np.testing.assert_array_equal(dataset.images[:, 0], images)
    base: object = dataset.images
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert np.shares_memory(base, dataset.images)
    assert dataset.content_hash() == Dataset.checked(images, dataset.labels, split="test", name="x").content_hash()
