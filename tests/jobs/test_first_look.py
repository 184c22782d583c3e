"""Detectors and models that misbehave, met before any search: refused in one line, or said; nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.main import main
from workers.images import Dataset
from workers.models.loading import read_model

ROOT = Path(__file__).parent.parent.parent

DETECTORS = """
import os, sys
import numpy as np
import torch

def energy(images):
    return images.diff(dim=3).abs().flatten(1).mean(dim=1)

class Detector:
    def __init__(self, score, **more):
        self.score = score
        vars(self).update(more)

def zscore(classifier):
    def score(images):
        found = energy(images)
        return (found - found.mean()) / (found.std(correction=0) + 1e-6)
    return Detector(score)

def rank(classifier):
    return Detector(lambda images: energy(images).argsort().argsort().float())

def min_max(classifier):
    return Detector(lambda images: (energy(images) - energy(images).min()) / energy(images).max())

class Running:
    mean = 0.0
    def score(self, images):
        self.mean = 0.9 * self.mean + 0.1 * energy(images).mean()
        return energy(images) - self.mean

def running(classifier):
    return Running()

class First:
    mean = None
    def score(self, images):
        self.mean = energy(images).mean() if self.mean is None else self.mean
        return energy(images) - self.mean

def first_call(classifier):
    return First()

def copies(classifier):
    def score(images):
        same = torch.cdist(images.flatten(1), images.flatten(1)) < 1e-6
        return energy(images) + (same.sum(dim=1) > 1)
    return Detector(score)

def nan(classifier):
    return Detector(lambda images: energy(images) * torch.nan)

def some_inf(classifier):
    return Detector(lambda images: energy(images) / (images[:, 0, 0, 3] > 0.1))

def careless(classifier):
    return Detector(lambda images: torch.rand(len(images)))

def numpy_noise(classifier):
    return Detector(lambda images: energy(images).numpy() + np.random.rand(len(images)), differentiable=False)

def wrong_shape(classifier):
    return Detector(lambda images: energy(images)[:, None])

def squeezed(classifier):
    return Detector(lambda images: energy(images).mean())

def raises(classifier):
    def score(images):
        raise IndexError("no such thing")
    return Detector(score)

def exits(classifier):
    return Detector(lambda images: sys.exit(3))

def exits_at_once(classifier):
    return Detector(lambda images: os._exit(3))

def prints(classifier):
    print("detector made")
    return Detector(lambda images: print("detector asked") or energy(images)[:, None])

def repairs_by_neighbours(classifier):
    return Detector(energy, predict=lambda images: classifier(images) - classifier(images).mean(dim=0))

def repairs_to_nan(classifier):
    return Detector(energy, predict=lambda images: classifier(images) * torch.nan)
"""

REFUSED = {
    "zscore": "gives the same images other scores alone",
    "rank": "gives the same images other scores alone",
    "min_max": "gives the same images other scores alone",
    "running": "gives the same images other scores at a second call",
    "first_call": "gives the same images other scores when others are asked about first",
    "copies": "gives the same images other scores among copies of it",
    "nan": "the scores of 64 of 64 clean images are not finite numbers",
    "some_inf": "clean images are not finite numbers",
    "careless": "gives the same images other scores at a second call",
    "numpy_noise": "gives the same images other scores at a second call",
    "wrong_shape": "score must return [64], got [64, 1]",
    "squeezed": "score must return [64], got []",
    "raises": "no such thing",
    "exits": "fails on images of [1, 8, 8]: 3",
    "exits_at_once": "fails on images of [1, 8, 8]: 3",
    "prints": "score must return [64], got [64, 1]",
    "repairs_by_neighbours": "gives the same images other predictions alone",
    "repairs_to_nan": "predict must return logits [16, 4], got logits that are not finite",
}

MODELS = """
import os, sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, change=lambda logits: logits):
        super().__init__()
        self.linear = nn.Linear(64, 4, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 256).sin().view(4, 64))
        self.change = change
    def forward(self, images):
        return self.change(self.linear(images.flatten(1)))

def net():
    return Net()

def batch_mean():
    return Net(lambda logits: logits - logits.mean(dim=0))

def low_logit():
    return Net(lambda logits: (logits - logits.mean(dim=0)).index_fill(1, torch.tensor([0]), -1e4))

def random_low_logit():
    return Net(lambda logits: torch.randn(logits.shape).index_fill(1, torch.tensor([0]), -1e9))

def large_calls():
    return Net(lambda logits: logits + (len(logits) >= 48))

def draws():
    return Net(lambda logits: logits + torch.randn(logits.shape))

def anew():
    torch.seed()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        torch.seed()
        self.weight = torch.rand(64, 4)
    def forward(self, images):
        return images.flatten(1) @ self.weight

def anew_beside():
    return Beside()

class Cached(Net):
    mean = None
    def forward(self, images):
        self.mean = images.mean() if self.mean is None else self.mean
        return super().forward(images - self.mean)

