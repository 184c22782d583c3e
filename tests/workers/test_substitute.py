"""Surrogates learned from answers alone, and one that is no network."""

from pathlib import Path

import numpy as np
import pytest
import torch

from workers.errors import WrongInput
from workers.evaluation.answers import REJECTED, answers
from workers.models.kernel import KernelMachine
from workers.models.loading import construct, read_model
from workers.models.null import NullCNN, rejecting
from workers.sources import load_data
from workers.training.kernel import Kernel, fit_kernel
from workers.training.substitute import Round, Substitute, train_substitute

CNN = {"name": "cnn", "channels": 1, "height": 8, "width": 8, "classes": 10}
HOW = Substitute(rounds=2, epochs=3)
TEST = load_data("digits", "test")
FIRST = TEST.images[:40]


def bright(images: np.ndarray) -> np.ndarray:
    """A victim: the brightest of ten columns of numbers, and no answer to the darkest images."""
    found = images.reshape(len(images), -1)[:, :60].reshape(len(images), 10, 6).sum(axis=2).argmax(axis=1)
    return np.where(images.mean(axis=(1, 2, 3)) < 60, REJECTED, found)


def trained(folder: Path, asked: list[np.ndarray], stop: int = 99) -> list[Round]:
    def victim(images: np.ndarray) -> np.ndarray:
        asked.append(images)
        return bright(images)

    found = []
    training = train_substitute(HOW, FIRST, victim, CNN, folder, of="bright", on_batch=lambda *_: None)
    for done in training:
        found.append(done)
        if len(found) == stop:
            training.close()
            break
    return found


def test_every_query_is_asked_once_and_is_the_last_rounds_neighbour(tmp_path: Path) -> None:
    asked: list[np.ndarray] = []
    found = trained(tmp_path / "s", asked)
    assert [done.queries for done in found] == [40, 80, 160]
    assert [len(images) for images in asked] == [40, 40, 80]
    every = [np.concatenate(asked[:number]) for number in (1, 2)]
    for before, after in zip(every, asked[1:], strict=True):  # x + λ·sign, clipped
        moved = after.astype(int) - before
        inside = (after > 0) & (after < 255)
        assert set(np.unique(np.abs(moved[inside]))) <= {0, 26}
        assert np.abs(moved).max() == 26
    # the signs of the first doubling, from the network as it was, one image at a time
    trained(tmp_path / "one", [], stop=1)
    model = read_model(str(tmp_path / "one")).build()
    for image, neighbour, answer in zip(FIRST[:6], asked[1], bright(FIRST), strict=False):
        pixels = torch.tensor(image[None]).float().div(255).requires_grad_(True)
        probabilities = model(pixels).softmax(dim=1)[0]
        (gradient,) = torch.autograd.grad(
            probabilities[probabilities.argmax() if answer == REJECTED else answer], pixels
        )
        solid = gradient.numpy()[0] != 0
        expected = (image + 26 * np.sign(gradient.numpy()[0])).clip(0, 255)
        assert (neighbour[solid] == expected[solid]).mean() > 0.99


def test_a_stopped_one_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole: list[np.ndarray] = []
    first: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    rounds = trained(tmp_path / "whole", whole)
    trained(tmp_path / "halved", first, stop=2)
    assert trained(tmp_path / "halved", rest) == rounds
    assert [len(images) for images in first + rest] == [40, 40, 80]
    assert trained(tmp_path / "halved", rest) == rounds
    assert len(rest) == 1
    for name in ("epoch-003.safetensors", "epoch-003.queries"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halved" / name).read_bytes()
    with pytest.raises(WrongInput, match="was trained with victim bright, not other"):
        list(train_substitute(HOW, FIRST, bright, CNN, tmp_path / "whole", of="other", on_batch=lambda *_: None))


def test_a_victim_that_never_answers_teaches_nothing(tmp_path: Path) -> None:
    def silent(images: np.ndarray) -> np.ndarray:
        return np.full(len(images), REJECTED)

    with pytest.raises(WrongInput, match="answers to none of 40 images"):
        list(train_substitute(HOW, FIRST, silent, CNN, tmp_path / "s", of="silent", on_batch=lambda *_: None))


def test_the_kernel_machine_is_scikit_learns(tmp_path: Path) -> None:
    """Its classes are those of the pipeline that it was taken from."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    training, how = load_data("digits", "train"), Kernel(centres=80, images=400)
    fit_kernel(how, training, 12, tmp_path / "k")
    model = read_model(str(tmp_path / "k")).build()
    assert isinstance(model, KernelMachine)
    taken = np.random.default_rng(how.seed).permutation(len(training))[:400]
    flat = training.images[taken].reshape(400, -1) / 255
    kernel = Nystroem(gamma=1 / (64 * flat.var()), n_components=80, random_state=how.seed)
    pipeline = make_pipeline(kernel, LogisticRegression(C=100, max_iter=200)).fit(flat, training.labels[taken])
    expected = pipeline.decision_function(TEST.images.reshape(len(TEST), -1) / 255)
    logits = model(torch.tensor(TEST.images).float().div(255)).numpy()
    assert logits.shape == (len(TEST), 12)
    assert np.abs(logits[:, :10] - expected).max() < 0.01 * np.abs(expected).max()
    found = answers(model, TEST.images)
    assert (found == TEST.labels).mean() > 0.9
    assert found.max() < 10
    before = (tmp_path / "k/model.json").stat().st_mtime_ns
    fit_kernel(how, training, 12, tmp_path / "k")
    assert (tmp_path / "k/model.json").stat().st_mtime_ns == before


def test_two_classes(tmp_path: Path) -> None:
    training = load_data("digits", "train")
    two = training.labels < 2
    fit_kernel(
        Kernel(centres=20), type(training)(training.images[two], training.labels[two], "train", "two"), 2, tmp_path
    )
    some = TEST.labels < 2
    assert (answers(read_model(str(tmp_path)).build(), TEST.images[some]) == TEST.labels[some]).mean() > 0.95


def test_the_perceptron_takes_any_shape() -> None:
    model = construct({"name": "mlp", "channels": 3, "height": 5, "width": 4, "classes": 7, "hidden": 6})
    assert model(torch.zeros(2, 3, 5, 4)).shape == (2, 7)


def test_what_is_rejected_has_no_class() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = NullCNN(1, 8, 8, 3).eval()
    with torch.no_grad():
        logits = network(torch.tensor(TEST.images).float().div(255))
        network.linear.bias[-1] -= (logits[:, -1] - logits[:, :-1].amax(dim=1)).median()  # NULL for every second image
        classes = network(torch.tensor(TEST.images).float().div(255)).argmax(dim=1).numpy()
    counted: list[int] = []
    found = answers(rejecting(network), TEST.images, counted.append)
    assert found.tolist() == [REJECTED if one == 3 else one for one in classes.tolist()]
    assert 0.4 < (found == REJECTED).mean() < 0.6
    assert sum(counted) == len(TEST)
    assert answers(rejecting(network), TEST.images[:0]).shape == (0,)
