"""brittle train: what it prints and leaves, of one training and of a defense that is made of two."""

import json
from pathlib import Path

import pytest

from jobs.main import main
from workers.models.loading import read_model

DIGITS = ["train", "--data", "digits", "--batch-size", "64", "--epochs", "2"]


def test_a_defense_s_flags_reach_its_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    flags = ["--defense=pgd", "--epsilon", "0.1", "--steps", "2", "--warmup", "0.5", "--out", str(model)]
    assert main([*DIGITS, *flags]) == 0
    said = json.loads((model / "model.json").read_text())["training"]
    assert said["defense"] == "pgd"
    assert (said["epsilon"], said["steps"], said["step_size"], said["warmup"]) == (0.1, 2, None, 0.5)
    printed = capfd.readouterr().out
    assert printed.startswith("epoch 1: loss ")
    assert printed.endswith(f"model in {model}\n")
    assert main([*DIGITS, "--out", str(model)]) == 2
    assert "trained with defense pgd, not none" in capfd.readouterr().err


def test_the_radius_of_a_defense_is_that_of_the_images_unless_given(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    flags = ["--defense", "pgd", "--steps", "2", "--step-size", "8/255", "--out", str(model)]
    assert main([*DIGITS, *flags]) == 0
    said = json.loads((model / "model.json").read_text())["training"]
    assert (said["epsilon"], said["step_size"]) == (0.3, 8 / 255)
    assert "L∞ ε = 0.3: the default for such images" in capfd.readouterr().err
    assert main([*DIGITS, *flags, "--epsilon", "3/10"]) == 0  # the same training
    assert "default" not in capfd.readouterr().err
    assert main([*DIGITS, *flags, "--epsilon", "0.2"]) == 2


def test_a_defense_of_two_trainings_tells_both_and_is_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    command = [*DIGITS, "--defense", "distillation", "--teacher-epochs", "1", "--out", str(model)]
    assert main(command) == 0
    first = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in first[:3]] == ["teacher, epoch 1", "epoch 1", "epoch 2"]
    weights = (model / "epoch-002.safetensors").read_bytes()
    for path in [*model.glob("epoch-*"), model / "model.json"]:
        path.unlink()  # as if the student had not begun
    assert main(command) == 0
    assert capfd.readouterr().out.splitlines() == first
    assert (model / "epoch-002.safetensors").read_bytes() == weights
    assert read_model(str(model / "teacher")).architecture["name"] == "cnn"