def cached():
    return Cached()

torch.manual_seed(11)
def seeded_by_its_module():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

def exits():
    return Net(lambda logits: sys.exit(3))

def exits_at_once():
    return Net(lambda logits: os._exit(3))

def exits_when_built():
    os._exit(3)

def exits_later():
    return Net(lambda logits: logits if len(logits) < 17 else os._exit(3))

def prints():
    print("made", flush=True)
    os.system("echo by a shell")
    def change(logits):
        print("asked")
        os.write(1, b"asked by its descriptor\\n")
        return logits
    return Net(change)

print("imported")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first_look")
    (folder / "misled_detectors.py").write_text(DETECTORS)
    (folder / "misled_models.py").write_text(MODELS)
    for split in ("train", "test"):
        rng = np.random.default_rng(len(split))
        images = rng.integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
        data = Dataset(images, np.arange(100) % 4, split, "noise")
        (folder / "data").mkdir(exist_ok=True)
        np.savez(folder / "data" / f"{split}.npz", images=data.images, labels=data.labels)
    return folder


@pytest.fixture
def inside(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.chdir(tmp_path)
    return home


def detect(home: Path, *detectors: str, model: str = "misled_models:net") -> list[str]:
    flags = ["--model", model, "--data", str(home / "data"), "--foreign", "none", "--limit", "6", "--out", "out"]
    return ["detect", *(f"misled_detectors:{name}" for name in detectors), *flags]


@pytest.mark.parametrize("name", REFUSED)
def test_a_detector_is_refused_before_any_search(name: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(detect(inside, name)) == 2
    told = capsys.readouterr()
    assert f"misled_detectors:{name}" in told.err.splitlines()[-1]
    assert REFUSED[name] in told.err.splitlines()[-1]
    assert told.out == ""
    assert not Path("out").exists()


def test_the_same_whichever_number_of_images_is_attacked(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for limit in ("10", "20"):
        assert main([*detect(inside, "zscore"), "--limit", limit]) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]


MISLED = {
    "batch_mean": "alone",
    "draws": "at a second call",
    "low_logit": "alone",
    "random_low_logit": "at a second call",
    "large_calls": "among more images",
}


@pytest.mark.parametrize(("name", "said"), MISLED.items())
@pytest.mark.parametrize("command", ["detect", "transfer"])
def test_a_model_whose_answer_is_not_the_image_s_own_is_refused(
    name: str, said: str, command: str, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"misled_models:{name}"
    arguments = detect(inside, "careless", model=model)
    if command == "transfer":
        models = f"misled_models:net,{model}"
        arguments = ["transfer", "--models", models, "--data", str(inside / "data"), "--out", "out"]
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert f"the model answers the same images differently {said}" in told.err
    assert not Path("out").exists()


def attack(home: Path, name: str, *flags: str) -> list[str]:
    return ["attack", "fgsm", "--model", f"misled_models:{name}", "--data", str(home / "data"), "--out", "out", *flags]


ANEW = {
    "anew": "gives other weights at each call (1.bias): seed what it draws",
    "anew_beside": "built again, the model answers the same images differently",
    "cached": "built again, the model answers the same images differently",
    "exits": "the model fails on images of 1×8×8: SystemExit: 3",
    "exits_at_once": "the model fails on images of 1×8×8: SystemExit: 3",
    "exits_when_built": "--model misled_models:exits_when_built: SystemExit: 3",
}


@pytest.mark.parametrize("name", ANEW)
def test_a_model_is_refused_before_any_search(name: str, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(attack(inside, name)) == 2
    told = capsys.readouterr()
    assert ANEW[name] in told.err.splitlines()[-1]
    assert told.out == ""
    assert not Path("out").exists()


def test_weights_that_a_module_seeds_once_are_taken(inside: Path) -> None:
    """The first call after the import is the one that every process makes."""
    found = set()
    for _ in range(3):
        sys.modules.pop("misled_models", None)
        found.add(read_model("misled_models:seeded_by_its_module").content_hash)
    assert len(found) == 1


def test_a_model_that_ends_the_process_in_a_command_is_named(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(attack(inside, "exits_later", "--correct")) == 1
    told = capsys.readouterr()
    assert "code of yours, the model's perhaps, ended the process with code 3" in told.err.splitlines()[-1]
    assert told.out == ""
    assert not Path("out").exists()


def test_what_a_model_prints_is_not_among_the_results(inside: Path) -> None:
    """In a command of its own: the descriptor is the process's."""
    words = attack(inside, "prints", "--limit", "2", "--correct", "--workers", "1")
    run = subprocess.run(
        [sys.executable, "-m", "jobs.main", *words],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{inside}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first.startswith("fgsm ")
    assert second.startswith("results in out")
    for printed in ("imported", "made", "by a shell", "asked", "asked by its descriptor"):
        assert printed in run.stderr.splitlines()
