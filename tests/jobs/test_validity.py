"""Models that hide what attacks go by, on a real Ray: remedied, judged by their own answers, or void."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import save_file

from jobs.main import main
from workers.attacks import RayS, Square
from workers.models.loading import read_model

pytestmark = pytest.mark.usefixtures("kept_ray")

HIDING = """
import numpy as np
import torch
from torch import nn
from safetensors.torch import load_file
from workers.models.cnn import CNN


class Hiding(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.network, self.answer = CNN(), answer
        self.network.load_state_dict(load_file(WEIGHTS))

    def forward(self, images):
        return self.answer(self.network, images)


def one_hot():
    return Hiding(lambda network, x: nn.functional.one_hot(network(x).argmax(dim=1), 10).float())


def noisy():
    return Hiding(lambda network, x: network(x + 0.05 * torch.randn_like(x)))


def numpy_noise():
    def answer(network, x):
        noise = np.random.standard_normal(x.shape).astype(np.float32)
        x += 0.05 * torch.from_numpy(noise)
        return network(x)

    return Hiding(answer)


def together():
    return Hiding(lambda network, x: network(x) - network(x).mean(dim=0))
"""


@pytest.fixture(scope="module", autouse=True)
def hiding(kept_ray: Path, mnist_folder: Path) -> None:
    weights = kept_ray / "hiding.safetensors"
    state = read_model(str(mnist_folder)).build().state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, weights)
    (kept_ray / "hiding.py").write_text(HIDING.replace("WEIGHTS", repr(str(weights))))


def verdict(out: Path) -> dict[str, Any]:
    return json.loads((out / "verdict.json").read_text())


def states(found: dict[str, Any], *but: str) -> dict[str, str]:
    """The checks that did not pass."""
    return {check["name"]: check["state"] for check in found["checks"] if check["state"] not in ("passed", *but)}


def evaluate(name: str, out: Path, *flags: str) -> int:
    given = ["evaluate", "--model", f"hiding:{name}", "--data", "mnist", "--limit", "10", "--out", str(out), *flags]
    return main(given)


def test_an_attack_searches_the_logits_that_a_model_hides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["attack", "pgd", "--model", "hiding:one_hot", "--data", "mnist", "--correct", "--limit", "24"]
    assert main([*given, "--epsilon", "0.2", "--out", str(tmp_path / "run")]) == 0
    assert "non-differentiable step: remedied" in capsys.readouterr().err
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["recorded"]
    assert recorded["remedies"]["inside"] == 1
    assert {check["state"] for check in recorded["probe"]["checks"]} == {"passed", "remedied"}
    rows = pq.read_table(tmp_path / "run" / "parts")
    assert sum(rows["success"].to_pylist()) > 18
    assert np.allclose(rows["adversarial_confidence"].to_numpy(), np.e / (np.e + 9))  # its own: of one-hot answers
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert "non-differentiable step: remedied" in (tmp_path / "page.html").read_text()
    assert main([*given, "--epsilon", "0.2", "--out", str(tmp_path / "run"), "--as-given"]) == 2

    assert main([*given, "--epsilon", "0.2", "--out", str(tmp_path / "as-given"), "--as-given"]) == 1
    assert "found, and not remedied, the model was searched as given" in capsys.readouterr().err
    assert set(pq.read_table(tmp_path / "as-given" / "parts")["status"].to_pylist()) == {"failed"}


def test_an_evaluation_gets_around_what_is_hidden(tmp_path: Path) -> None:
    assert evaluate("one_hot", tmp_path / "E", "--epsilon", "0.3") == 0
    found = verdict(tmp_path / "E")
    assert found["robust_accuracy"]["value"] == 0
    assert not found["robust_accuracy"]["void"]
    assert set(states(found, "not run").values()) == {"remedied"}
    assert {"softmax as logits", "non-differentiable step"} <= states(found).keys()
    assert found["remedies"] == "logits found inside the model"
    assert main(["verify", str(tmp_path / "E" / "runs" / found["stages"][-1]["name"])]) == 0


@pytest.mark.parametrize("name", ["noisy", "numpy_noise"])
def test_a_randomised_model_is_judged_on_fresh_draws(tmp_path: Path, name: str) -> None:
    """Also one that writes to what it is given, and whose draws depend on where in the call an image is."""
    assert evaluate(name, tmp_path / "E", "--epsilon", "0.2") == 0
    found = verdict(tmp_path / "E")
    fired = ["randomised model"] + ["other images of a call", "writes to its input"] * (name == "numpy_noise")
    assert states(found, "not run") == dict.fromkeys(fired, "remedied")
    assert found["robust_accuracy"]["value"] <= 0.3
    for stage in found["stages"]:
        assert main(["verify", str(tmp_path / "E" / "runs" / stage["name"])]) == 0
    before = (tmp_path / "E" / "images.parquet").read_bytes()
    assert evaluate(name, tmp_path / "E", "--epsilon", "0.2") == 0  # what was found out is read, not found out anew
    assert (tmp_path / "E" / "images.parquet").read_bytes() == before


def test_a_check_that_fails_voids_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for search in (Square, RayS):  # what is left is not the question
        short = partial(lambda search, **given: search(**given | {"max_queries": 20}), search)
        monkeypatch.setattr(f"jobs.threat.{search.__name__}", short)
    assert evaluate("together", tmp_path / "E", "--epsilon", "0.01") == 1
    found = verdict(tmp_path / "E")
    assert states(found, "not run") == {"other images of a call": "failed"}
    assert found["verdict"] == "evaluation invalid"
    assert found["robust_accuracy"]["void"]
    assert found["robust_accuracy"]["value"] > 0.5
    assert "rays" in {stage["name"] for stage in found["stages"]}
    assert "check failed: other images of a call" in capsys.readouterr().out
    assert "Void: 10 images within" in (tmp_path / "E" / "page.html").read_text()
