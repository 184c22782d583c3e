"""The look at a model before it is searched: by a worker, once for each model, with true progress."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from torch import nn

import jobs.launch
import jobs.progress
from jobs.main import main

pytestmark = pytest.mark.usefixtures("kept_ray")

MODELS = """
import os
import time
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent


class Linear(nn.Module):
    def __init__(self, on_call=lambda images: None):
        super().__init__()
        self.linear, self.on_call = nn.Linear(64, 10), on_call
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
            self.linear.bias.zero_()

    def forward(self, images):
        self.on_call(images)
        return self.linear(images.flatten(1))


def noted(images):
    if len(images) > 2:  # two are tried when it is loaded
        with (HERE / "calls").open("a") as file:
            file.write(f"{os.getpid()} {len(images)}\\n")


def noting():
    return Linear(noted)


def slow():
    return Linear(lambda images: time.sleep(0.3 * (len(images) > 2)))


def fatal(images):
    noted(images)
    if len(images) > 2 and len((HERE / "calls").read_text().splitlines()) <= 3:
        os._exit(3)


def dying():
    return Linear(fatal)


def error(images):
    if len(images) > 2:
        raise RuntimeError("no\\nsuch thing")


def raising():
    return Linear(error)
"""


@pytest.fixture
def home(kept_ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run; with a cache of its own."""
    (kept_ray / "looked.py").write_text(MODELS)
    (kept_ray / "calls").unlink(missing_ok=True)
    monkeypatch.setenv("BRITTLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("data.npz", images=rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), labels=np.arange(40) % 10)
    return kept_ray


def attack(model: str, out: str, *flags: str, name: str = "fgsm") -> int:
    given = ["--model", f"looked:{model}", "--data", "data.npz", "--limit", "4", "--out", out, *flags]
    return main(["attack", name, *given])


def recorded(out: str) -> dict[str, Any]:
    return json.loads((Path(out) / "run.json").read_text())["recorded"]["probe"]


def calls(home: Path) -> list[str]:
    return (home / "calls").read_text().splitlines()


def looks() -> list[Path]:
    return sorted(Path("cache/looks").glob("*"))


def test_a_model_is_looked_at_once_by_a_worker(home: Path) -> None:
    assert attack("noting", "first") == 0
    first = calls(home)
    assert str(os.getpid()) not in {line.split()[0] for line in first}
    (kept,) = looks()
    assert attack("noting", "second") == 0
    again = calls(home)[len(first) :]
    assert len(again) < len(first)  # the search alone
    assert recorded("second") == recorded("first")
    assert json.loads(kept.read_text())["found"] == recorded("first")
    assert attack("noting", "third", "--max-queries", "10", name="square") == 0  # by answers alone: it says nothing
    weights = nn.Linear(64, 10).state_dict()
    safetensors.torch.save_file({f"linear.{name}": value for name, value in weights.items()}, "w.safetensors")
    assert attack("noting", "other", "--weights", "w.safetensors") == 0
    assert len(looks()) == 3


def test_a_broken_cache_is_looked_at_again_and_one_that_cannot_be_written_is_no_error(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attack("noting", "first") == 0
    (kept,) = looks()
    whole = kept.read_text()
    for broken in ("", "{", "[]", "null", whole.replace('"passed"', '"fine"'), json.dumps({"found": {}})):
        kept.write_text(broken)
        before = len(calls(home))
        assert attack("noting", f"again-{len(broken)}") == 0
        assert len(calls(home)) - before > 10
        assert json.loads(kept.read_text())["made_from"] == json.loads(whole)["made_from"]
    capsys.readouterr()
    Path("file").write_text("in the way")
    monkeypatch.setenv("BRITTLE_CACHE", "file/cache")
    assert attack("noting", "unwritable") == 0
    assert "cache" not in capsys.readouterr().err
    assert [check["name"] for check in recorded("unwritable")["checks"]] == [
        check["name"] for check in recorded("first")["checks"]
    ]


def test_progress_counts_the_calls_of_a_slow_model(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs.progress, "LINE_SECONDS", 0.5)
    assert attack("slow", "run") == 0
    lines = re.findall(r"a look at the model: (\d+)/(\d+) calls", capsys.readouterr().err)
    done, planned = ([int(line[part]) for line in lines] for part in (0, 1))
    assert len(set(done)) >= 3
    assert done == sorted(done)
    assert len(set(planned[1:])) == 1  # known from the start, of a model that hides nothing
    assert done[-1] <= planned[-1]


def test_a_model_that_ends_its_process_is_met_as_a_search_meets_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attack("dying", "run") == 0
    err = capsys.readouterr().err
    assert err.count("the look at the model failed, and is tried again: its worker's process died") == 2
    assert re.search(r"^model: not run: could not be looked at: its worker's process died .*, 3 times of 3$", err, re.M)
    assert not looks()  # nothing was found out that would hold another time
    assert {line.split()[1] for line in calls(home)[:3]} == {"32"}
    assert attack("raising", "raised") == 1
    assert "model: not run: could not be looked at: RuntimeError: no such thing\n" in capsys.readouterr().err
    assert not looks()


def test_what_is_wrong_is_said_before_ray_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def started(*given: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(jobs.launch, "open_session", started)
    monkeypatch.setattr(jobs.launch, "SearchPool", started)
    for flags in (["--ids", "99"], ["--label", "11"], ["--target", "10"], ["--target", "x"]):
        assert attack("noting", "run", *flags) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    given = ["--model", "looked:noting", "--data", "data.npz"]
    assert main(["evaluate", *given, "--ids", "99", "--out", "E"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path("run").exists()
    assert not Path("E").exists()
    assert not (home / "calls").exists()
