"""Models from folders and functions, as recipes that rebuild the same network."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.conftest import ColourNet, random_images
from workers.errors import WrongInput
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.models.loading import check_model, read_model


def test_the_seeds_cnn() -> None:
    model = CNN()
    assert [tuple(p.shape) for p in model.parameters()] == [
        (16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 2304), (10,),
    ]  # fmt: skip
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert (model.conv1.stride, model.conv2.stride, model.conv3.stride) == ((1, 1), (2, 2), (2, 2))
    assert (model.conv1.padding, model.conv2.padding, model.conv3.padding) == ((1, 1), (0, 0), (0, 0))
    limit = (6 / (2304 + 10)) ** 0.5  # Glorot uniform
    assert 0.9 * limit < float(model.linear.weight.detach().abs().max()) <= limit
    assert not model.conv1.bias.any()
    assert CNN(3, 13, 10, 7)(torch.zeros(2, 3, 13, 10)).shape == (2, 7)


def test_a_function_is_called_once_and_its_weights_travel() -> None:
    recipe = read_model("tests.conftest:ColourNet")  # every call draws other weights
    first, second = (pickle.loads(pickle.dumps(recipe)).build() for _ in range(2))
    images = torch.tensor(random_images(ColourNet.SHAPE, 4, 1)).float().div(255)
    assert torch.equal(first(images), second(images))
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())


def test_weights_and_normalisation(tmp_path: Path) -> None:
    model = ColourNet().eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    recipe = read_model(
        "tests.conftest:ColourNet", weights=tmp_path / "w.safetensors", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)
    )
    images = torch.tensor(random_images(ColourNet.SHAPE, 4, 2)).float().div(255)
    shifted = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(recipe.build()(images), model(shifted))
    plain = read_model("tests.conftest:ColourNet", weights=tmp_path / "w.safetensors")
    assert plain.content_hash != recipe.content_hash
    assert plain.content_hash == read_model("tests.conftest:ColourNet", weights=tmp_path / "w.safetensors").content_hash


def test_a_folder_rebuilds_its_model(mnist_folder: Path, mnist: Dataset) -> None:
    recipe = read_model(str(mnist_folder))
    assert check_model(recipe.build(), mnist) == 10
    card = (mnist_folder / "model.json").read_text()
    assert recipe.architecture == {"name": "cnn", "channels": 1, "height": 28, "width": 28, "classes": 10}
    assert '"weights": "epoch-002.safetensors"' in card


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(WrongInput, match="SafetensorError"):
        read_model("tests.conftest:ColourNet", weights=tmp_path / "w.pt")
    (tmp_path / "model.json").write_text('{"architecture": {"name": "cnn"}, "weights": "w.pt"}')
    with pytest.raises(WrongInput, match="safetensors"):
        read_model(str(tmp_path))
