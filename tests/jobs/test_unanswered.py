"""Models whose answers to some changes are not finite, tie, or have no finite gradient, by the command line."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.robustness import bound
from analysis.statistics import Rate
from jobs.main import main

MODELS = """
import torch
from torch import nn


class Planted(nn.Module):
    def __init__(self, of):
        super().__init__()
        self.linear, self.of = nn.Linear(4, 3), of
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.tensor([5.0, 0, 0]))

    def forward(self, images):
        flat = images.flatten(1)
        logits = self.linear(flat)
        bad = ((flat * 255).round() == 77).any(dim=1)
        if self.of == "ties":
            return logits.where(~bad[:, None], torch.tensor([5.0, 5.0, 0]))
        if self.of == "one":
            return torch.cat([logits[:, :1], logits[:, 1:].masked_fill(bad[:, None], torch.nan)], dim=1)
        return logits.masked_fill(bad[:, None], torch.nan)


def all_logits(): return Planted("all")
def one_logit(): return Planted("one")
def ties(): return Planted("ties")


class Root(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.linear.bias[0] += 3

    def forward(self, images):
        return self.linear(images.flatten(1).sqrt())


def root(): return Root()
"""


@pytest.fixture(scope="module")
def place(kept_ray: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (kept_ray / "planted_models.py").write_text(MODELS)
    folder = tmp_path_factory.mktemp("unanswered")
    images = np.random.default_rng(1).integers(0, 60, (30, 1, 2, 2), dtype=np.uint8)
    np.savez(folder / "calm.npz", images=images, labels=np.zeros(30, dtype=int))
    some = images.copy()
    some[[0, 7]] = 77
    np.savez(folder / "some.npz", images=some, labels=np.zeros(30, dtype=int))
    images[:, :, 0] = 0
    np.savez(folder / "black.npz", images=images, labels=np.zeros(30, dtype=int))
    return folder


@pytest.mark.parametrize("model", ["all_logits", "one_logit"])
def test_changes_without_an_answer_certify_nothing(place: Path, model: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = str(place / model)
    command = ["attack", "one-pixel-exact", "--model", f"planted_models:{model}", "--data", str(place / "calm.npz")]
    assert main([*command, "--limit", "4", "--out", run]) == 1
    assert "4 of 1024 changes were answered by numbers that are not finite" in capfd.readouterr().err
    rows = pq.read_table(f"{run}/parts").to_pylist()
    assert [row["status"] for row in rows] == ["failed"] * 4
    assert {row["adversarial_prediction"] for row in rows} == {None}
    assert main([*command, "--limit", "4", "--out", run, "--retry-failed"]) == 1  # searched again, not for ever
    assert main(["verify", run]) == 0


def test_an_image_without_an_answer_fails_by_its_id_wherever_it_stands(place: Path) -> None:
    command = ["attack", "fgsm", "--epsilon", "4/255", "--model", "planted_models:all_logits", "--shard-size", "4"]
    for name in ("calm", "some"):
        assert main([*command, "--data", str(place / f"{name}.npz"), "--out", str(place / f"fgsm-{name}")]) == (
            name == "some"
        )
    calm, some = (
        {row.pop("image_id"): row for row in pq.read_table(place / f"fgsm-{name}" / "parts").to_pylist()}
        for name in ("calm", "some")
    )
    for image in range(30):
        for row in (calm[image], some[image]):
            row.pop("seconds"), row.pop("worker")
        if image in (0, 7):
            assert some[image]["status"] == "failed"
            assert some[image]["error"] == "the clean image was answered by numbers that are not finite"
        else:
            assert some[image] == calm[image]


def test_the_clean_accuracy_of_a_page_is_that_of_its_verdict(place: Path) -> None:
    """Images without an answer may all be right, or none: 28 of 30 are, and 2 have none."""
    data, run, out = str(place / "some.npz"), str(place / "paged"), place / "paged-evaluation"
    subject = ["--model", "planted_models:all_logits", "--data", data]
    assert main(["attack", "fgsm", "--epsilon", "4/255", *subject, "--out", run]) == 1
    assert main(["report", run, "--out", str(place / "paged.html")]) == 0
    main(["evaluate", "--epsilon", "4/255", "--max-queries", "1", "--shard-size", "30", *subject, "--out", str(out)])
    verdict = json.loads((out / "verdict.json").read_text())
    rate = Rate(28, 30, unknown=2)
    assert verdict["clean_accuracy"] == json.loads(json.dumps(bound(rate)))
    for page in (place / "paged.html", out / "page.html"):
        assert f"Clean accuracy <strong>{rate.share}</strong>" in page.read_text()


def test_images_without_an_answer_do_not_keep_an_accuracy_from_chance(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = np.load(place / "calm.npz")["images"]
    images[:20] = 77
    np.savez(place / "wrong.npz", images=images, labels=np.ones(30, dtype=int))
    command = ["attack", "fgsm", "--epsilon", "4/255", "--model", "planted_models:all_logits"]
    main([*command, "--data", str(place / "wrong.npz"), "--out", str(place / "wrong")])
    said = "is 0.0% to 66.7%, which may be near chance; a model that expects normalised images needs --mean and --std"
    assert f"{said}; 20 of 30 have no answer" in capfd.readouterr().err
    assert main([*command, "--data", str(place / "calm.npz"), "--out", str(place / "right")]) == 0
    assert "chance" not in capfd.readouterr().err
    main([*command, "--data", str(place / "wrong.npz"), "--limit", "5", "--out", str(place / "nothing")])
    assert "chance" not in capfd.readouterr().err  # no image has an answer: nothing is known


def test_an_evaluation_does_not_hold_on_changes_without_an_answer(place: Path) -> None:
    out = place / "evaluation"
    command = ["evaluate", "--pixels", "1", "--require", "0.9", "--model", "planted_models:all_logits"]
    assert main([*command, "--data", str(place / "calm.npz"), "--out", str(out)]) == 1
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["verdict"] not in ("holds", "broken")
    assert verdict["certified_accuracy"]["images"] == 0
    assert verdict["images"]["failed"] == 30
    errors = pq.read_table(out / "images.parquet")["error"].to_pylist()
    assert all("changes were answered by numbers that are not finite" in error for error in errors)


def test_certificates_that_rest_on_ties_are_said(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, data = str(place / "ties"), str(place / "calm.npz")
    said = "3 of 3 certificates rest on ties: 12 changes in all"
    attack = ["attack", "one-pixel-exact", "--model", "planted_models:ties", "--data", data, "--limit", "3"]
    assert main([*attack, "--out", run]) == 0
    assert said in capfd.readouterr().err
    for command in ("verify", "status"):
        assert main([command, run]) == 0
        assert said in capfd.readouterr().out
    out = place / "tied-evaluation"
    main(
        [
            "evaluate",
            "--pixels",
            "1",
            "--model",
            "planted_models:ties",
            "--data",
            data,
            "--limit",
            "3",
            "--out",
            str(out),
        ]
    )
    assert "3 of 3 certificates rest on ties" in " ".join(json.loads((out / "verdict.json").read_text())["reasons"])


def test_derivatives_that_are_not_finite_are_said(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["attack", "pgd", "--model", "planted_models:root", "--data", str(place / "black.npz"), "--limit", "4"]
    assert main([*command, "--epsilon", "1/255", "--steps", "4", "--out", str(place / "root")]) == 0
    said = capfd.readouterr().err
    assert "% of the derivatives were not finite: they counted as 0" in said
    assert "finite gradients: remedied" in said
    assert "zero gradients" not in said
