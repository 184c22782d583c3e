"""Changes of activations: computed by hand, noise of the norm that was asked for."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from analysis.activations import (
    INPUT,
    Changes,
    Layer,
    activation_changes,
    activations,
    change_maps,
    growths,
    norm_matched_noise,
)
from tests.conftest import random_images, random_model
from workers.errors import WrongInput
from workers.results import distances


def draws(ids: Sequence[int], seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, one]) for one in ids]


def test_layers_of_the_seeds_network_by_hand() -> None:
    model, shape, _ = random_model("cnn", 1)
    images = random_images(shape, 5, 2)
    found = {layer.name: (layer.kind, values) for layer, values in activations(model, images).items()}
    names = [INPUT, "conv1", "conv1 relu", "conv2", "conv2 relu", "conv3", "conv3 relu", "linear"]
    assert list(found) == names
    value = torch.tensor(images).float() / 255
    with torch.no_grad():
        for name in names:
            kind = "rectifier" if "relu" in name else "linear" if name == "linear" else "convolution"
            if name == INPUT:
                kind = "input"
            elif kind == "rectifier":
                value = value.clamp(min=0)
            else:
                value = getattr(model, name)(value.flatten(1) if name == "linear" else value)
            assert found[name][0] == kind
            torch.testing.assert_close(found[name][1], value, atol=1e-5, rtol=1e-5)


def test_a_rectifier_in_place_and_a_layer_that_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.linear = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            once = self.act(self.conv(images))
            return self.linear(self.act(self.conv(once)).mean(dim=(2, 3)))

    torch.manual_seed(3)
    model, images = Twice().eval(), random_images((3, 4, 5), 3, 4)
    found = {layer.name: values for layer, values in activations(model, images).items()}
    assert list(found) == [INPUT, "conv", "conv relu", "conv 2", "conv relu 2", "linear"]
    with torch.no_grad():
        first = model.conv(torch.tensor(images).float() / 255)
        second = model.conv(first.clamp(min=0))
    assert (first < 0).any()
    torch.testing.assert_close(found["conv"], first)
    torch.testing.assert_close(found["conv relu"], first.clamp(min=0))
    torch.testing.assert_close(found["conv 2"], second)


@pytest.mark.parametrize("kind", ["colour", "cnn"])
def test_relative_changes_by_hand(kind: str) -> None:
    model, shape, _ = random_model(kind, 5)
    clean, other = random_images(shape, 70, 6), random_images(shape, 70, 7)
    counted: list[int] = []
    found = activation_changes(model, clean, other, np.arange(70), draws=2, seed=3, on_images=counted.append)
    assert sum(counted) == 70
    assert found.noise.shape == (70, len(found.layers), 2)
    np.testing.assert_allclose(found.size, distances(clean, other).l2)
    for row in (0, 33, 69):
        before, after = activations(model, clean[row : row + 1]), activations(model, other[row : row + 1])
        for number, layer in enumerate(found.layers):
            a, b = before[layer].double().numpy(), after[layer].double().numpy()
            expected = np.sqrt(((b - a) ** 2).sum()) / np.sqrt((a**2).sum())
            assert found.adversarial[row, number] == pytest.approx(expected, rel=1e-3)
    for draw in range(2):
        generators = [np.random.default_rng([3, one, draw]) for one in range(70)]
        noisy = norm_matched_noise(clean, found.size, generators)
        np.testing.assert_allclose(found.noise_size[:, draw], distances(clean, noisy).l2)
        with torch.no_grad():
            classes = [model(torch.tensor(x).float() / 255).argmax(dim=1) for x in (clean, noisy)]
        np.testing.assert_array_equal(found.noise_fools[:, draw], (classes[0] != classes[1]).numpy())
    again = activation_changes(model, clean[5:9], other[5:9], np.arange(5, 9), draws=2, seed=3)
    np.testing.assert_allclose(again.noise, found.noise[5:9], rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 9, 12), (3, 7, 6)])
def test_noise_has_the_norm_of_the_change(shape: tuple[int, int, int]) -> None:
    images = random_images(shape, 40, 8)
    sizes = np.random.default_rng(9).uniform(0.2, 2.5, 40)
    noisy = norm_matched_noise(images, sizes, draws(range(40)))
    assert noisy.dtype == np.uint8
    np.testing.assert_allclose(distances(images, noisy).l2, sizes, rtol=0.02)
    np.testing.assert_array_equal(noisy, norm_matched_noise(images, sizes, draws(range(40))))
    np.testing.assert_array_equal(noisy[7:9], norm_matched_noise(images[7:9], sizes[7:9], draws([7, 8])))
    assert (noisy != norm_matched_noise(images, sizes, draws(range(40), seed=1))).any(axis=(1, 2, 3)).all()


def test_noise_that_cannot_be_so_large_goes_as_far_as_it_can() -> None:
    images = random_images((1, 5, 6), 3, 10)
    noisy = norm_matched_noise(images, np.array([0.0, 1e3, 1e3]), draws(range(3)))
    np.testing.assert_array_equal(noisy[0], images[0])
    assert np.isin(noisy[1:], (0, 255)).all()


def test_maps_of_change_by_hand() -> None:
    model, shape, _ = random_model("cnn", 11)
    clean, other = random_images(shape, 3, 12), random_images(shape, 3, 13)
    found = change_maps(model, clean, other)
    assert list(found) == [INPUT, "conv1 relu", "conv2 relu", "conv3 relu"]
    with torch.no_grad():
        inputs = [torch.tensor(x).float() / 255 for x in (clean, other)]
        first = [model.conv1(x).clamp(min=0) for x in inputs]
    np.testing.assert_allclose(found[INPUT], np.abs(clean.astype(int) - other)[:, 0] / 255, atol=1e-6)
    np.testing.assert_allclose(found["conv1 relu"], (first[1] - first[0]).abs().max(dim=1)[0], atol=1e-5)

    colour, shape, _ = random_model("colour", 14)
    assert list(change_maps(colour, random_images(shape, 2, 1), random_images(shape, 2, 2))) == [INPUT, "body.0 gelu"]


def test_growth_from_the_first_layer_to_the_last() -> None:
    layers = tuple(
        Layer(*both) for both in ((INPUT, "input"), ("a", "convolution"), ("a relu", "rectifier"), ("b", "linear"))
    )
    success = np.array([True, True, True, False, False, True])
    adversarial = np.ones((6, 4))
    adversarial[:, 3] = [2, 3, 4, 0.5, 0.25, np.nan]
    noise = np.ones((6, 4, 3))
    noise[:, 3] = 0.5
    noise[3, 3] = 2.0
    nothing = np.zeros((6, 3))
    changes = Changes(layers, adversarial, noise, np.ones(6), nothing + 1, nothing > 0)
    found = growths([changes], [success], [np.arange(6)])
    assert list(found) == ["success", "failure", "noise of success", "noise of failure"]
    assert (found["success"].rows, found["success"].factor.value, found["success"].tapers.value) == (3, 3, 0)
    assert (found["failure"].rows, found["failure"].factor.value, found["failure"].tapers.value) == (2, 0.25, 1)
    assert found["noise of success"].factor.value == 0.5
    assert found["noise of failure"].tapers.value == 0.5
    assert found["success"].beside_noise is not None
    assert found["success"].beside_noise.value == 6
    low, high = found["success"].factor.interval
    assert 2 <= low <= 3 <= high <= 4
    assert set(growths([changes], [np.ones(6, dtype=bool)], [np.arange(6)])) == {"success", "noise of success"}


class Weightless(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(images).flatten(1)[:, :3]


def test_what_cannot_be_compared() -> None:
    images = random_images((1, 4, 5), 4, 15)
    with pytest.raises(WrongInput, match=r"no convolution and no nn\.Linear"):
        activation_changes(Weightless(), images, images, np.arange(4))
    dead = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(40, 2)).eval()
    with torch.no_grad():
        dead[0].bias.fill_(-100)  # type: ignore[union-attr]
    found = activation_changes(dead, images, random_images((1, 4, 5), 4, 16), np.arange(4))
    assert np.isnan(found.adversarial[:, [layer.kind for layer in found.layers].index("rectifier")]).all()
    with pytest.raises(ValueError, match="1 to 64"):
        activations(dead, random_images((1, 4, 5), 65, 1))


def test_noise_without_an_answer_neither_changes_a_prediction_nor_keeps_it() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            flat = images.flatten(1)
            return self.linear(flat).masked_fill((flat[:, :1] != 0.2), torch.nan)

    clean = np.full((4, 1, 2, 2), 51, np.uint8)
    clean[0] = 100
    found = activation_changes(Silent().eval(), clean, clean + np.uint8(40), np.arange(4), draws=8, seed=1)
    assert np.isnan(found.noise_fools[0]).all()
    moved = np.isnan(found.noise_fools[1:])
    assert moved.any()
    assert set(found.noise_fools[1:][~moved].tolist()) <= {0.0, 1.0}
