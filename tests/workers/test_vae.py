"""The autoencoder's scores against an obvious form, and its resumable training."""

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.conftest import random_images, random_model
from workers.detectors import DETECTORS, detector_named, detector_recipe
from workers.detectors.vae import VAEDetector
from workers.errors import WrongInput
from workers.models.vae import VAE
from workers.sources import load_data
from workers.training.networks import NetworkEpoch, VAENetwork, train_network

NAMES = ["vae-kl", "vae-normalised-kl", "vae-bernoulli-kl", "vae-error", "classifier-kl", "classifier-jsd"]


def slow_score(name: str, image: np.ndarray, again: np.ndarray, logits: np.ndarray, other: np.ndarray) -> float:
    """One image's score, number by number."""
    p, q = image.ravel().astype(float), again.ravel().astype(float)
    if name.startswith("classifier"):
        p, q = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (logits.astype(float), other.astype(float)))
        if name == "classifier-kl":
            return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        middle = (p + q) / 2
        halves = [sum(a * math.log(a / m) for a, m in zip(x, middle, strict=True)) for x in (p, q)]
        return sum(halves) / 2
    if name == "vae-error":
        return float(np.mean((p - q) ** 2))
    if name == "vae-bernoulli-kl":
        p, q = (x.clip(1e-5, 1 - 1e-5) for x in (p, q))
        return sum(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(p, q, strict=True))
    p, q = p + 1e-5, q + 1e-5
    if name == "vae-normalised-kl":
        p, q = p / p.sum(), q / q.sum()
        return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(p)


@pytest.mark.parametrize("kind", ["colour", "grey"])
@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_obvious_one(name: str, kind: str) -> None:
    model, shape, _ = random_model(kind, 1)
    torch.manual_seed(2)
    detector = detector_named(name, code_size=3).build(model, shape).eval()
    images = torch.from_numpy(random_images(shape, 6, 3)).float() / 255
    noise = torch.randn(6, 3)
    with torch.no_grad():
        found, again = detector.score(images, noise), detector.reconstruct(images, noise)
        assert again is not None
        assert again.shape == images.shape
        logits, other = model(images), model(again)
    for row in range(6):
        expected = slow_score(name, images[row].numpy(), again[row].numpy(), logits[row].numpy(), other[row].numpy())
        assert float(found[row]) == pytest.approx(expected, rel=2e-4, abs=1e-6)
        with torch.no_grad():
            alone = detector.score(images[row : row + 1], noise[row : row + 1])
        assert float(alone[0]) == pytest.approx(expected, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_score_has_the_gradient_of_finite_differences(name: str) -> None:
    model, shape, _ = random_model("colour", 1)
    torch.manual_seed(2)
    detector = detector_named(name).build(model, shape).double()
    model.double()
    image = torch.rand(1, *shape, dtype=torch.float64) * 0.8 + 0.1
    noise = torch.randn(1, 2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(detector.score(image.requires_grad_(), noise).sum(), image)
    assert float(gradient.abs().max()) > 0
    step = 1e-6 * torch.randn_like(image)
    with torch.no_grad():
        rise = detector.score(image + step, noise) - detector.score(image - step, noise)
    assert float(rise[0]) == pytest.approx(2 * float((gradient * step).sum()), rel=1e-3, abs=1e-12)


def test_state_is_the_autoencoder_alone() -> None:
    model, shape, _ = random_model("grey", 1)
    detector = detector_named("vae-kl").build(model, shape)
    assert {name.partition(".")[0] for name in detector.state_dict()} == {"vae"}
    other = detector_recipe({"name": "vae-kl", "parameters": {"code_size": 2}}).build(model, shape)
    images, noise = torch.rand(3, *shape), torch.randn(3, 2)
    assert not torch.equal(other.score(images, noise), detector.score(images, noise))
    assert torch.equal(other.restore(detector.state_dict()).score(images, noise), detector.score(images, noise))


def test_the_keras_network_has_the_keras_sizes() -> None:
    vae = VAE()
    sizes = {name: tuple(weights.shape) for name, weights in vae.named_parameters() if name.endswith("weight")}
    assert sizes["hidden.weight"] == (16, 7 * 7 * 64)
    assert sizes["spread.weight"] == (7 * 7 * 64, 2)
    assert sum(weights.numel() for weights in vae.parameters()) == 134_165
    with pytest.raises(ValueError, match="code needs"):
        VAE(code_size=0)


def epochs_of(folder: Path, epochs: int, on_batch: object = None) -> list[NetworkEpoch]:
    network = VAENetwork(epochs=epochs, batch_size=64)
    follow = on_batch if callable(on_batch) else lambda *_: None
    return list(train_network(network, load_data("digits", "train"), folder, on_batch=follow))


def test_training_learns_and_resumes_as_if_never_cut(tmp_path: Path) -> None:
    straight = epochs_of(tmp_path / "a", 4)
    assert straight[-1].loss < 0.85 * straight[0].loss

    def cut(epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == (3, 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        epochs_of(tmp_path / "b", 4, cut)
    assert epochs_of(tmp_path / "b", 4) == straight
    one, other = (safetensors.torch.load_file(tmp_path / x / "epoch-004.safetensors") for x in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_training_is_refused(tmp_path: Path) -> None:
    epochs_of(tmp_path, 1)
    network = VAENetwork(epochs=1, batch_size=64, code_size=3)
    with pytest.raises(WrongInput, match="trained with code_size 2, not 3"):
        list(train_network(network, load_data("digits", "train"), tmp_path, on_batch=lambda *_: None))
    network = VAENetwork(batch_size=5000)
    with pytest.raises(WrongInput, match="at most the 1437 training images"):
        list(train_network(network, load_data("digits", "train"), tmp_path / "x", on_batch=lambda *_: None))


def test_names() -> None:
    assert set(NAMES) <= set(DETECTORS)
    assert isinstance(detector_named("vae-kl").build(*random_model("grey", 1)[:2]), VAEDetector)
    with pytest.raises(WrongInput, match="unknown detector vae: expected one of vae-kl"):
        detector_named("vae")
    with pytest.raises(WrongInput, match="code-size"):
        detector_named("vae-kl", code_size=0)
