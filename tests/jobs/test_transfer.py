"""brittle transfer on a real Ray: every number again from the stored images, resume, kills, surrogates."""

import json
import os
import shutil
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

from analysis.replay import stored_images
from cluster.store import RunFolder
from jobs import transfer
from jobs.main import main
from jobs.threat import BallFlags
from jobs.transfer import KINDS, twice
from tests.jobs.test_typed import require_made_by
from workers.models.loading import read_model
from workers.places import Place
from workers.results import distances
from workers.sources import load_data

ROOT = Path(__file__).parent.parent.parent
LIMIT = 15
SURROGATES = ",".join(KINDS)

pytestmark = pytest.mark.usefixtures("kept_ray")


def command(models: list[Path], out: Path, *flags: str) -> list[str]:
    return [
        *("transfer", "--models", ",".join(map(str, models)), "--data", "digits", "--limit", str(LIMIT)),
        *("--steps", "5", "--surrogate-epochs", "3", "--queries", "400", "--out", str(out), *flags),
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two CNNs, the second trained half as long from other weights."""
    folder = tmp_path_factory.mktemp("digits")
    found = []
    for name, epochs, seed in (("plain", "8", "1"), ("other", "4", "2")):
        how = ("--epochs", epochs, "--seed", seed, "--batch-size", "64")
        assert main(["train", "--data", "digits", "--out", str(folder / name), *how]) == 0
        found.append(folder / name)
    return found


@pytest.fixture(scope="module")
def done(models: list[Path], tmp_path_factory: pytest.TempPathFactory, kept_ray: Path) -> Path:
    """Both models and all surrogates."""
    out = tmp_path_factory.mktemp("transfer") / "out"
    assert main(command(models, out, "--surrogates", SURROGATES)) == 0
    return out


def verdict(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "verdict.json").read_text())
    return found


def model_of(name: str, models: list[Path], out: Path) -> Path:
    named = {path.name: path for path in models}
    kind, _, victim = name.partition("-")
    folders = sorted((out / "surrogates").glob(f"{kind}-*"))
    if victim:
        hashes = [json.loads((folder / "model.json").read_text())["training"]["victim"] for folder in folders]
        folders = [folders[hashes.index(read_model(str(named[victim])).content_hash)]]
    return named.get(name) or folders[0]


def predictions(model: torch.nn.Module, images: np.ndarray) -> list[int]:
    with torch.no_grad():
        return [int(model(torch.tensor(image[None]).float() / 255).argmax()) for image in images]


def test_every_cell_again_from_the_stored_images(done: Path, models: list[Path]) -> None:
    data, said = load_data("digits", "test"), verdict(done)
    sources = ["plain", "other", "seed", "half", "mlp", "kernel", "substitute-plain", "substitute-other"]
    built = {name: read_model(str(model_of(name, models, done))).build() for name in sources}
    cells = {(one["source"], one["victim"], one["attack"]): one for one in said["cells"]}
    assert len(cells) == 5 * (2 * 2 + 6 * 3)
    searched = set()
    hit: dict[str, set[int]] = {"plain": set(), "other": set()}
    for source in sources:
        for attack in ("fgsm", "pgd", "bim", "ddn", "ddn×2"):
            folder = RunFolder(Place.of(done / "runs" / source / attack.removesuffix("×2")))
            (rows,) = folder.tables(folder.plan())
            ids = rows["image_id"].to_pylist()
            searched.add(tuple(sorted(ids)))
            clean, found = data.images[ids], stored_images(rows)
            if attack == "ddn×2":
                found = np.clip(clean + 2.0 * (found.astype(float) - clean), 0, 255).astype(np.uint8)
            elif attack != "ddn":
                assert np.abs(found.astype(int) - clean).max() <= 76
            own = predictions(built[source], found)
            for victim in {"plain", "other", source}:
                theirs = predictions(built[victim], found)
                fooled = both = same = 0
                for row, (one, other) in enumerate(zip(own, theirs, strict=True)):
                    truth = data.labels[ids[row]]
                    fooled += one != truth
                    both += one != truth and other != truth
                    same += one != truth and other == one
                    moved = np.abs(found[row].astype(int) - clean[row]).max()
                    if victim != source and other != truth and moved <= 76:
                        hit[victim].add(ids[row])
                cell = cells[source, victim, attack]
                assert (cell["images"], cell["of"]) == (both, LIMIT if victim == source else fooled)
                assert (cell["agreement"]["images"], cell["agreement"]["of"]) == (same, both)
    assert len(searched) == 1
    attacked = list(searched.pop())
    assert len(attacked) == LIMIT
    for name in sources:
        assert predictions(built[name], data.images[attacked]) == data.labels[attacked].tolist()
    for one in said["victims"]:
        assert one["fooled_by_any"]["images"] == len(hit[one["victim"]])
        assert one["fooled_by_any"]["of"] == LIMIT
        assert one["verdict"] == "broken"
    assert said["verdict"] == "broken"
    assert said["threat"] == {"norm": "linf", "epsilon": 0.3, "levels": 76}
    assert said["worst_transfer"]["attack"] in ("fgsm", "pgd", "bim")


def test_substitutes_know_answers_alone(done: Path, models: list[Path]) -> None:
    """They begin with a quarter of the test images, which are not attacked, and learn what the victim answers."""
    data, said = load_data("digits", "test"), verdict(done)
    attacked = set(pq.read_table(done / "answers/plain/pgd.parquet")["image_id"].to_pylist())
    places = {image.tobytes(): place for place, image in enumerate(data.images)}
    made = {one["surrogate"]: one for one in said["surrogates"]}
    assert list(made) == ["seed", "half", "mlp", "kernel", "substitute-plain", "substitute-other"]
    from safetensors.numpy import load_file

    for victim in ("plain", "other"):
        folder = model_of(f"substitute-{victim}", models, done)
        asked = load_file(next(folder.glob("*.queries")))
        assert made[f"substitute-{victim}"]["queries"] == len(asked["images"]) == 90 * 2**2
        model = read_model(str(model_of(victim, models, done))).build()
        assert predictions(model, asked["images"][:200]) == asked["answers"][:200].tolist()
        assert not attacked & {places[image.tobytes()] for image in asked["images"][:90]}
    right = said["images"]["right_by_all"]
    assert right["of"] == 360 - 90
    for name, one in made.items():
        found = predictions(read_model(str(model_of(name, models, done))).build(), data.images)
        assert one["clean_accuracy"]["images"] == int((np.array(found) == data.labels).sum())
        assert (one["queries"] > 0) == name.startswith("substitute")
        assert one["clean_accuracy"]["value"] > 0.5


def test_half_is_trained_on_half(done: Path, models: list[Path]) -> None:
    card = json.loads((model_of("half", models, done) / "model.json").read_text())
    assert card["data"]["training_images"] == 1437 // 2
    assert card["training"]["seed"] != 1


def test_page_table_and_terminal(done: Path, models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    page, rows = (done / "page.html").read_text(), pq.read_table(done / "transfer.parquet").to_pylist()
    assert [(r["source"], r["victim"], r["attack"], r["rate"]) for r in rows] == [
        (c["source"], c["victim"], c["attack"], c["value"]) for c in verdict(done)["cells"]
    ]
    assert "://" not in page.replace('="http://www.w3.org/', "")  # names of namespaces
    require_made_by(done / "page.html", transfer.app, command(models, done, "--surrogates", SURROGATES))
    assert all(f"<td>{one['what']}</td>" in page for one in verdict(done)["surrogates"])
    assert main(command(models, done, "--surrogates", SURROGATES, "--require", "holds")) == 1
    told = capsys.readouterr().out
    assert told.count("substitute-plain") >= 5
    for one in verdict(done)["victims"]:
        assert f"{one['victim']}: {one['verdict']}" in told


def test_a_second_start_computes_nothing_again(
    done: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def stamps() -> dict[str, int]:
        rewritten = ("verdict.json", "page.html", "transfer.parquet", ".lock")
        files = [path for path in done.rglob("*") if path.is_file() and path.name not in rewritten]
        files = [path for path in files if path.parent.name != "figures"]
        return {str(path): path.stat().st_mtime_ns for path in files}

    assert (done / "figures" / "transfer-pgd.png").exists()
    before, said = stamps(), verdict(done)
    assert main(command(models, done, "--surrogates", SURROGATES)) == 0
    assert stamps() == before
    assert verdict(done) == said
    assert "worker" not in capsys.readouterr().err
    for kinds, flags, field in (
        (SURROGATES, ("--epsilon", "0.2"), "epsilon 0.3, this start 0.2"),
        (SURROGATES, ("--norm", "l2", "--epsilon", "0.3"), "norm linf, this start l2"),
        (SURROGATES, ("--seed", "1"), "seed 0, this start 1"),
        ("seed", (), "surrogates"),
    ):
        assert main(command(models, done, "--surrogates", kinds, *flags)) == 2
        assert field in capsys.readouterr().err
    assert main(command(models[:1], done, "--surrogates", SURROGATES)) == 2
    assert "that transfer has other" in capsys.readouterr().err


def test_other_weights_are_refused(
    done: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = [tmp_path / "plain", tmp_path / "other"]
    shutil.copytree(models[1], swapped[0])
    shutil.copytree(models[1], swapped[1])
    assert main(command(swapped, done, "--surrogates", SURROGATES)) == 2
    assert "has plain" in capsys.readouterr().err


def test_smallest_changes_in_l2_and_names_told_apart(models: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(models[0], tmp_path / name / "plain")
    out = tmp_path / "out"
    both = [tmp_path / "a/plain", tmp_path / "b/plain"]
    assert main(command(both, out, "--norm", "l2", "--epsilon", "0.5", "--seed", "3")) == 0
    said = verdict(out)
    assert [one["victim"] for one in said["victims"]] == ["a-plain", "b-plain"]
    assert {one["attack"] for one in said["cells"]} == {"pgd", "ddn", "ddn×2"}
    for one in said["cells"]:  # the two are the same model
        if one["source"] != one["victim"]:
            assert one["images"] == one["of"]
            assert one["agreement"]["images"] == one["of"]
    table = pq.read_table(out / "answers/a-plain/ddn.parquet").to_pylist()
    assert {row["within"] for row in table} == {True, False}
    assert all(row["within"] == (row["l2"] <= 0.5) for row in table)


def test_a_killed_one_goes_on(models: list[Path], tmp_path: Path) -> None:
    """Killed in a search of its last source, it ends with the same numbers."""
    out, environment = tmp_path / "out", os.environ | {"PYTHONPATH": str(ROOT)}
    whole = command(models[:1], out, "--surrogates", "substitute")
    assert main(command(models[:1], tmp_path / "whole", "--surrogates", "substitute")) == 0
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.main", *whole],
        cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as killed:  # fmt: skip
        while not any((out / "runs").glob("substitute-*/*/parts/*.parquet")) and killed.poll() is None:
            time.sleep(0.01)
        os.killpg(killed.pid, signal.SIGKILL)
    assert not (out / "verdict.json").exists()
    assert main(whole) == 0
    assert verdict(out) == verdict(tmp_path / "whole")


def test_twice_as_far() -> None:
    clean = np.array([0, 100, 250, 10], dtype=np.uint8)
    assert twice(clean, np.array([3, 90, 255, 3], dtype=np.uint8)).tolist() == [6, 80, 255, 0]
    moved = distances(clean.reshape(1, 1, 2, 2), np.array([76, 100, 250, 10], dtype=np.uint8).reshape(1, 1, 2, 2))
    assert BallFlags().ball((1, 28, 28)).within(moved).tolist() == [True]
