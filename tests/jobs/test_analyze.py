"""brittle analyze from real runs: neighbours again by brute force, a second start, what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from analysis.replay import stored_images
from cluster.store import RunFolder
from jobs import analyze
from jobs.main import main
from tests.conftest import random_images
from tests.jobs.test_typed import require_made_by
from workers.models.loading import read_model
from workers.places import Place
from workers.sources import load_data

pytestmark = pytest.mark.usefixtures("kept_ray")

FIT = ("--points", "300", "--perplexity", "12", "--neighbours", "6")
SMALL = (*FIT, "--limit", "20")

OWN = """
import torch
from torch import nn

def colour():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(168, 5))

def headless():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, (7, 6)), nn.Flatten())
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, kept_ray: Path) -> list[Path]:
    """Two attacks of one CNN for the 8×8 digits, each with successes and failures."""
    folder = tmp_path_factory.mktemp("analyze")
    how = ("--epochs", "6", "--batch-size", "64")
    assert main(["train", "--data", "digits", "--out", str(folder / "model"), *how]) == 0
    which = ("--model", str(folder / "model"), "--data", "digits", "--limit", "30")
    assert main(["attack", "fgsm", *which, "--epsilon", "0.1", "--out", str(folder / "fgsm")]) == 0
    jsma = ("--target", "all", "--max-steps", "4")
    assert main(["attack", "jsma", *which, *jsma, "--out", str(folder / "JSMA_all")]) == 0
    return [folder / "fgsm", folder / "JSMA_all"]


@pytest.fixture(scope="module")
def done(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analysis") / "out"
    assert main(["analyze", *map(str, runs), *SMALL, "--out", str(out)]) == 0
    return out


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "analysis.json").read_text())
    return found


def test_files_of_both_runs(done: Path, runs: list[Path]) -> None:
    require_made_by(done / "page.html", analyze.app, ["analyze", *map(str, runs), *SMALL, "--out", str(done)])
    names = set(json.loads((done / "exhibits.json").read_text())["files"])
    for run in ("fgsm", "jsma-all"):
        for figure in ("tsne", "pca", "activation-change", "activation-maps"):
            assert {f"{figure}-{run}.png", f"{figure}-{run}.svg"} <= names
    for table in ("tsne-map", "pca-map", "neighbours", "activation-change"):
        rows = pq.read_table(done / f"{table}.parquet")
        assert len((done / f"{table}.csv").read_text().splitlines()) == len(rows) + 1
    assert all((done / name).is_file() for name in names)
    assert not list(done.rglob(".*"))
    page = (done / "page.html").read_text()
    assert all(key in page for key in ("tsne-map", "pca-map", "neighbours", "activation-change", "activation-maps"))


