"""What arrays of images and labels must be: levels of 8 bits, channels first, one label an image."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from workers.errors import WrongInput

__all__ = ["MAXIMUM_CLASSES", "Layout", "checked_images", "checked_labels", "instead_of", "sides_of"]

Layout = Literal["chw", "hwc"]
"""The order of an image's axes: channels first, or last."""

MAXIMUM_CLASSES = 10_000
"""Labels at or above this are refused: no image classifier has so many classes, a broken file may."""

_LIKELY = {1: 2, 3: 2, 4: 1}
"""How likely an axis of so many is to be the channels; all others are at 0."""

_LONGEST = 40


def checked_images(images: Any, name: str, layout: Layout | None) -> np.ndarray:
    """Images as uint8 ``[N, C, H, W]``.

    Args:
        images: uint8 ``[N, H, W]``, or ``[N, C, H, W]``, or ``[N, H, W, C]``.
        name: what errors call them.
        layout: of images of three axes; None: channels first, where the shape does not speak against it.

    Raises:
        WrongInput: for another dtype or shape, or a shape whose channels may be last.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise WrongInput(f"{name}: images must be uint8 (0 to 255), got {images.dtype}{instead_of(images)}")
    if images.ndim not in (3, 4):
        raise WrongInput(f"{name}: images must be N×H×W or N×C×H×W, got shape {images.shape}")
    if not len(images):
        raise WrongInput(f"{name}: holds no images")
    grey = images.ndim == 3
    if grey:
        images = images[:, None]
    if 0 in images.shape:
        raise WrongInput(f"{name}: images must have no empty side, got shape {images.shape}")
    if not grey and (layout or _layout_of(images.shape[1:], name)) == "hwc":
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


def checked_labels(labels: Any, name: str, images: int) -> np.ndarray:
    """Labels as int64 ``[images]``, each 0 to `MAXIMUM_CLASSES` less one.

    Raises:
        WrongInput: for another dtype, shape, length or range; it names the first row that is wrong.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise WrongInput(f"{name}: labels must be integers, got {labels.dtype}{_no_integer(labels)}")
    if labels.ndim != 1:
        raise WrongInput(f"{name}: labels must be one number an image, got shape {labels.shape}")
    if images != len(labels):
        raise WrongInput(f"{name}: {images} images but {len(labels)} labels")
    outside = (labels < 0) | (labels >= MAXIMUM_CLASSES)
    if outside.any():
        why = ", as test sets without labels do" if (labels == -1).all() else ""
        raise WrongInput(
            f"{name}: labels must lie in 0 to {MAXIMUM_CLASSES - 1}, got {labels.min()} to {labels.max()}; "
            f"{_row(labels, outside)}{why}"
        )
    return labels.astype(np.int64)


def instead_of(images: np.ndarray) -> str:
    """What is wrong with images ``[N, …]`` of another dtype: the row that holds no level, or how to store them."""
    kind = images.dtype.kind
    if kind not in "biuf" or not images.ndim or not images.size:
        return ""
    if kind == "b":
        return "; store 255 * images.astype('uint8')"
    if kind == "f":
        if not (finite := np.isfinite(images)).all():
            return f"; {_row(images, ~finite)}"
        if images.min() >= 0 and images.max() <= 1:
            return " of 0 to 1; store (255 * images).round().astype('uint8')"
    wrong = (images < 0) | (images > 255)
    if kind == "f":
        wrong |= images != np.rint(images)
    return f"; {_row(images, wrong)}" if wrong.any() else "; store images.astype('uint8')"


def sides_of(shape: Sequence[Any]) -> str:
    """A shape in words, as ``3×32×32``."""
    return "×".join(map(str, shape))


def _layout_of(shape: tuple[int, ...], name: str) -> Layout:
    """Channels first, where the first axis is the likelier to be the channels.

    Likeliest are one and three, then four, then whatever is smaller than the axis at the other end.

    Raises:
        WrongInput: where the last axis is the likelier, or both are alike.
    """
    first, last = (_LIKELY.get(side, 0) for side in (shape[0], shape[-1]))
    if shape == (1, 1, 1) or first > last or (not last and shape[0] <= shape[-1]):
        return "chw"
    if first == last != 0:
        raise WrongInput(
            f"{name}: images of {sides_of(shape)} may have their channels first or last: "
            "say which by --layout chw or --layout hwc"
        )
    raise WrongInput(
        f"{name}: images of {sides_of(shape)} seem to have their channels last: read them by --layout hwc, "
        f"or by --layout chw if they have {shape[0]} channels"
    )


def _no_integer(labels: np.ndarray) -> str:
    if labels.ndim != 1 or not labels.size or labels.dtype.kind == "b":
        return ""
    if labels.dtype.kind != "f":
        return f"; {_row(labels, np.ones(len(labels), bool))}"
    wrong = labels != np.rint(labels)  # so is NaN
    return f"; {_row(labels, wrong)}" if wrong.any() else "; store labels.astype('int64')"


def _row(values: np.ndarray, wrong: np.ndarray) -> str:
    """The first row ``values[row]`` that holds a wrong value, and that value; `wrong` has the shape of `values`."""
    at = int(np.argmax(wrong))
    value = values.reshape(-1)[at]
    text = " ".join(repr(value.item() if isinstance(value, np.generic) else value).split())
    cut = text[:_LONGEST] + "…" * (len(text) > _LONGEST)
    return f"row {at // (values.size // len(values))} holds {cut}"
