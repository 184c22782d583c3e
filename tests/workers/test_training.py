"""Training: learns, resumes to the same weights, and refuses a folder of another training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from workers.errors import Failed, WrongInput
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.models.loading import read_model
from workers.sources import load_data
from workers.training.checkpoints import save
from workers.training.classifiers import Epoch, Recipe, _measure, train


def run(folder: Path, epochs: int, seed: int = 1) -> list[Epoch]:
    training, test = load_data("digits", "train"), load_data("digits", "test")
    return list(train(training, test, Recipe(epochs, 64, 3e-3, seed), folder, on_batch=lambda *_: None))


def test_learns_and_writes_a_model_folder(tmp_path: Path) -> None:
    epochs = run(tmp_path / "m", 6)
    assert epochs[-1].accuracy > 0.9
    assert epochs[-1].loss < epochs[0].loss
    confusion = torch.tensor(epochs[-1].confusion)
    assert confusion.shape == (10, 10)
    assert int(confusion.sum()) == 360
    assert float(confusion.trace() / 360) == pytest.approx(epochs[-1].accuracy)
    names = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert names == ["epoch-006.optimizer", "epoch-006.safetensors", "model.json"]
    assert read_model(str(tmp_path / "m")).architecture["height"] == 8


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    straight = run(tmp_path / "a", 4)
    run(tmp_path / "b", 1)

    training, test = load_data("digits", "train"), load_data("digits", "test")

    def die(epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == (3, 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(train(training, test, Recipe(4, 64, 3e-3, 1), tmp_path / "b", on_batch=die))
    resumed = run(tmp_path / "b", 4)
    assert resumed == straight
    assert (tmp_path / "a/epoch-004.safetensors").read_bytes() == (tmp_path / "b/epoch-004.safetensors").read_bytes()
    assert (tmp_path / "a/epoch-004.optimizer").read_bytes() == (tmp_path / "b/epoch-004.optimizer").read_bytes()


def test_what_is_trained_is_reused(tmp_path: Path) -> None:
    run(tmp_path, 2)
    before = (tmp_path / "epoch-002.safetensors").stat().st_mtime_ns
    assert len(run(tmp_path, 2)) == 2
    assert (tmp_path / "epoch-002.safetensors").stat().st_mtime_ns == before
    with pytest.raises(WrongInput, match="has 2 epochs already, got 1"):
        run(tmp_path, 1)


def test_a_kill_before_the_first_checkpoint_does_not_block(tmp_path: Path) -> None:
    for name in ("epoch-001.safetensors", ".epoch-001.optimizer.77.tmp", ".model.json.77.tmp"):
        (tmp_path / name).write_bytes(b"half")
    assert len(run(tmp_path, 1)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-001.optimizer",
        "epoch-001.safetensors",
        "model.json",
    ]


def test_the_seed_decides(tmp_path: Path) -> None:
    assert run(tmp_path / "a", 1, seed=1) != run(tmp_path / "b", 1, seed=2)


def test_another_training_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 1)
    with pytest.raises(WrongInput, match="trained with seed 1, not 2"):
        run(tmp_path, 1, seed=2)
    (tmp_path / "epoch-001.optimizer").write_bytes(b"broken")
    with pytest.raises(WrongInput, match="checkpoint cannot be read"):
        run(tmp_path, 2)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(WrongInput, match=r"model\.json"):
        run(tmp_path, 1)
    (tmp_path / "model.json").unlink()
    (tmp_path / "letter.txt").touch()
    with pytest.raises(WrongInput, match="not a model folder"):
        run(tmp_path, 1)


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    digits, fit = load_data("digits", "train"), Recipe(1)
    tiny = Dataset.checked(digits.images[:, :, :6], digits.labels, split="all", name="tiny")
    for training, test, says in (
        (digits, tiny, "test images"),
        (tiny, tiny, "at least 7×7"),
        (Dataset.checked(digits.images[:9], digits.labels[:9], split="all", name="few"), digits, "--batch-size"),
    ):
        with pytest.raises(WrongInput, match=says):
            list(train(training, test, fit, tmp_path / "m", on_batch=lambda *_: None))
    assert not (tmp_path / "m").exists()


def test_a_classifier_that_answers_nan_is_right_about_nothing() -> None:
    """Not about the images of class 0, as the argmax of NaN would have it."""
    silent = CNN(1, 8, 8, 10)
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.fill_(torch.nan)
    epoch = _measure(silent, load_data("digits", "test"), 1, 0.0)
    assert epoch.accuracy == 0
    assert not np.any(epoch.confusion)


def test_a_training_that_diverges_is_refused_and_leaves_no_epoch(tmp_path: Path) -> None:
    training, test = load_data("digits", "train"), load_data("digits", "test")
    with pytest.raises(Failed, match="the training diverged in epoch 1: its loss is nan"):
        list(train(training, test, Recipe(2, 64, 1e36, 1), tmp_path / "m", on_batch=lambda *_: None))
    assert not list(tmp_path.glob("m/epoch-*")) + list(tmp_path.glob("m/model.json"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """As the last step of an epoch may leave them, whose loss is that before it."""
    silent = CNN(1, 8, 8, 10)
    with torch.no_grad():
        next(silent.parameters()).fill_(torch.inf)
    with pytest.raises(Failed, match="diverged in epoch 1: its weights are not finite"):
        save(tmp_path, {"epochs": [{"loss": 1.0}]}, silent, [])
    assert not list(tmp_path.iterdir())