def test_neighbours_by_brute_force(done: Path, runs: list[Path]) -> None:
    training, test = load_data("digits", "train"), load_data("digits", "test")
    model = read_model(str(runs[0].parent / "model")).build()

    def seen(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            value = torch.tensor(images).float() / 255
            for layer in (model.conv1, model.conv2, model.conv3):
                value = torch.relu(layer(value))
        return value.flatten(1).double().numpy()

    sample = np.sort(np.random.default_rng(0).permutation(len(training))[:300])
    reference, labels = seen(training.images[sample]), training.labels[sample]
    stored = {}
    for place in runs:
        folder = RunFolder(Place.of(place))
        (rows,) = folder.tables(folder.plan())
        for row, image in zip(rows.to_pylist(), stored_images(rows), strict=True):
            stored[place.name, row["image_id"], row["target"]] = row, image
    table = pq.read_table(done / "neighbours.parquet").to_pylist()
    assert {row["run"] for row in table} == {"fgsm", "JSMA_all"}
    assert len({(row["run"], row["image_id"]) for row in table}) == len(table)  # one row an image
    for row in table:
        one, image = stored[row["run"], row["image_id"], row["target"]]
        assert (row["success"], row["prediction"]) == (one["success"], one["adversarial_prediction"])
        target = "" if row["target"] is None else row["target"]
        assert row["row"] == f"{row['run']}/{row['image_id']}/{target}/{one['params_hash'][:8]}"
        for what, shown, wanted in (
            ("clean_label", test.images[row["image_id"]], row["label"]),
            ("adversarial_prediction", image, row["prediction"]),
            ("adversarial_label", image, row["label"]),
            ("adversarial_target", image, row["target"]),
        ):
            apart = np.sqrt(((reference - seen(shown[None])) ** 2).sum(axis=1))
            near = labels[np.argsort(apart, kind="stable")[:6]]
            expected = None if wanted is None else pytest.approx((near == wanted).mean())
            assert row[f"{what}_full"] == expected
    for run, both in (("fgsm", 20), ("JSMA_all", 20)):
        successes = [row["success"] for row in table if row["run"] == run]
        assert len(successes) <= both
        assert 0 < sum(successes) < len(successes)


def test_the_svg_has_a_mark_for_every_row(done: Path) -> None:
    table = pq.read_table(done / "neighbours.parquet").to_pylist()
    for run, slug in (("fgsm", "fgsm"), ("JSMA_all", "jsma-all")):
        drawn = (done / f"tsne-{slug}.svg").read_text()
        for group in ("success", "failure"):
            (marks,) = re.findall(rf'<g id="tsne-{slug}-{group}">(.*?)</g>\s*</g>', drawn, re.DOTALL)
            wanted = sum(row["run"] == run and row["success"] == (group == "success") for row in table)
            assert marks.count("<use") == wanted


def test_a_second_start_computes_nothing_and_comes_to_the_same(
    done: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()}
    for name in (
        "embeddings.tsne",
        "embeddings.placed",
        "embeddings.representations",
        "activations.activation_changes",
    ):
        monkeypatch.setattr(f"analysis.{name}", None)
    assert main(["analyze", *map(str, runs), *SMALL, "--out", str(done)]) == 0
    after = {path.name: path.read_bytes() for path in done.iterdir() if path.is_file()}
    assert after.keys() == before.keys()
    for name in after.keys() - {"analysis.json", "page.html"}:
        assert after[name] == before[name], name
    assert summary(done)["findings"] == json.loads(before["analysis.json"])["findings"]


def test_one_run_fewer_and_a_joint_map(done: Path, runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["analyze", *map(str, runs), *FIT, "--limit", "5", "--out", str(out)]) == 0
    assert main(["analyze", str(runs[0]), *FIT, "--limit", "5", "--refit", "--out", str(out)]) == 0
    assert not list(out.glob("*jsma*"))  # what the first left
    assert any("--refit" in note for note in summary(out)["notes"]["tsne-map"])
    assert "--refit" in summary(out)["command"]
    assert len(list((out / "cache").glob("joint-*.npz"))) == 1


def test_runs_of_one_name(runs: list[Path], tmp_path: Path) -> None:
    """What is found of each, and each row, is told apart: here of one run that lies in several folders."""
    places = [tmp_path / name for name in ("a/x", "b/x", "x-3", "X_3")]
    for place in places:
        shutil.copytree(runs[0], place)
    out = tmp_path / "out"
    assert main(["analyze", *map(str, places), *FIT, "--limit", "5", "--out", str(out)]) == 0
    found = summary(out)
    names = ["a/x", "b/x", "x-3", "X_3"]
    assert all(list(alone) == names for alone in found["findings of each run"].values())
    assert found["findings of each run"]
    for key in ("a-x", "b-x", "x-3", "x-3-2"):
        assert {f"tsne-{key}.png", f"activation-change-{key}.png"} <= {path.name for path in out.iterdir()}
    rows = pq.read_table(out / "neighbours.parquet")["row"].to_pylist()
    assert len(set(rows)) == len(rows)
    assert [sum(row.startswith(f"{name}/") for row in rows) for name in names] == [len(rows) // 4] * 4
    page = (out / "page.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert data
    listed = [row[0] for row in json.loads(data[1])["rows"]]
    for number, key in enumerate(("a-x", "b-x", "x-3", "x-3-2")):
        drawing = page.split(f'data-key="tsne-{key}"')[1].split("</figure>")[0]
        assert {listed[int(row)] for row in re.findall(r'data-row="(\d+)"', drawing)} == {number}


def test_a_users_colour_model(kept_ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept_ray / "analyzed_models.py").write_text(OWN)
    monkeypatch.chdir(kept_ray)
    data = {name: tmp_path / f"{name}.npz" for name in ("attacked", "training")}
    model = read_model("analyzed_models:colour").build()
    for number, (name, path) in enumerate(data.items()):
        images = random_images((3, 7, 6), 40 if name == "attacked" else 120, number)
        with torch.no_grad():
            labels = model(torch.tensor(images).float() / 255).argmax(dim=1).numpy()
        np.savez(path, images=images, labels=labels)
    attack = ["attack", "fgsm", "--data", str(data["attacked"]), "--epsilon", "0.05", "--limit", "10"]
    assert main([*attack, "--model", "analyzed_models:colour", "--out", str(tmp_path / "run")]) == 0
    command = ["analyze", str(tmp_path / "run"), "--perplexity", "5", "--out", str(tmp_path / "out")]
    assert main([*command, "--training-data", str(data["training"])]) == 0
    layers = pq.read_table(tmp_path / "out/activation-change.parquet")["layer"].unique().to_pylist()
    assert layers == ["input", "0", "0 relu", "3"]
    assert main(command) == 2  # a single file has no train split

    assert main([*attack, "--model", "analyzed_models:headless", "--out", str(tmp_path / "other")]) == 0
    out = tmp_path / "nothing"
    command = ["analyze", str(tmp_path / "other"), "--perplexity", "5", "--out", str(out)]
    assert main([*command, "--training-data", str(data["training"])]) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--points", "300", "--neighbours", "300"], "--neighbours"),
        (["--points", "90", "--perplexity", "30"], "--perplexity"),
        (["--points", "3"], "--points"),
        (["--training-data", "nowhere"], "--training-data nowhere"),
        (["--training-data", "mnist"], "--training-data"),
    ],
)
def test_wrong_options(
    flags: list[str], message: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["analyze", str(runs[0]), *flags, "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
    assert not out.exists()


def test_wrong_places(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert main(["analyze", str(runs[0]), "--out", str(file)]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["analyze", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert main(["analyze", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
