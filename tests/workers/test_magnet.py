"""MagNet: scores and repairs against a slow numpy version, thresholds, training that resumes."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.signal import correlate
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, softmax
from torch import nn

from tests.conftest import random_images, random_model
from workers.detectors.magnet import MagNet, MagNetDetector
from workers.errors import WrongInput
from workers.models.magnet import MagNetAutoencoder
from workers.sources import load_data
from workers.training.magnet import MagNetNetwork
from workers.training.networks import train_network

TEMPERATURES = (0.05, 0.5)
"""Below 1, as a classifier with random weights answers about the same for all images."""


def a_detector(kind: str = "colour", **parameters: object) -> tuple[MagNetDetector, torch.Tensor]:
    """A detector with random weights, and uint8 images for it."""
    classifier, shape, _ = random_model(kind, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        detector = MagNet(**parameters).build(classifier, shape)
        for weights in detector.parameters():
            weights.data += 0.3 * torch.randn(weights.shape)
    return detector.eval(), torch.tensor(random_images(shape, 40, seed=3))


def fitted(kind: str = "colour", **parameters: object) -> tuple[MagNetDetector, torch.Tensor]:
    detector, images = a_detector(kind, **parameters)
    detector.fit(images, torch.zeros(len(images), dtype=torch.int64), seed=0, on_step=lambda *_: None)
    return detector, images


def convolved(image: np.ndarray, layer: nn.Module) -> np.ndarray:
    weights, bias = (part.detach().numpy().astype(float) for part in (layer.weight, layer.bias))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    return expit(np.stack([correlate(padded, w, mode="valid")[0] + b for w, b in zip(weights, bias, strict=True)]))


def pooled(image: np.ndarray) -> np.ndarray:
    channels, height, width = image.shape
    found = np.empty((channels, -(-height // 2), -(-width // 2)))
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            found[:, row, column] = image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(axis=(1, 2))
    return found


def autoencoded(image: np.ndarray, model: MagNetAutoencoder) -> np.ndarray:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    if len(layers) == 3:
        for layer in layers:
            image = convolved(image, layer)
        return image
    height, width = image.shape[1:]
    image = convolved(pooled(convolved(image, layers[0])), layers[1])
    image = np.kron(convolved(image, layers[2]), np.ones((1, 2, 2)))
    return convolved(convolved(image, layers[3]), layers[4])[:, :height, :width]


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_equals_the_slow_version(kind: str) -> None:
    detector, images = fitted(kind, temperatures=TEMPERATURES, rejected=0.2)
    floats = images.float() / 255
    values, repaired = [], []
    for image in floats.numpy().astype(float):
        first, second = autoencoded(image, detector.first), autoencoded(image, detector.second)
        own, other = detector.classifier(torch.tensor(np.stack([image, first])).float()).detach().numpy()
        row = [np.sqrt(((image - first) ** 2).sum()), np.abs(image - second).sum()]
        row += [jensenshannon(softmax(own / t), softmax(other / t)) ** 2 for t in TEMPERATURES]
        values.append(row)
        repaired.append(other)
    want = np.array(values)
    with torch.no_grad():
        np.testing.assert_allclose(detector.values(floats), want, rtol=2e-3, atol=1e-6)
        scales = np.quantile(want, 0.8, axis=0)
        np.testing.assert_allclose(detector.score(floats), (want / scales).max(axis=1), rtol=2e-3)
        np.testing.assert_allclose(detector.predict(floats), repaired, rtol=1e-4, atol=1e-5)
        flagged = (detector.values(floats) > detector.scales).any(dim=1)
        assert torch.equal(detector.score(floats) > 1, flagged)
    assert 0 < flagged.sum() < len(flagged)


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_an_image_is_scored_by_itself(kind: str) -> None:
    detector, images = fitted(kind)
    floats = images.float() / 255
    with torch.no_grad():
        together = detector.score(floats)
        alone = torch.cat([detector.score(image[None]) for image in floats])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


def test_gradient() -> None:
    detector, images = fitted(temperatures=TEMPERATURES)
    detector.double()
    detector.classifier.double()
    some = (images[:2].double() / 255).requires_grad_()
    torch.autograd.gradcheck(detector.score, some, atol=1e-6)
    torch.autograd.gradcheck(detector.predict, some, atol=1e-6)


@pytest.mark.parametrize("autoencoder", ["I", "II"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 8), (2, 9, 4)])
def test_any_size(autoencoder: str, shape: tuple[int, int, int]) -> None:
    model = MagNetNetwork(autoencoder=autoencoder).build(shape)
    again = model(torch.rand(2, *shape))
    assert again.shape == (2, *shape)
    assert (again > 0).all()
    assert (again < 1).all()


def test_restored_gives_the_same_scores() -> None:
    detector, images = fitted(temperatures=TEMPERATURES)
    other, _ = a_detector(temperatures=TEMPERATURES)
    with torch.no_grad():
        for weights in other.parameters():
            weights.zero_()
        other.restore(safetensors.torch.load(safetensors.torch.save(detector.state_dict())))
        assert torch.equal(other.score(images / 255), detector.score(images / 255))


def test_trains_both_networks_and_resumes(tmp_path: Path) -> None:
    digits = load_data("digits", "train")
    networks = MagNet(epochs=4).networks()
    assert len({network.key for network in networks.values()}) == 2
    for name, network in networks.items():
        small = network.model_copy(update={"batch_size": 32})
        losses = [epoch.loss for epoch in train_network(small, digits, tmp_path / name, on_batch=lambda *_: None)]
        assert losses[-1] < 0.7 * losses[0]
        short = small.model_copy(update={"epochs": 1})
        list(train_network(short, digits, tmp_path / f"{name}-again", on_batch=lambda *_: None))
        resumed = list(train_network(small, digits, tmp_path / f"{name}-again", on_batch=lambda *_: None))
        assert [epoch.loss for epoch in resumed] == losses


@pytest.mark.parametrize("wrong", [{"temperatures": (0,)}, {"rejected": 0}, {"epochs": 0}, {"threshold": 1}])
def test_wrong_parameters(wrong: dict[str, object]) -> None:
    with pytest.raises(WrongInput, match=next(iter(wrong))):
        MagNet(**wrong)
