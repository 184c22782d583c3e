"""The data set type and its readers: ``.npz``, Parquet and IDX files, folders of them, saved Hugging Face data sets."""

import contextlib
import gzip
import hashlib
import io
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from workers.errors import WrongInput

__all__ = ["MAXIMUM_CLASSES", "Dataset", "read_dataset", "read_idx"]

MAXIMUM_CLASSES = 10_000
"""Labels at or above this are refused: no image classifier has so many classes, a broken file may."""

_IDX_NAMES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Dataset:
    """Labelled 8-bit images.

    Attributes:
        images: uint8 ``[N, C, H, W]``, 0 to 255.
        labels: int64 ``[N]``, 0 to the number of classes less one.
        split: what the source calls this part: ``train``, ``test``, or ``all`` where it has no parts.
        name: what the user called it: a known name or a path.

    An image's id is its position in the split.
    """

    images: np.ndarray
    labels: np.ndarray
    split: str
    name: str

    @classmethod
    def checked(cls, images: Any, labels: Any, *, split: str, name: str) -> "Dataset":
        """Builds a data set from arrays, adding the channel axis to ``[N, H, W]`` images.

        Raises:
            WrongInput: for a wrong dtype, shape, length or label range.
        """
        images, labels = np.asarray(images), np.asarray(labels)
        if images.dtype != np.uint8:
            raise WrongInput(f"{name}: images must be uint8 (0 to 255), got {images.dtype}")
        if images.ndim == 3:
            images = images[:, None]
        if images.ndim != 4:
            raise WrongInput(f"{name}: images must be N×H×W or N×C×H×W, got shape {images.shape}")
        if not len(images):
            raise WrongInput(f"{name}: holds no images")
        if 0 in images.shape:
            raise WrongInput(f"{name}: images must have no empty side, got shape {images.shape}")
        if labels.dtype.kind not in "iu":
            raise WrongInput(f"{name}: labels must be integers, got {labels.dtype}")
        if labels.ndim != 1:
            raise WrongInput(f"{name}: labels must be one number an image, got shape {labels.shape}")
        if len(images) != len(labels):
            raise WrongInput(f"{name}: {len(images)} images but {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= MAXIMUM_CLASSES:
            raise WrongInput(
                f"{name}: labels must lie in 0 to {MAXIMUM_CLASSES - 1}, got {labels.min()} to {labels.max()}"
            )
        return cls(np.ascontiguousarray(images), labels.astype(np.int64), split, name)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def classes(self) -> int:
        """The number of classes that the labels speak of: the largest label plus one."""
        return int(self.labels.max()) + 1

    def content_hash(self) -> str:
        """SHA-256 of shape, pixels and labels."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(self.images.data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def hash_of_images(images: np.ndarray) -> str:
    """SHA-256 of pixels uint8 ``[n, C, H, W]``, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def read_dataset(path: Path, split: str | None, *, name: str | None = None) -> Dataset:
    """Reads labelled images from a file or a folder.

    A file is ``.npz`` (arrays ``images`` and ``labels``), Parquet (columns ``image`` and ``label``) or
    IDX images (``…images-idx3-ubyte``, the labels beside them). A folder holds two splits: MNIST's four
    IDX files, or ``train`` and ``test`` as ``.npz`` or ``.parquet``; or it is what ``save_to_disk`` of Hugging Face's
    ``datasets`` wrote, a DatasetDict with its splits or a Dataset. In Parquet and Arrow an image is nested lists of
    whole numbers 0 to 255, or the struct ``{bytes, path}`` of an encoded file.

    Args:
        path: the file or folder.
        split: ``train`` or ``test`` for a folder (``test`` when None); None for a file or a saved Dataset.
        name: what errors call it; the path when None.

    Raises:
        WrongInput: when the file is absent, broken, of an unknown kind, or its content is unusable.
    """
    name = name or str(path)
    if (path / "dataset_dict.json").is_file():
        path, split = path / (split or "test"), split or "test"
        if not (path / "state.json").is_file():
            there = sorted(entry.parent.name for entry in path.parent.glob("*/state.json"))
            raise WrongInput(f"{name}: has no split {split}, only {', '.join(there) or 'none'}")
        images, labels = _read_saved(path)
        return Dataset.checked(images, labels, split=split, name=name)
    if (path / "state.json").is_file():
        if split not in (None, "all"):
            raise WrongInput(f"{name}: a saved Dataset has no splits, got --split {split}")
        images, labels = _read_saved(path)
        return Dataset.checked(images, labels, split="all", name=name)
    if path.is_dir():
        path, split = _file_of_split(path, split or "test", name)
    elif not path.exists():
        raise WrongInput(f"{name}: no such file or folder")
    elif split not in (None, "all"):
        raise WrongInput(f"{name}: a single file has no splits, got --split {split}")
    if path.suffix == ".npz":
        images, labels = _read_npz(path)
    elif path.suffix == ".parquet":
        images, labels = _read_parquet(path)
    elif "idx" in path.name:
        images, labels = read_idx(path), read_idx(_labels_beside(path))
    else:
        raise WrongInput(f"{name}: expected .npz, .parquet or an IDX file (…-idx3-ubyte), got {path.name}")
    return Dataset.checked(images, labels, split=split or "all", name=name)


def read_idx(path: Path) -> np.ndarray:
    """Reads one IDX file of unsigned bytes (gzipped when its name ends in ``.gz``).

    Returns:
        uint8, of the shape that the header gives; read-only. A file that is not gzipped is mapped, not read: its
        images take no memory of this process until they are used, and then only the system's page cache.

    Raises:
        WrongInput: when the file is absent, truncated or not IDX of unsigned bytes.
    """
    try:
        if path.suffix == ".gz":
            raw: Any = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
        elif path.stat().st_size:
            raw = np.memmap(path, np.uint8, "r")
        else:
            raw = np.empty(0, np.uint8)
    except OSError as error:
        raise WrongInput(f"{path}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise WrongInput(f"{path}: not a whole gzip file: {error}") from None
    magic = raw[:4].tobytes()
    if magic[:3] != b"\0\0\x08" or len(magic) < 4:
        raise WrongInput(f"{path}: not an IDX file of unsigned bytes (magic {magic.hex() or 'absent'})")
    axes = magic[3]
    if axes > 4:
        raise WrongInput(f"{path}: images and labels have at most 4 axes, got {axes}")
    header = 4 + 4 * axes
    if len(raw) < header:
        raise WrongInput(f"{path}: truncated: the header needs {header} bytes, got {len(raw)}")
    shape = struct.unpack(f">{axes}I", raw[4:header].tobytes())
    expected = header + math.prod(shape)
    if len(raw) != expected:
        problem = "truncated" if len(raw) < expected else "too long"
        raise WrongInput(f"{path}: {problem}: shape {shape} needs {expected} bytes, got {len(raw)}")
    return raw[header:].reshape(shape)


def _file_of_split(folder: Path, split: str, name: str) -> tuple[Path, str]:
    if split not in _IDX_NAMES:
        raise WrongInput(f"--split must be train or test, got {split}")
    idx = f"{_IDX_NAMES[split]}-images-idx3-ubyte"
    candidates = [idx, f"{idx}.gz", f"{split}.npz", f"{split}.parquet"]
    for candidate in candidates:
        if (folder / candidate).exists():
            return folder / candidate, split
    raise WrongInput(f"{name}: holds none of {', '.join(candidates)}")


def _labels_beside(images: Path) -> Path:
    name = images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    if name == images.name:
        raise WrongInput(f"{images}: the name of an IDX image file must hold 'images' and 'idx3'")
    return images.with_name(name)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:  # opened here, because numpy leaves a broken archive open
            arrays = np.load(file, allow_pickle=False)
            names = arrays.files if isinstance(arrays, NpzFile) else ["one array without a name"]
            if {"images", "labels"} - set(names):
                found = ", ".join(names) or "nothing"
                raise WrongInput(f"{path}: needs arrays 'images' and 'labels', holds {found}")
            return arrays["images"], arrays["labels"]
    except WrongInput:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for foreign or broken files
        raise WrongInput(f"{path}: not a readable .npz file: {_first_line(error)}") from None


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise WrongInput(f"{path}: not a readable Parquet file: {_first_line(error)}") from None
    return _images_and_labels(table, path)


def _read_saved(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What ``Dataset.save_to_disk`` wrote: Arrow streams, listed in order in ``state.json``."""
    import pyarrow as pa

    try:
        names = [file["filename"] for file in json.loads((folder / "state.json").read_text())["_data_files"]]
        if any(Path(name).name != name for name in names):
            raise ValueError(f"state.json names files outside the folder: {', '.join(names)}")
        tables = []
        for name in names:
            with pa.memory_map(str(folder / name)) as file, pa.ipc.open_stream(file) as stream:
                tables.append(stream.read_all())
        table = pa.concat_tables(tables)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise WrongInput(f"{folder}: not a readable data set of save_to_disk: {_first_line(error)}") from None
    return _images_and_labels(table, folder)


def _images_and_labels(table: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The columns of a table as arrays."""
    import pyarrow as pa

    images = _column(table, ("image", "images", "img"), path)
    labels = _column(table, ("label", "labels"), path)
    if not len(images):
        raise WrongInput(f"{path}: holds no images")
    if images.null_count or labels.null_count:
        raise WrongInput(f"{path}: columns image and label must have no nulls")
    if pa.types.is_struct(images.type):
        return _decoded(images, path), labels.to_numpy()
    shapes = table.column("shape") if "shape" in table.column_names else None
    return _nested_to_array(images.combine_chunks(), shapes, path), labels.to_numpy()


_MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}
"""Pillow's modes that are taken, and what each is read as: grey or colour of 8 bits."""


def _decoded(column: Any, path: Path) -> np.ndarray:
    """Encoded image files, structs with ``bytes``, as uint8 ``[N, H, W]`` or ``[N, 3, H, W]``."""
    from PIL import Image

    images: list[np.ndarray] = []
    for cell in column:
        content = cell.as_py().get("bytes")
        if content is None:
            raise WrongInput(f"{path}: image {len(images)} is only a path; save the data set with the files embedded")
        try:
            with Image.open(io.BytesIO(content)) as picture:
                mode = _MODES.get(picture.mode)
                array = np.asarray(picture.convert(mode)) if mode else None
                said = picture.mode
        except Exception as error:  # Pillow's decoders raise many kinds for broken files
            raise WrongInput(f"{path}: image {len(images)} cannot be decoded: {_first_line(error)}") from None
        if array is None:
            raise WrongInput(f"{path}: image {len(images)} must be grey or RGB of 8 bits, got {said}")
        if images and array.shape != images[0].shape:
            raise WrongInput(f"{path}: every image must have the same shape, got {images[0].shape} and {array.shape}")
        images.append(array)
    stacked = np.stack(images)
    return stacked if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)


def _column(table: Any, names: Sequence[str], path: Path) -> Any:
    for name in names:
        if name in table.column_names:
            return table.column(name)
    found = ", ".join(table.column_names) or "nothing"
    raise WrongInput(f"{path}: needs a column '{names[0]}', holds {found}")


def _nested_to_array(column: Any, shapes: Any, path: Path) -> np.ndarray:
    """Turns nested lists of uint8 (or flat ones with a column of shapes) into ``[N, …]`` without Python lists."""
    import pyarrow as pa

    tensor = None
    if isinstance(column, pa.ExtensionArray):
        tensor, column = column.type, column.storage
    sides = [len(column)]
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or _is_fixed(column.type):
        lengths = set(column.value_lengths().to_pylist()) if not _is_fixed(column.type) else {column.type.list_size}
        if len(lengths) != 1 or None in lengths:
            raise WrongInput(f"{path}: every image must have the same shape")
        sides.append(lengths.pop())
        column = column.flatten()
    if pa.types.is_integer(column.type) and len(sides) > 1:
        with contextlib.suppress(pa.ArrowInvalid):  # a level outside
            column = column.cast(pa.uint8())
    if column.type != pa.uint8():
        raise WrongInput(f"{path}: images must be lists of uint8 (0 to 255), got {column.type}")
    if isinstance(tensor, pa.FixedShapeTensorType):  # pyarrow's own tensor carries its shape
        sides[1:] = tensor.shape
    elif len(sides) == 2 and shapes is not None:
        sides[1:] = _common_shape(shapes.to_pylist(), sides[1], path)
    pixels = column.to_numpy(zero_copy_only=False)
    if len(pixels) != math.prod(sides):  # flattening leaves out what lies under a null
        raise WrongInput(f"{path}: columns image and label must have no nulls")
    images = pixels.reshape(sides)
    if isinstance(tensor, pa.FixedShapeTensorType) and tensor.permutation:
        images = images.transpose(0, *(axis + 1 for axis in tensor.permutation))
    return images


def _common_shape(shapes: Sequence[Any], values: int, path: Path) -> list[int]:
    """The one shape that all rows of a ``shape`` column give to images of this many values."""
    shape = shapes[0]
    if any(other != shape for other in shapes):
        raise WrongInput(f"{path}: every image must have the same shape")
    if not isinstance(shape, list) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise WrongInput(f"{path}: column shape must hold lists of whole numbers above 0, got {shape!r}")
    if math.prod(shape) != values:
        raise WrongInput(f"{path}: shape {shape} does not hold {values} values an image")
    return shape


def _is_fixed(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
