"""Images whose channels are last: ``--layout`` from the search to whatever reads the run again."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.main import main
from jobs.recorded import open_run
from jobs.report import _search
from jobs.subject import SubjectOptions, load_subject, load_training
from tests.conftest import random_images
from workers.errors import WrongInput
from workers.places import Place

MODELS = """
import torch
from torch import nn

def flat():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(360, 6), nn.Tanh(), nn.Linear(6, 3))
"""


@pytest.fixture
def last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Images ``[8, 10, 12, 3]``, which lie in ``last.npz``, and in ``first.npz`` with channels first."""
    monkeypatch.chdir(tmp_path)
    Path("laid_out.py").write_text(MODELS)
    images = random_images((10, 12, 3), 8, 5)
    np.savez("last.npz", images=images, labels=np.arange(8) % 3)
    np.savez("first.npz", images=images.transpose(0, 3, 1, 2), labels=np.arange(8) % 3)
    return images


def test_a_run_over_images_with_channels_last_is_resumed_verified_and_shown(
    last: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that flattens takes any order, so that only the pixels that a change counts tell which it was."""
    search = ["attack", "random-pixels", "--pixels", "2", "--max-queries", "20", "--model", "laid_out:flat"]
    where = ["--workers", "1", "--out", "run"]
    assert main([*search, "--data", "last.npz", *where]) == 2
    assert not Path("run").exists()
    assert "--layout hwc" in capsys.readouterr().err
    assert main([*search, "--data", "last.npz", "--layout", "hwc", *where]) == 0
    table = pq.read_table("run/parts")
    assert set(map(tuple, table["shape"].to_pylist())) == {(3, 10, 12)}
    changed = np.array(table["l0"].to_pylist(), float)
    assert np.nanmax(changed) <= 2
    assert json.loads(Path("run/run.json").read_text())["recorded"]["layout"] == "hwc"
    assert main([*search, "--data", "last.npz", "--layout", "hwc", *where]) == 0  # resumed
    assert main([*search, "--data", "first.npz", *where]) == 0  # the same pixels
    capsys.readouterr()
    assert main([*search, "--data", "last.npz", "--layout", "chw", *where]) == 2
    assert "that run has data" in capsys.readouterr().err
    assert main(["verify", "run"]) == 0
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert "--layout hwc" in Path("page.html").read_text()
    assert " --layout hwc" in " ".join(_search(open_run(Place.of("run"))))


def test_training_images_are_read_in_the_order_that_is_named(last: np.ndarray) -> None:
    np.savez("training.npz", images=255 - last, labels=np.arange(8) % 3)
    attacked = load_subject(SubjectOptions(model="laid_out:flat", data="last.npz", layout="hwc")).dataset
    training = load_training("training.npz", "last.npz", attacked)
    assert np.array_equal(training.images, 255 - last.transpose(0, 3, 1, 2))
    plain = load_subject(SubjectOptions(model="laid_out:flat", data="first.npz")).dataset
    with pytest.raises(WrongInput, match="seem to have their channels last: read them by --layout hwc"):
        load_training("training.npz", "first.npz", plain)
