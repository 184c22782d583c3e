"""Encoded image files: what is read of each kind, and what each refusal says."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workers.errors import WrongInput
from workers.images import read_dataset
from workers.pictures import decode

GREY = np.random.default_rng(7).integers(0, 256, (9, 7), dtype=np.uint8)
COLOUR = np.random.default_rng(8).integers(0, 256, (9, 7, 3), dtype=np.uint8)
OTHERS = [Image.fromarray(255 - COLOUR), Image.fromarray(COLOUR // 2)]


def encoded(levels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(levels)
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def png_of_16_bits(levels: np.ndarray, kind: int) -> bytes:
    """A PNG file of uint16 levels ``[H, W, C]``, which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_of_16_bits(levels: np.ndarray) -> bytes:
    """A TIFF file of uint16 RGB ``[H, W, 3]``, little-endian, which Pillow does not write."""
    height, width, _ = levels.shape
    bits = 8 + 2 + 9 * 12 + 4  # where the three depths lie, behind header and directory
    entries = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, bits + 6), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, levels.size * 2),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + struct.pack("<3H", 16, 16, 16)
    return head + levels.astype("<u2").tobytes()


# What a camera stores so that the picture, read by each orientation of EXIF, stands upright.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("value", STORED)
def test_every_orientation_is_applied(value: int, kind: str) -> None:
    """All are the same upright picture; of a JPEG, which is lossy, blocks of one level are."""
    upright = COLOUR if kind != "JPEG" else np.kron(GREY // 2, np.ones((16, 16), np.uint8))[..., None].repeat(3, 2)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    stored = np.ascontiguousarray(STORED[value](upright))
    read = decode(encoded(stored, kind, exif=orientation(value), **options))
    assert read.shape == (3, *upright.shape[:2])
    difference = np.abs(read.astype(int) - upright.transpose(2, 0, 1))
    assert difference.max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(value: int) -> None:
    assert np.array_equal(decode(encoded(COLOUR, exif=orientation(value))), COLOUR.transpose(2, 0, 1))


def test_one_picture_stored_upright_and_on_its_side_is_the_same_image_twice(tmp_path: Path) -> None:
    square = np.kron(GREY[:7], np.ones((16, 16), np.uint8))
    cells = [
        {"bytes": encoded(square, "JPEG", quality=100), "path": None},
        {"bytes": encoded(np.rot90(square), "JPEG", quality=100, exif=orientation(6)), "path": None},
    ]
    pq.write_table(pa.table({"image": cells, "label": [0, 0]}), tmp_path / "x.parquet")
    first, second = read_dataset(tmp_path / "x.parquet", None).images.astype(int)
    assert np.abs(first - second).max() <= 2


def test_rows_that_orientation_makes_unlike_are_named_with_both_shapes(tmp_path: Path) -> None:
    cells = [{"bytes": encoded(COLOUR, "JPEG", exif=orientation(value)), "path": None} for value in (1, 1, 6)]
    pq.write_table(pa.table({"image": cells, "label": [0, 0, 0]}), tmp_path / "x.parquet")
    with pytest.raises(WrongInput, match="the same shape, row 2 is 3×7×9, row 0 is 3×9×7"):
        read_dataset(tmp_path / "x.parquet", None)


@pytest.mark.parametrize(
    ("content", "levels"),
    [
        (encoded(GREY), GREY),
        (encoded(COLOUR), COLOUR),
        (encoded(COLOUR, "BMP"), COLOUR),
        (encoded(COLOUR, "TIFF"), COLOUR),
        (encoded(COLOUR, "PPM"), COLOUR),
        (encoded(COLOUR, "WEBP", lossless=True), COLOUR),
        (encoded(GREY, "GIF"), GREY[..., None].repeat(3, 2)),
        (encoded(GREY, mode="1", dither=0), None),
        (encoded(GREY, mode="P"), GREY[..., None].repeat(3, 2)),
        (b"P5 2 1 3\n\0\3", np.array([[0, 255]], np.uint8)),
        (encoded(COLOUR, icc_profile=b"no profile" * 20), COLOUR),
        (encoded(COLOUR, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0broken"), COLOUR),
        (encoded(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR),
    ],
)
def test_levels_are_those_that_are_stored(content: bytes, levels: np.ndarray | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = decode(content)
    assert read.dtype == np.uint8
    if levels is None:
        assert set(np.unique(read)) == {0, 255}
        return
    assert np.array_equal(read, levels[None] if levels.ndim == 2 else levels.transpose(2, 0, 1))


def test_of_a_telephones_picture_with_previews_the_picture_is_read() -> None:
    content = encoded(COLOUR, "MPO", save_all=True, append_images=OTHERS, quality=100)
    assert np.array_equal(decode(content), decode(encoded(COLOUR, "JPEG", quality=100)))


WIDE = np.random.default_rng(9).integers(0, 65536, (9, 7, 4), dtype=np.uint16)
ALPHA = np.dstack([COLOUR, GREY])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png_of_16_bits(WIDE[..., :3], 2), "must be grey or RGB of 8 bits, got RGB of more than 8 bits"),
        (png_of_16_bits(WIDE[..., :1], 0), "must be grey or RGB of 8 bits, got I;16"),
        (png_of_16_bits(WIDE[..., :2], 4), "must be grey or RGB of 8 bits, got RGBA with transparency"),
        (tiff_of_16_bits(WIDE[..., :3]), "must be grey or RGB of 8 bits, got RGB of more than 8 bits"),
        (b"P6 2 1 65535\n" + bytes(12), "must be grey or RGB of 8 bits, got RGB of more than 8 bits"),
        (b"P5 2 1 65535\n" + bytes(4), "must be grey or RGB of 8 bits, got I"),
        (encoded(WIDE[..., 0]), "must be grey or RGB of 8 bits, got I;16"),
        (encoded(GREY.astype(np.float32), "TIFF"), "must be grey or RGB of 8 bits, got F"),
        (encoded(GREY.astype(np.int32), "TIFF"), "must be grey or RGB of 8 bits, got I"),
        (encoded(COLOUR, "JPEG", "CMYK"), "must be grey or RGB of 8 bits, got CMYK"),
        (encoded(COLOUR, "TIFF", "LAB"), "must be grey or RGB of 8 bits, got LAB"),
        (encoded(COLOUR, mode="RGBA"), "got RGBA with transparency"),
        (encoded(ALPHA, "WEBP", lossless=True), "got RGBA with transparency"),
        (encoded(GREY, mode="LA"), "got LA with transparency"),
        (encoded(GREY, transparency=3), "got L with transparency"),
        (encoded(COLOUR, transparency=(1, 2, 3)), "got RGB with transparency"),
        (encoded(COLOUR, mode="P", transparency=3), "got P with transparency"),
        (encoded(COLOUR, "GIF", save_all=True, append_images=OTHERS), "expected one picture, got 3 in one GIF file"),
        (encoded(COLOUR, "PNG", save_all=True, append_images=OTHERS), "expected one picture, got 3 in one PNG file"),
        (encoded(COLOUR, "TIFF", save_all=True, append_images=OTHERS), "expected one picture, got 3 in one TIFF file"),
        (encoded(COLOUR, "WEBP", save_all=True, append_images=OTHERS), "expected one picture, got 3 in one WEBP file"),
        (b"", "cannot be decoded: no PNG, JPEG, WEBP, GIF, BMP, TIFF or PPM file, it is empty"),
        (b"<html>404</html>", "it begins with b'<html>404</h'"),
        (encoded(COLOUR, "JPEG2000"), "TIFF or PPM file, it begins with"),
        (encoded(COLOUR, "JPEG")[:-40], "cannot be decoded: image file is truncated"),
        (encoded(COLOUR)[:-40], "cannot be decoded"),
        (encoded(COLOUR)[:60], "cannot be decoded"),
        (encoded(COLOUR, "WEBP")[:-40], "cannot be decoded"),
        (encoded(COLOUR, "TIFF")[:-40], "cannot be decoded"),
        (encoded(COLOUR, "GIF")[:-40], "cannot be decoded"),
        (encoded(np.zeros((9500, 10000), np.uint8), mode="1"), "cannot be decoded: Image size (95000000 pixels)"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(content: bytes, says: str) -> None:
    with pytest.raises(WrongInput, match=re.escape(says)) as caught:
        decode(content)
    assert len(str(caught.value).splitlines()) == 1
    assert " object at 0x" not in str(caught.value)
