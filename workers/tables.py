"""Tables of labelled images, as Parquet and Arrow files hold them: nested lists of levels, or encoded files."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workers.arrays import instead_of, sides_of
from workers.errors import WrongInput
from workers.pictures import decode

__all__ = ["images_and_labels"]


def images_and_labels(table: Any, path: Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """The columns of a table as arrays.

    Args:
        table: a ``pyarrow.Table`` with a column ``image`` (or ``images``, ``img``) and one ``label`` (or ``labels``).
        path: what errors name.

    Returns:
        The images, as they lie in the column; the labels; and whether the images were encoded files, which come
        as ``[N, C, H, W]``.

    Raises:
        WrongInput: naming the first row that cannot be read.
    """
    import pyarrow as pa

    images = _column(table, ("image", "images", "img"), path)
    labels = _column(table, ("label", "labels"), path)
    if not len(images):
        raise WrongInput(f"{path}: holds no images")
    for what, column in (("images", images), ("labels", labels)):
        _require_no_nulls(column, what, len(column), path)
    if pa.types.is_struct(images.type):
        return _decoded(images, path), labels.to_numpy(), True
    shapes = table.column("shape") if "shape" in table.column_names else None
    return _nested_to_array(images.combine_chunks(), shapes, path), labels.to_numpy(), False


def _decoded(column: Any, path: Path) -> np.ndarray:
    """Encoded image files, structs with ``bytes``, as uint8 ``[N, C, H, W]``."""
    images: list[np.ndarray] = []
    for row, cell in enumerate(column):
        content = cell.as_py().get("bytes")
        if content is None:
            raise WrongInput(f"{path}: row {row} is only a path; save the data set with the files embedded")
        try:
            images.append(decode(content))
        except WrongInput as error:
            raise WrongInput(f"{path}: row {row}: {error}") from None
        if images[row].shape != images[0].shape:
            raise _other_shape(path, row, images[row].shape, images[0].shape)
    return np.stack(images)


def _column(table: Any, names: Sequence[str], path: Path) -> Any:
    for name in names:
        if name in table.column_names:
            return table.column(name)
    found = ", ".join(table.column_names) or "nothing"
    raise WrongInput(f"{path}: needs a column '{names[0]}', holds {found}")


def _nested_to_array(images: Any, shapes: Any, path: Path) -> np.ndarray:
    """Turns nested lists of uint8 (or flat ones with a column of shapes) into ``[N, …]`` without Python lists."""
    import pyarrow as pa

    tensor, column = None, images
    if isinstance(column, pa.ExtensionArray):
        tensor, column = column.type, column.storage
    sides = [len(column)]
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or _is_fixed(column.type):
        _require_no_nulls(column, "images", len(images), path)
        if _is_fixed(column.type):
            sides.append(column.type.list_size)
        else:
            lengths = column.value_lengths().to_numpy()
            if (other := lengths != lengths[:1]).any():
                row = int(np.argmax(other)) * len(images) // len(lengths)
                raise _other_shape(path, row, *(_nested_shape(images[each].as_py()) for each in (row, 0)))
            sides.append(int(lengths[0]) if len(lengths) else 0)
        column = column.flatten()
    _require_no_nulls(column, "images", len(images), path)
    if pa.types.is_integer(column.type) and len(sides) > 1:
        with contextlib.suppress(pa.ArrowInvalid):  # a level outside
            column = column.cast(pa.uint8())
    if column.type != pa.uint8():
        known = (
            pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
        )
        said = instead_of(column.to_numpy(zero_copy_only=False).reshape(sides)) if known and len(sides) > 1 else ""
        raise WrongInput(f"{path}: images must be lists of uint8 (0 to 255), got {column.type}{said}")
    if isinstance(tensor, pa.FixedShapeTensorType):  # pyarrow's own tensor carries its shape
        sides[1:] = tensor.shape
    elif len(sides) == 2 and shapes is not None:
        sides[1:] = _common_shape(shapes.to_pylist(), sides[1], path)
    array = column.to_numpy(zero_copy_only=False).reshape(sides)
    if isinstance(tensor, pa.FixedShapeTensorType) and tensor.permutation:
        array = array.transpose(0, *(axis + 1 for axis in tensor.permutation))
    return array


def _common_shape(shapes: Sequence[Any], values: int, path: Path) -> list[int]:
    """The one shape that all rows of a ``shape`` column give to images of this many values."""
    shape = shapes[0]
    for row, other in enumerate(shapes):
        if other != shape:
            raise _other_shape(path, row, other, shape)
    if not isinstance(shape, list) or not all(isinstance(side, int) and side > 0 for side in shape):
        raise WrongInput(f"{path}: column shape must hold lists of whole numbers above 0, got {shape!r}")
    if math.prod(shape) != values:
        raise WrongInput(f"{path}: shape {shape} does not hold {values} values an image")
    return shape


def _require_no_nulls(column: Any, what: str, rows: int, path: Path) -> None:
    """Refuses a column, or what lies in its lists, for a null; the row of the first is named.

    Args:
        column: an Arrow array, chunked or not, of as many values for each row.
        what: lies in the column.
        rows: of the table.
        path: what errors name.

    Raises:
        WrongInput: when there is one.
    """
    if column.null_count:
        row = column.is_null().index(True).as_py() * rows // len(column)
        raise WrongInput(f"{path}: {what} must have no nulls, row {row} has one")


def _other_shape(path: Path, row: int, shape: Any, first: Any) -> WrongInput:
    one, other = (sides_of(each) if isinstance(each, list | tuple) else each for each in (shape, first))
    beside = f", row 0 is {other}" if row else ""
    return WrongInput(f"{path}: every image must have the same shape, row {row} is {one}{beside}")


def _nested_shape(image: Any) -> tuple[Any, ...]:
    """The shape of nested lists; of lists that differ in length, that word."""
    try:
        return np.asarray(image).shape
    except ValueError:
        return ("ragged",)


def _is_fixed(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind))
