"""brittle detect on a real Ray: detectors trained, calibrated, attacked, judged; resumed, and answers to odd scores."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cluster.store import RunFolder
from jobs import detect
from jobs.detect import verdict_of
from jobs.guard import Named, score, split_images
from jobs.main import main
from tests.jobs.test_typed import require_made_by
from workers.detectors.guarded import Guarded
from workers.errors import WrongInput
from workers.models.loading import read_model
from workers.places import Place
from workers.sources import load_data

ROOT = Path(__file__).parent.parent.parent
LIMIT = 12

SCORES = """
import torch
class Score:
    def __init__(self, score, **more):
        self.score = score
        vars(self).update(more)
def constant(classifier):
    return Score(lambda images: torch.zeros(len(images)))
def careless(classifier):
    return Score(lambda images: torch.rand(len(images)))
def rounded(classifier):
    return Score(lambda images: images.numpy().round().reshape(len(images), -1).sum(axis=1), differentiable=False)
"""


def command(model: Path, out: Path, *detectors: str, flags: tuple[str, ...] = ()) -> list[str]:
    return [
        *("detect", *detectors, "--model", str(model), "--data", "digits", "--foreign", "none", "--limit", str(LIMIT)),
        *("--steps", "20", "--out", str(out), *flags),
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "model"
    assert main(["train", "--data", "digits", "--out", str(folder), "--epochs", "10", "--batch-size", "64"]) == 0
    return folder


DETECTORS = ("vae-kl,epochs=3", "random", "scores6:constant", "scores6:rounded")


@pytest.fixture(scope="module")
def judged(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of a trained detector, of a control and of two of a user's own."""
    folder = tmp_path_factory.mktemp("detect")
    (folder / "scores6.py").write_text(SCORES)
    out = folder / "out"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    run = subprocess.run(
        [sys.executable, "-m", "jobs.main", *command(model, out, *DETECTORS)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (folder / "told.txt").write_text(run.stdout)
    return out


def reports(out: Path) -> dict[str, dict[str, Any]]:
    return {found["detector"]: found for found in json.loads((out / "verdict.json").read_text())["detectors"]}


def rows(place: Path) -> list[dict[str, Any]]:
    folder = RunFolder(Place.of(place))
    (table,) = folder.tables(folder.plan())
    return table.to_pylist()


def test_the_trained_detector(judged: Path, model: Path) -> None:
    found = reports(judged)["vae-kl,epochs=3"]
    cells = {cell["attack"]: cell for cell in found["cells"]}
    assert list(cells) == [
        *("ifgsm", "jsma", "ddn", "ddn-targeted", "pixel-beam", "adaptive-joint", "adaptive-selective"),
        *("adaptive-orthogonal", "adaptive-matching", "adaptive-penalty", "adaptive-targeted", "adaptive-beam"),
        *("adaptive-de", "adaptive-selective-at-1", "from-random", "from-scores6-constant", "from-scores6-rounded"),
    ]
    assert [name for name, cell in cells.items() if cell["targeted"]] == ["jsma", "ddn-targeted", "adaptive-targeted"]
    assert cells["from-random"]["kind"] == "transfer"
    checks = [check["name"] for check in found["checks"]]
    assert checks == [
        *("gradients present", "steps suffice", "monotone in the budget", "unbounded search succeeds"),
        *("adaptive attack unbeaten", "false alarms at 5%", "false alarms at 1%"),
    ]
    assert found["verdict"] == "broken"
    assert "fooled and not flagged by the worst of 17 attacks" in found["reasons"][0]
    place = judged / "vae-kl-epochs-3"
    guarded = read_model(str(place / "guarded")).build()
    assert isinstance(guarded, Guarded)
    split = split_images(360, 0)
    assert not set(split.calibration) & set(split.test)
    calibration = pq.read_table(place / "clean-calibration.parquet")
    assert calibration["image_id"].to_pylist() == split.calibration.tolist()
    threshold = found["thresholds"][0]["value"]
    assert threshold == pytest.approx(guarded.threshold, rel=1e-6)
    assert np.sort(calibration["score"].to_numpy())[-9] == pytest.approx(threshold)  # ⌊181 · 5 %⌋ = 9 stay out
    attacked = rows(place / "runs/adaptive-joint")
    assert len(attacked) == LIMIT
    assert {row["image_id"] for row in attacked} <= set(split.test.tolist())
    again = {row["image_id"]: row for row in pq.read_table(place / "scores/adaptive-joint.parquet").to_pylist()}
    evaded = [
        again[row["image_id"]]["prediction"] != row["label"] and not again[row["image_id"]]["score"] > threshold
        for row in attacked
    ]
    assert sum(evaded) == cells["adaptive-joint"]["at"][0]["evaded"]["images"]
    assert sum(evaded) > LIMIT / 2
    lenient = read_model(str(place / "guarded-at-1")).build()
    assert isinstance(lenient, Guarded)
    assert lenient.threshold == pytest.approx(found["thresholds"][1]["value"], rel=1e-6)
    half = next(place.glob("runs/adaptive-*-0.*"))
    assert all(row["l2"] <= float(half.name.rpartition("-")[2]) + 1e-3 for row in rows(half))
    assert found["seed"]["adversarial"]["of"] == LIMIT
    lengths = [row["l2"] for row, through in zip(attacked, evaded, strict=True) if through]
    (said,) = [reason for reason in found["reasons"] if reason.startswith("at any distance")]
    if "adaptive-joint " in said:
        assert f"at a median L2 of {np.median(lengths):.3g}" in said
    assert " times that of ddn on the classifier alone" in said


def test_the_threat_follows_from_the_undefended_classifier(judged: Path) -> None:
    threat = json.loads((judged / "verdict.json").read_text())["threat"]
    lengths = [row["l2"] for row in rows(judged / "runs/ddn") if row["success"]]
    epsilon = pytest.approx(1.5 * np.median(lengths), abs=1e-3)
    assert threat == {"norm": "l2", "epsilon": epsilon, "squared_levels": int((255 * threat["epsilon"]) ** 2)}


def test_controls_and_odd_scores(judged: Path) -> None:
    found = reports(judged)
    for cell in found["random"]["cells"]:
        if cell["auroc"]:
            low, high = cell["auroc"]["interval"]
            assert low - 0.1 < 0.5 < high + 0.1
    constant = found["scores6:constant"]
    assert constant["verdict"] == "broken"
    assert "the score is 0 for all 180 calibration images: it tells no image from another" in constant["reasons"]
    rounded = found["scores6:rounded"]
    assert any("a stand-in that explains" in reason for reason in rounded["reasons"])


def test_page_and_verdict_are_told(judged: Path, model: Path) -> None:
    require_made_by(judged / "page.html", detect.app, command(model, judged, *DETECTORS))
    page, told = (judged / "page.html").read_text(), (judged.parent / "told.txt").read_text()
    for name, report in reports(judged).items():
        assert name in page
        assert f"{name}: {report['verdict']}" in told
    assert "://" not in page.replace("http://www.w3.org", "")


def test_status_is_told_of_all_its_runs(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(judged)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"runs/ifgsm: complete, {LIMIT} of {LIMIT} rows, ")
    assert sum(": complete, " in line for line in told) == len(list(judged.glob("**/run.json"))) > 20
    assert told[-1] == "verdict: broken"


def test_runs_behind_a_detector_verify(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(judged.parent))
    for name in ("vae-kl-epochs-3/runs/adaptive-joint", "scores6-rounded/runs/adaptive-beam", "runs/ddn"):
        assert main(["verify", str(judged / name)]) == 0


def test_a_second_start_computes_nothing_again(
    judged: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(judged.parent))

    def stamps() -> dict[str, int]:
        rewritten = ("verdict.json", "page.html", "cells.parquet", ".lock")
        files = [path for path in judged.rglob("*") if path.is_file() and path.name not in rewritten]
        files = [path for path in files if path.parent.name != "figures"]
        return {str(path): path.stat().st_mtime_ns for path in files}

    before, verdict = stamps(), (judged / "verdict.json").read_text()
    assert main(command(model, judged, *DETECTORS, flags=("--require", "holds"))) == 1
    assert stamps() == before
    assert (judged / "verdict.json").read_text() == verdict
    assert "workers" not in capsys.readouterr().err
    assert main(command(model, judged, *DETECTORS, flags=("--seed", "1"))) == 2
    assert "that detection has seed 0, this start 1" in capsys.readouterr().err
    assert main(command(model, judged, "random")) == 2


def test_a_killed_one_goes_on(model: Path, judged: Path, tmp_path: Path) -> None:
    """Killed in its training and in its searches, it ends with the same numbers."""
    whole = ("vae-kl,epochs=3",)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    waits = [
        lambda: any((tmp_path / "out/networks").glob("*/epoch-001.safetensors")),
        lambda: (tmp_path / "out/vae-kl-epochs-3/runs/adaptive-selective/run.json").exists(),
    ]
    for there in waits:
        with subprocess.Popen(
            [sys.executable, "-m", "jobs.main", *command(model, tmp_path / "out", *whole)],
            cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        ) as killed:  # fmt: skip
            while not there() and killed.poll() is None:
                time.sleep(0.01)
            os.killpg(killed.pid, signal.SIGKILL)
    assert main(command(model, tmp_path / "out", *whole)) == 0
    (found,) = reports(tmp_path / "out").values()
    whole_one = reports(judged)["vae-kl,epochs=3"]
    assert found["cells"] == [cell for cell in whole_one["cells"] if cell["kind"] != "transfer"]
    for part in ("thresholds", "shifts", "seed", "auroc"):
        assert found[part] == whole_one[part]


def test_scores_are_of_the_images_that_are_asked(judged: Path, model: Path, tmp_path: Path) -> None:
    subject = read_model(str(model)).build()
    named, images, ids = Named.of("max-softmax"), load_data("digits", "test").images[:20], np.arange(20)
    detector, kept = named.recipe.build(subject, images.shape[1:]), tmp_path / "scores.parquet"
    first = score(named, detector, images, ids, kept, 0)
    written = kept.stat().st_mtime_ns
    assert score(named, detector, images, ids, kept, 0).equals(first)
    assert kept.stat().st_mtime_ns == written
    assert not score(named, detector, images[::-1].copy(), ids, kept, 0).equals(first)


def test_what_is_not_judged_is_said(judged: Path) -> None:
    whole = json.loads((judged / "verdict.json").read_text())
    assert whole["verdict"] == "broken"
    assert verdict_of([], ["a", "b"])["verdict"] == "untested"
    assert verdict_of([], ["a", "b"])["reasons"] == ["a: not judged", "b: not judged"]


def test_a_model_that_rejects_images_itself_is_refused(
    judged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(judged / "vae-kl-epochs-3/guarded", tmp_path / "out", "random")) == 2
    assert "rejects images itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_evaluation_counts_rejected_images_as_wrong(judged: Path, tmp_path: Path) -> None:
    guarded = judged / "vae-kl-epochs-3/guarded"
    flags = ["--model", str(guarded), "--data", "digits", "--epsilon", "0.1", "--limit", "40", "--max-queries", "40"]
    assert main(["evaluate", *flags, "--out", str(tmp_path / "out")]) == 0
    found, test = json.loads((tmp_path / "out/verdict.json").read_text()), load_data("digits", "test")
    built, images = read_model(str(guarded)).build(), torch.tensor(test.images[:40]).float() / 255
    assert isinstance(built, Guarded)
    rejected = built.excess(images).numpy() > 0
    right = built(images).argmax(dim=1).numpy() == test.labels[:40]
    assert rejected.any()
    assert found["clean_rejected"]["images"] == rejected.sum()
    assert found["robust_accuracy"]["images"] <= (right & ~rejected).sum()
    assert found["clean_accuracy"]["images"] == (right & ~rejected).sum()


def test_a_careless_random_detector_is_refused(
    model: Path, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(judged.parent))
    assert main(command(model, tmp_path / "out", "scores6:careless")) == 2
    assert "gives the same images other scores at a second call" in capsys.readouterr().err


def test_a_split_is_random_and_by_image() -> None:
    split = split_images(10_000, 0)
    assert (len(split.calibration), len(split.test)) == (5000, 5000)
    assert sorted([*split.calibration, *split.test]) == list(range(10_000))
    assert 0.45 < (split.calibration < 5000).mean() < 0.55
    assert not np.array_equal(split.calibration, split_images(10_000, 1).calibration)
    with pytest.raises(WrongInput, match="expected 40 at least"):
        split_images(39, 0)


def test_training_seeds_follow_one_another(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = Named.of("vae-kl,epochs=3,training_seed=7").trained_anew(3)
    assert [one.text for one in named] == [f"vae-kl,epochs=3,training_seed={seed}" for seed in (7, 8, 9)]
    assert len({one.recipe.networks()["vae"].key for one in named}) == 3
    assert Named.of("random").trained_anew(3) == [Named.of("random")]
    assert main(command(model, tmp_path / "out", "random", flags=("--training-seeds", "2"))) == 2
    assert "--training-seeds: none of random trains a network" in capsys.readouterr().err


def test_guides_are_let_through(judged: Path) -> None:
    guarded = read_model(str(judged / "vae-kl-epochs-3/guarded")).build()
    assert isinstance(guarded, Guarded)
    labels = load_data("digits", "test").labels
    assert guarded.guides.shape[1] == 10
    assert set(guarded.guides.argmax(dim=1).tolist()) <= set(labels.tolist())
    assert bool(torch.isfinite(guarded.guides).all())
