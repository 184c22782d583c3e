"""Models that are not the seed's, through every attack on a real Ray, `verify` and the page."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.launch import Selection, Where, WorkerHost, launch
from jobs.main import main
from jobs.subject import SubjectOptions, load_subject
from tests.conftest import random_images
from tests.workers.test_attacks import FEWER, SMALL
from workers.attacks import TOOLKITS, attack_named
from workers.places import Place

MODELS = """
import torch
from torch import nn

class Skipping(nn.Module):
    '''No chain: two residual blocks with batch normalisation, average pooling, five classes.'''
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.down, self.linear = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, stride=2), nn.Linear(8, 5)
    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = self.down(x + torch.relu(self.second(x)))
        return self.linear((x + torch.sigmoid(x)).mean(dim=(2, 3)))

def skipping():
    torch.manual_seed(0)
    return Skipping()

def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(40, 6), nn.Tanh(), nn.Linear(6, 3))
"""
SHAPES = {"skipping": (3, 7, 6), "tiny": (1, 8, 5)}
FOREIGN = {"torchattacks:PGD": {"eps": 0.1, "steps": 3}, "foolbox:LinfPGD": {"epsilon": 0.1, "steps": 3}}
CASES: dict[str, dict[str, Any]] = SMALL | (
    FOREIGN if all(importlib.util.find_spec(toolkit) for toolkit in TOOLKITS) else {}
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("shapes")
    (home / "other_shapes.py").write_text(MODELS)
    with contextlib.chdir(home):
        yield home


@pytest.fixture(scope="module")
def host(home: Path) -> Iterator[WorkerHost]:
    """One pool for all runs."""
    with WorkerHost(Where(workers=1)) as host:
        yield host


@pytest.mark.parametrize("model", SHAPES)
def test_every_attack_verify_and_the_page(
    model: str, home: Path, host: WorkerHost, capsys: pytest.CaptureFixture[str]
) -> None:
    images = random_images(SHAPES[model], 8, 90)
    options = SubjectOptions(model=f"other_shapes:{model}", data=f"{model}.npz")
    np.savez(options.data, images=images, labels=np.zeros(8, dtype=int))
    labels = load_subject(options).extremes[0]
    np.savez(options.data, images=images, labels=labels)
    subject, runs = load_subject(options), []
    for name, parameters in CASES.items():
        attack = attack_named(name.split()[0])(**parameters)
        out = home / "runs" / model / name.replace(" ", "-").replace(":", "-")
        selection = Selection(limit=2 if name in FEWER else 5, target=None if name.startswith("foolbox") else "random")
        (summary,) = launch((attack,), subject, selection, Place.of(out), host)
        assert not summary.counts.get("failed"), summary.first_error  # type: ignore[call-overload]
        assert main(["verify", str(out)]) == 0
        table = pq.read_table(out / "parts")
        assert table["shape"][0].as_py() == list(SHAPES[model])
        runs.append(str(out))
    assert main(["report", *runs, "--out", f"{model}.html"]) == 0
    page = Path(f"{model}.html").read_text()
    assert "×".join(map(str, SHAPES[model])) in page
    assert all(attack_named(name.split()[0]).NAME in page for name in CASES)
