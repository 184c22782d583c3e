"""Harmless shifts: what each does by hand, for any shape, and the same whoever is beside an image."""

import numpy as np
import pytest

from analysis.shifts import SHIFTS, Shift
from tests.conftest import random_images


def shift(name: str, strength: str) -> Shift:
    (found,) = (s for s in SHIFTS if s.name == name and s.strength.startswith(strength))
    return found


def each(function: object) -> object:
    return pytest.mark.parametrize("shift", SHIFTS, ids=lambda s: f"{s.name} {s.strength}")(function)


@each
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 6)])
def test_an_image_is_shifted_alike_in_any_company(shift: Shift, shape: tuple[int, int, int]) -> None:
    images, ids = random_images(shape, 40, 5), np.random.default_rng(1).permutation(100)[:40]
    before = images.copy()
    found = shift(images, ids)
    assert np.array_equal(images, before)
    assert (found.dtype, found.shape) == (np.uint8, images.shape)
    assert (found != images).any(axis=(1, 2, 3)).all()
    order = np.random.default_rng(2).permutation(40)[:9]
    assert np.array_equal(shift(images[order], ids[order]), found[order])
    assert shift(images[:0], ids[:0]).shape == (0, *shape)


def test_noise_is_by_seed_and_image() -> None:
    images = np.full((2, 1, 9, 9), 128, dtype=np.uint8)
    for name in ("sign noise", "Gaussian noise"):
        noisy = shift(name, "")
        one = noisy(images, np.array([4, 5]))
        assert not np.array_equal(one[0], one[1])
        assert not np.array_equal(one, noisy(images, np.array([4, 5]), seed=1))


def test_noise_has_its_size() -> None:
    images, ids = np.full((200, 1, 20, 20), 128, dtype=np.uint8), np.arange(200)
    signs = shift("sign noise", "")(images, ids)
    assert set(np.unique(signs)) == {52, 204}  # 128 ± 76.5, halves to even
    assert (signs == 204).mean() == pytest.approx(0.5, abs=0.01)
    change = shift("Gaussian noise", "")(images, ids).astype(float) - 128
    assert change.std() == pytest.approx(25.5, rel=0.02)
    assert change.mean() == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("pixels", [1, 2])
def test_translations_move_whole_pixels(pixels: int) -> None:
    images = random_images((3, 7, 6), 60, 9)
    moved = shift("translation", str(pixels))(images, np.arange(60))
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)), mode="edge")
    ways = {}
    for down, right in ((0, pixels), (2 * pixels, pixels), (pixels, 0), (pixels, 2 * pixels)):
        window = padded[:, :, down : down + 7, right : right + 6]
        ways[down, right] = (window == moved).all(axis=(1, 2, 3))
    assert np.sum(list(ways.values()), axis=0).tolist() == [1] * 60
    assert all(way.sum() > 5 for way in ways.values())


def test_rotation_turns_both_ways_about_the_middle() -> None:
    bar = np.zeros((40, 1, 21, 21), dtype=np.uint8)
    bar[:, :, :, 10] = 255
    turned = shift("rotation", "10°")(bar, np.arange(40))[:, 0].astype(float)
    assert (turned[:, 10, 10] == 255).all()
    column = (turned[:, 1] * np.arange(21)).sum(axis=1) / turned[:, 1].sum(axis=1) - 10
    assert np.abs(column) == pytest.approx(np.full(40, 9 * np.tan(np.radians(10))), abs=0.1)
    assert 5 < (column > 0).sum() < 35


def test_blur_brightness_and_contrast_by_hand() -> None:
    point = np.zeros((1, 1, 9, 9), dtype=np.uint8)
    point[0, 0, 4, 4] = 255
    blurred = shift("blur", "")(point, np.arange(1))[0, 0]
    assert blurred[4, 4] == pytest.approx(255 / (2 * np.pi), abs=2)
    assert blurred[4, 5] == blurred[3, 4] < blurred[4, 4]
    levels = np.array([0, 100, 200, 240], dtype=np.uint8).reshape(1, 1, 2, 2)
    assert shift("brightness", "× 0.8")(levels, np.arange(1)).ravel().tolist() == [0, 80, 160, 192]
    assert shift("brightness", "× 1.2")(levels, np.arange(1)).ravel().tolist() == [0, 120, 240, 255]
    assert shift("contrast", "")(levels, np.arange(1)).ravel().tolist() == [40, 110, 180, 208]  # about 135


def test_other_images_are_refused() -> None:
    images = np.zeros((2, 1, 4, 4), dtype=np.uint8)
    for wrong, ids in ((images[0], 1), (images / 255, 2), (images, 3)):
        with pytest.raises(ValueError, match="expected uint8 images"):
            SHIFTS[0](wrong, np.arange(ids))
