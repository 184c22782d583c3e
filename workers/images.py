"""The data set type and its readers: ``.npz``, Parquet and IDX files, folders of them, saved Hugging Face data sets."""

import gzip
import hashlib
import json
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from workers.arrays import MAXIMUM_CLASSES, Layout, checked_images, checked_labels
from workers.errors import WrongInput, in_one_line
from workers.parquet import read_table
from workers.tables import images_and_labels

__all__ = ["MAXIMUM_CLASSES", "Dataset", "Layout", "hash_of_images", "read_dataset", "read_idx"]

_IDX_NAMES = {"train": "train", "test": "t10k"}
_NAMED = 8


@dataclass(frozen=True)
class Dataset:
    """Labelled 8-bit images.

    Attributes:
        images: uint8 ``[N, C, H, W]``, 0 to 255.
        labels: int64 ``[N]``, 0 to the number of classes less one.
        split: what the source calls this part: ``train``, ``test``, or ``all`` where it has no parts.
        name: what the user called it: a known name or a path.
        layout: the order of axes that the user named, by which alone the same file is read again; None for none.

    An image's id is its row: its position in the split.
    """

    images: np.ndarray
    labels: np.ndarray
    split: str
    name: str
    layout: Layout | None = None

    @classmethod
    def checked(cls, images: Any, labels: Any, *, split: str, name: str, layout: Layout | None = "chw") -> "Dataset":
        """Builds a data set from arrays, adding the channel axis to ``[N, H, W]`` images.

        Args:
            images: uint8 ``[N, H, W]`` or ``[N, C, H, W]``; ``[N, H, W, C]`` where the layout says so.
            labels: integers ``[N]``.
            split, name: as the attributes.
            layout: the order of an image's axes; None: channels first, where the shape does not speak against it.

        Raises:
            WrongInput: for a wrong dtype, shape, length or label range, or a shape whose channels may be last.
        """
        images = checked_images(images, name, layout)
        return cls(images, checked_labels(labels, name, len(images)), split, name)

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


def read_dataset(path: Path, split: str | None, *, name: str | None = None, layout: Layout | None = None) -> Dataset:
    """Reads labelled images from a file or a folder.

    A file is ``.npz`` (arrays ``images`` and ``labels``), Parquet (columns ``image`` and ``label``) or
    IDX images (``…images-idx3-ubyte``, the labels beside them). A folder holds two splits: MNIST's four
    IDX files, or ``train`` and ``test`` as ``.npz`` or ``.parquet``; or it is what ``save_to_disk`` of Hugging Face's
    ``datasets`` wrote, a DatasetDict with its splits or a Dataset. In Parquet and Arrow an image is nested lists of
    whole numbers 0 to 255, or the struct ``{bytes, path}`` of an encoded file (`decode`).

    Args:
        path: the file or folder.
        split: ``train`` or ``test`` for a folder (``test`` when None); None for a file or a saved Dataset.
        name: what errors call it; the path when None.
        layout: the order of axes of images that are arrays of three; None: channels first, and a shape that speaks
            against it is refused. Encoded files need none.

    Raises:
        WrongInput: when the file is absent, broken, of an unknown kind, or its content is unusable.
    """
    name = name or str(path)
    try:
        images, labels, known, split = _read(path, split, name)
    except OSError as error:  # a folder above it may be closed, and loop
        raise WrongInput(f"{name}: {error.strerror or error}") from None
    dataset = Dataset.checked(images, labels, split=split, name=name, layout="chw" if known else layout)
    return replace(dataset, layout=layout)


def _read(path: Path, split: str | None, name: str) -> tuple[np.ndarray, np.ndarray, bool, str]:
    """Images and labels as they are stored, whether the images are known to be channels first, and their split."""
    if (path / "dataset_dict.json").is_file():
        path, split = path / (split or "test"), split or "test"
        if not (path / "state.json").is_file():
            there = sorted(entry.parent.name for entry in path.parent.glob("*/state.json"))
            raise WrongInput(f"{name}: has no split {split}, only {', '.join(there) or 'none'}")
        return *_read_saved(path), split
    if (path / "state.json").is_file():
        if split not in (None, "all"):
            raise WrongInput(f"{name}: a saved Dataset has no splits, got --split {split}")
        return *_read_saved(path), "all"
    if path.is_dir():
        path, split = _file_of_split(path, split or "test", name)
    elif not path.exists():
        raise WrongInput(f"{name}: no such file or folder")
    elif not path.is_file():  # a pipe is never done
        raise WrongInput(f"{name}: expected a file or a folder, got something else")
    elif split not in (None, "all"):
        raise WrongInput(f"{name}: a single file has no splits, got --split {split}")
    if path.suffix == ".npz":
        return *_read_npz(path), False, split or "all"
    if path.suffix == ".parquet":
        return *_read_parquet(path), split or "all"
    if "idx" in path.name:
        return read_idx(path), read_idx(_labels_beside(path)), False, split or "all"
    raise WrongInput(f"{name}: expected .npz, .parquet or an IDX file (…-idx3-ubyte), got {path.name}")


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
            if not zipfile.is_zipfile(file):  # numpy takes it for a pickle, and advises to load that
                file.seek(0)
                raise WrongInput(f"{path}: not a readable .npz file: {_no_archive(file.read(12))}")
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            if {"images", "labels"} - set(arrays.files):
                found = ", ".join(arrays.files[:_NAMED]) + ", …" * (len(arrays.files) > _NAMED)
                raise WrongInput(f"{path}: needs arrays 'images' and 'labels', holds {in_one_line(found or 'nothing')}")
            return _array(arrays, "images", path), _array(arrays, "labels", path)
    except WrongInput:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for foreign or broken files
        raise WrongInput(f"{path}: not a readable .npz file: {_first_line(error)}") from None


def _no_archive(begins: bytes) -> str:
    if begins.startswith(b"\x93NUMPY"):
        return "it is one array (.npy), expected 'images' and 'labels' as numpy.savez writes them"
    return f"expected an archive of numpy.savez, got {begins!r}…" if begins else "it is empty"


def _array(arrays: NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        return np.asarray(arrays[name])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise WrongInput(
            f"{path}: array {name} holds Python objects, expected numbers: objects are pickled, and a pickle is "
            "never loaded"
        ) from None


def _read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray, bool]:
    import pyarrow as pa

    try:
        table = read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise WrongInput(f"{path}: not a readable Parquet file: {_first_line(error)}") from None
    return images_and_labels(table, path)


def _read_saved(folder: Path) -> tuple[np.ndarray, np.ndarray, bool]:
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
    return images_and_labels(table, folder)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
