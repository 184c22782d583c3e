"""Encoded image files, as levels of 8 bits."""

import io
import warnings
from typing import Any

import numpy as np

from workers.errors import WrongInput, in_one_line

__all__ = ["decode"]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read. Of other formats (JPEG 2000, AVIF) Pillow does not tell the depth, and gives 8 bits of more."""

_MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}
"""Pillow's modes that are taken, and what each is read as: grey or colour of 8 bits."""


def decode(content: bytes) -> np.ndarray:
    """Reads one encoded image file.

    The orientation that its metadata name is applied. A palette is read as colour, 1 bit as levels 0 and 255. Levels
    are those that are stored: a colour profile is not applied.

    Returns:
        uint8 ``[1, H, W]`` or ``[3, H, W]``.

    Raises:
        WrongInput: for what is no image file, a broken one, several pictures in one, transparency (what shows through
            is not known), or other levels than grey or RGB of 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken metadata, which many photographs have
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                # Behind the picture of an MPO, a JPEG of a telephone, lie its previews.
                frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
                if frames > 1:
                    raise WrongInput(f"expected one picture, got {frames} in one {picture.format} file")
                if picture.has_transparency_data:
                    raise WrongInput(f"must be grey or RGB of 8 bits, got {picture.mode} with transparency")
                if picture.mode not in _MODES or _deep(picture.tile):
                    depth = " of more than 8 bits" if picture.mode in _MODES else ""
                    raise WrongInput(f"must be grey or RGB of 8 bits, got {picture.mode}{depth}")
                upright = ImageOps.exif_transpose(picture)
                levels = np.asarray(upright.convert(_MODES[picture.mode]))
        except WrongInput:
            raise
        except UnidentifiedImageError:
            *first, last = _FORMATS
            begins = f"it begins with {content[:12]!r}" if content else "it is empty"
            raise WrongInput(f"cannot be decoded: no {', '.join(first)} or {last} file, {begins}") from None
        except Exception as error:  # Pillow's decoders raise many kinds for broken files
            raise WrongInput(f"cannot be decoded: {in_one_line(error)}") from None
    return levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1)


def _deep(tiles: list[Any]) -> bool:
    """Whether a file's levels have more bits than the eight that Pillow would read them as.

    Pillow names what it converts, as ``RGB;16B``, and beside it the highest level of a PPM file.
    """
    for codec, _, _, given in tiles:
        parts = given if isinstance(given, tuple) else (given,)
        if any(isinstance(part, str) and ";16" in part for part in parts) or (codec == "ppm" and parts[-1] > 255):
            return True
    return False
