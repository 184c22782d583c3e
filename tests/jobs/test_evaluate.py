"""The evaluation on a real Ray: the bound, what is written, resumption after kills and budgets, certificates."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from analysis.statistics import Rate
from cluster.store import Plan, RunFolder
from jobs import evaluate
from jobs.launch import Selection, resolve
from jobs.main import main
from jobs.subject import SubjectOptions, load_subject
from jobs.threat import Stage, ThreatFlags, fitting, stages_within
from tests.analysis.test_page import Seen
from tests.jobs.test_typed import require_made_by
from workers.attacks import APGD, FGSM, PGD, OnePixelExact, PixelBeam
from workers.errors import WrongInput
from workers.models.loading import read_model
from workers.places import Place
from workers.remedies.checks import UNPROBED, Probe
from workers.results import Status
from workers.threat import Ball, Pixels

ROOT = Path(__file__).parent.parent.parent
LIMIT = 60

pytestmark = pytest.mark.usefixtures("kept_ray")


def command(model: Path, out: Path, *flags: str) -> list[str]:
    limit = [] if "--limit" in flags else ["--limit", str(LIMIT)]
    return ["evaluate", "--model", str(model), "--data", "mnist", "--out", str(out), *limit, *flags]


def verdict(out: Path) -> dict[str, Any]:
    return json.loads((out / "verdict.json").read_text())


def images(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "images.parquet").drop_columns(["seconds"]).to_pylist()


def told(out: Path) -> dict[str, Any]:
    """The verdict without what may differ between two evaluations of the same."""
    found = verdict(out)
    stages = [{name: value for name, value in stage.items() if name != "seconds"} for stage in found.pop("stages")]
    spent = {name: found["spent"][name] for name in ("queries", "gradients")}
    checks = [{name: value for name, value in check.items() if name != "seconds"} for check in found["checks"]]
    return found | {"stages": stages, "spent": spent, "checks": checks, "budget": None}


@pytest.fixture
def few_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three short attacks in place of the norm threats' own."""

    def stages(threat: Ball, probe: Probe = UNPROBED) -> tuple[Stage, ...]:
        epsilon = threat.epsilon
        attacks = FGSM(epsilon=epsilon), PGD(epsilon=epsilon, steps=4), APGD(epsilon=epsilon, steps=8, loss="dlr")
        return tuple(Stage(attack.NAME, attack) for attack in attacks)

    monkeypatch.setattr("jobs.evaluate.stages_within", stages)


@pytest.fixture(scope="module")
def calm(kept_ray: Path, mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed evaluation."""
    out = tmp_path_factory.mktemp("evaluations") / "calm"
    assert main(command(mnist_folder, out, "--epsilon", "0.2", "--shard-size", "10")) == 0
    return out


def test_what_an_evaluation_writes(calm: Path, mnist_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_made_by(
        calm / "page.html", evaluate.app, command(mnist_folder, calm, "--epsilon", "0.2", "--shard-size", "10")
    )
    found, rows = verdict(calm), images(calm)
    assert found["verdict"] == "none asked"
    assert found["threat"] == {"norm": "linf", "epsilon": 0.2, "levels": 51}
    assert [row["image_id"] for row in rows] == list(range(LIMIT))
    broken: dict[int, str] = {}
    queries = dict.fromkeys(range(LIMIT), 0)
    left = set(range(LIMIT))
    for stage in found["stages"]:
        searched = pq.read_table(calm / stage["run"] / "parts").to_pylist()
        assert {row["image_id"] for row in searched} == left
        for row in searched:
            queries[row["image_id"]] += row["queries"]
            if row["status"] == Status.SUCCESS:
                broken[row["image_id"]] = stage["name"]
        frozen = json.loads((calm / stage["run"] / "run.json").read_text())["frozen"]["ids"]
        assert frozen == "" if stage["name"] == "fgsm" else re.fullmatch(r"\d+ images, sha256 [0-9a-f]{64}", frozen)
        left -= {row["image_id"] for row in searched if row["status"] in (Status.SUCCESS, Status.ALREADY_WRONG)}
        assert main(["verify", str(calm / stage["run"])]) == 0
    assert len({*broken.values()}) > 1
    assert {row["image_id"]: row["broken_by"] for row in rows if row["status"] == "broken"} == broken
    assert {row["image_id"] for row in rows if row["status"] == "robust"} == left
    assert [row["queries"] for row in rows] == list(queries.values())
    assert all((row["clean_prediction"] != row["label"]) == (row["status"] == "wrong") for row in rows)
    assert found["robust_accuracy"]["images"] == len(left)
    assert found["robust_accuracy"]["interval"][0] <= len(left) / LIMIT <= found["robust_accuracy"]["interval"][1]
    assert found["clean_accuracy"]["images"] == sum(row["status"] != "wrong" for row in rows)
    assert found["spent"]["queries"] == sum(queries.values()) + sum(stage["queries"] for stage in found["beyond"])
    assert {stage["name"] for stage in [*found["stages"], *found["beyond"]]} | set(found["not_run"]) == {
        stage.name for stage in stages_within(Ball("linf", 0.2))
    }
    page = (calm / "page.html").read_text()
    assert "fgsm --epsilon 0.2" in page
    assert f"robust accuracy at most {100 * len(left) / LIMIT:.1f}%" in page
    assert "of the images searched" in page
    assert "of all images, so far" in page
    text = Seen(page).text
    for stage in found["stages"]:
        asked, low = stage["searched"] + stage["failed"], Rate(stage["remaining"], LIMIT).share
        assert re.search(rf"{stage['name']}\s+.*?{Rate(stage['successes'], asked).share}.*?{low}", text, re.DOTALL)


@pytest.mark.usefixtures("few_stages")
def test_the_table_fits_a_terminal(mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both numbers under their names: success of the images searched, robust accuracy of all."""
    assert main(command(mnist_folder, tmp_path / "E", "--epsilon", "0.2")) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("stage "))
    assert "success: of the images that a stage searched; robust accuracy: of all images" in lines[head - 1]
    stages = verdict(tmp_path / "E")["stages"]
    table = lines[head : head + 1 + len(stages)]
    assert max(map(len, table)) <= 80
    for line, stage in zip(table[1:], stages, strict=True):
        success, left = Rate(stage["successes"], stage["searched"]).share, Rate(stage["remaining"], LIMIT).share
        assert line.split()[:5] == [stage["name"], str(stage["searched"]), str(stage["broken"]), success, left]


def test_the_levels_of_a_budget_are_said_beside_it(
    few_stages: None, mnist_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(mnist_folder, tmp_path / "E", "--epsilon", "0.031", "--limit", "10")) == 0
    err = capfd.readouterr().err
    lost = "L∞ ε = 0.031 is 7.905 levels of 255, images have whole ones: 7/255 is searched"
    assert err.index(lost) < err.index("robust accuracy within L∞ ε = 0.031 (7/255)")
    asked = json.loads((tmp_path / "E" / "evaluation.json").read_text())
    assert (asked["norm"], asked["epsilon"], asked["levels"]) == ("linf", 0.031, 7)
    assert verdict(tmp_path / "E")["threat"] == {"norm": "linf", "epsilon": 0.031, "levels": 7}
    page = (tmp_path / "E" / "page.html").read_text()
    assert "10 images within L∞ ε = 0.031 (7/255)" in page
    assert main(command(mnist_folder, tmp_path / "E", "--epsilon", "8/255", "--limit", "10")) == 2
    assert "epsilon" in capfd.readouterr().err


def test_an_evaluation_is_replayed_and_compacted_run_by_run_and_its_page_is_its_own(
    calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [stage["name"] for stage in [*verdict(calm)["stages"], *verdict(calm)["beyond"]]]
    assert main(["verify", str(calm)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in lines} == {f"runs/{name}" for name in stages}
    assert all("agree with the model" in line for line in lines)
    copy = tmp_path / "copy"
    shutil.copytree(calm, copy)
    assert main(["compact", str(copy)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(stages)
    assert all(len(list((copy / "runs" / name / "parts").iterdir())) == 1 for name in stages)
    assert main(["verify", str(copy)]) == 0
    shutil.rmtree(copy / "runs" / "pgd" / "parts")
    assert main(["verify", str(copy)]) == 1
    capsys.readouterr()
    for words in (["report", str(calm), "--out", str(tmp_path / "page.html")], ["analyze", str(calm)]):
        out = [] if "--out" in words else ["--out", str(tmp_path / "analysis")]
        assert main([*words, *out]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"holds {len(stages)} runs; its page is {calm / 'page.html'}; name runs of it: {calm / 'runs'}" in told
    page = tmp_path / "two.html"
    assert main(["report", str(calm / "runs" / "fgsm"), str(calm / "runs" / "pgd"), "--out", str(page)]) == 0
    text = Seen(page.read_text()).text
    assert "their success rates do not rank the attacks" in text
    assert "the most of these attacks" not in text


def test_the_same_again_needs_no_ray(
    calm: Path, mnist_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import analysis.robustness

    made, read, tables = [], [], RunFolder.tables
    monkeypatch.setattr("jobs.launch.open_session", lambda address: pytest.fail("Ray was started"))
    monkeypatch.setattr("jobs.evaluation.write_page", lambda runs, subject, out, **shown: None)

    class Counted(analysis.robustness.Robustness):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    def tables_of(folder: RunFolder, plan: Plan, columns: Sequence[str] | None = None) -> list[pa.Table]:
        read.append(columns)
        return tables(folder, plan, columns)

    monkeypatch.setattr(analysis.robustness, "Robustness", Counted)
    monkeypatch.setattr(RunFolder, "tables", tables_of)
    before, small = images(calm), ("--epsilon", "0.2", "--shard-size", "10", "--max-queries", "1")
    assert main(command(mnist_folder, calm, *small, "--require", "0.9")) == 1
    assert len(made) == 1
    assert not any(columns is None or "adversarial" in columns for columns in read)
    said = capsys.readouterr().out
    assert "verdict: broken" in said
    assert verdict(calm)["verdict"] == "broken"
    assert main(command(mnist_folder, calm, *small, "--require", "0.01")) == 1
    assert verdict(calm)["verdict"] == "undecided"
    assert main(command(mnist_folder, calm, *small, "--require", "0.01", "--accept-undecided")) == 0
    assert main(command(mnist_folder, calm, *small)) == 0
    assert images(calm) == before


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("--epsilon", "0.1"), "epsilon"),
        (("--norm", "l2", "--epsilon", "0.2"), "norm"),
        (("--pixels", "1"), "pixels"),
        (("--epsilon", "0.2", "--limit", "59"), "limit"),
        (("--epsilon", "0.2", "--correct"), "correct"),
        (("--epsilon", "0.2", "--seed", "1"), "seed"),
        (("--epsilon", "0.2", "--split", "train"), "split"),
        (("--epsilon", "0.2", "--all-attacks"), "all_attacks"),
        (("--epsilon", "0.2", "--mean", "0.1", "--std", "0.3"), "model"),
        (("--epsilon", "0.2", "--shard-size", "7"), "shard_size"),
        (("--epsilon", "0.2", "--cpus-per-worker", "2"), "threads"),
    ],
)
def test_another_evaluation_is_refused(
    change: tuple[str, ...], field: str, calm: Path, mnist_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in calm.rglob("*")}
    shards = () if "--shard-size" in change else ("--shard-size", "10")
    assert main(command(mnist_folder, calm, *change, *shards)) == 2
    out, err = capsys.readouterr()
    assert f"has {field} " in err
    assert (out, err.count("\n")) == ("", 1)
    assert before == {path: path.stat().st_mtime_ns for path in calm.rglob("*")}


def test_ended_by_budgets_killed_and_resumed(
    calm: Path, mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stormy"
    flags = ("--epsilon", "0.2", "--shard-size", "10")
    assert main(command(mnist_folder, out, *flags, "--max-seconds", "0.000001")) == 0
    nothing = {"value": None, "interval": None, "images": 0, "of": 0}
    assert verdict(out)["robust_accuracy"] == {"bound": "upper", "void": False} | nothing
    assert verdict(out)["clean_accuracy"] == nothing
    assert verdict(out)["unfinished"] == [stage.name for stage in stages_within(Ball("linf", 0.2))]
    printed = capsys.readouterr().out
    assert "nothing was searched: nothing is known of the robust accuracy" in printed
    assert "%" not in printed
    assert set(verdict(out)["not_run"]) == {stage.name for stage in stages_within(Ball("linf", 0.2))}
    assert not (out / "page.html").exists()

    assert main(command(mnist_folder, out, *flags, "--max-queries", "15")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^fgsm, .*: the budget of 15 queries is spent$", printed, re.MULTILINE)
    (partial,) = verdict(out)["stages"]
    clean, robust = verdict(out)["clean_accuracy"], verdict(out)["robust_accuracy"]
    unasked = sum(row["clean_prediction"] is None for row in images(out))
    assert 0 < unasked < LIMIT
    assert (clean["of"], clean["unknown"], robust["of"]) == (LIMIT, unasked, LIMIT)
    assert clean["images"] + clean["unknown"] >= robust["images"]
    assert f"clean accuracy {Rate(clean['images'], LIMIT, unknown=unasked)}" in printed
    assert f"{unasked} of {LIMIT} images were not searched and count as robust" in printed
    assert not partial["complete"]
    assert 15 <= partial["queries"] < LIMIT
    assert verdict(out)["spent"]["seconds"] > 0

    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.evaluate", *command(mnist_folder, out, *flags)[1:]],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/pgd/parts/part-*.parquet")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    if process.poll() is None:
        capsys.readouterr()
        assert main(command(mnist_folder, out, *flags)) == 2
        assert "another brittle is writing" in capsys.readouterr().err
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    assert main(command(mnist_folder, out, *flags)) == 0
    assert images(out) == images(calm)
    assert told(out) == told(calm)


@pytest.mark.usefixtures("few_stages")
def test_every_attack_on_every_image(calm: Path, mnist_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    assert main(command(mnist_folder, out, "--epsilon", "0.2", "--all-attacks")) == 0
    found = verdict(out)
    right = found["clean_accuracy"]["images"]
    assert [stage["searched"] for stage in found["stages"]] == [right] * 3
    assert found["stages"][1]["successes"] > found["stages"][1]["broken"]
    assert found["robust_accuracy"]["images"] == right - sum(stage["broken"] for stage in found["stages"])


def test_one_pixel_is_certified(mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pixel"
    flags = ("--pixels", "1", "--correct", "--limit", "12", "--require", "0.5")
    assert main(command(mnist_folder, out, *flags)) == 0
    found, rows = verdict(out), images(out)
    assert found["verdict"] == "holds"
    assert any("only correctly classified" in reason for reason in found["reasons"])
    assert {row["status"] for row in rows} <= {"certified", "broken"}
    assert found["certified_accuracy"]["images"] == sum(row["status"] == "certified" for row in rows)
    assert found["certified_accuracy"]["value"] == found["robust_accuracy"]["value"]
    assert found["not_run"] == {"de": "no image is left to search"}


def test_a_certificate_of_a_broken_image_is_a_failure(
    mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = Stage("pixel-beam", PixelBeam(pixels=1)), Stage("exact", OnePixelExact(), certifies=True)
    monkeypatch.setattr("jobs.evaluate.stages_within", lambda threat, probe=UNPROBED: stages)
    out = tmp_path / "pixel"
    flags = ("--pixels", "1", "--all-attacks", "--correct", "--limit", "4")
    assert main(command(mnist_folder, out, *flags)) == 0
    assert verdict(out)["images"]["contradicted"] == 0
    certified = verdict(out)["certified_accuracy"]["images"]
    image = next(row["image_id"] for row in images(out) if row["status"] == "certified")
    for part in (out / "runs" / "pixel-beam" / "parts").iterdir():  # as if it had found what the exact search denies
        table = pq.read_table(part)
        place, status = table.schema.get_field_index("status"), table["status"].to_pylist()
        if image in (ids := table["image_id"].to_pylist()):
            status[ids.index(image)] = str(Status.SUCCESS)
        column = pa.array(status).cast(table.schema.field(place).type)
        pq.write_table(table.set_column(place, table.schema.field(place), column), part)
    capsys.readouterr()
    assert main(command(mnist_folder, out, *flags)) == 1
    assert f"one of both is wrong; they count as broken: {image}\n" in capsys.readouterr().out
    found = verdict(out)
    assert any("certified although" in reason for reason in found["reasons"])
    assert (found["images"]["contradicted"], found["certified_accuracy"]["images"]) == (1, certified - 1)
    assert [row["broken_by"] for row in images(out) if row["image_id"] == image] == ["pixel-beam"]


@pytest.mark.usefixtures("few_stages")
def test_a_model_of_two_classes_that_breaks_on_one_image(
    kept_ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept_ray / "two_classes_of_corners.py").write_text(
        "import torch\n"
        "class Fragile(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.linear = torch.nn.Linear(48, 2)\n"
        "    def forward(self, x):\n"
        "        if (x[:, 0, 0, 0] >= 0.9).any():\n"
        "            raise ValueError('cannot see white corners')\n"
        "        return 20 * self.linear(x.flatten(1) - 0.4)\n"
    )
    pixels = np.random.default_rng(0).integers(0, 200, (12, 3, 4, 4)).astype(np.uint8)
    pixels[6, 0, 0, 0] = 255
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(12) % 2)
    monkeypatch.chdir(tmp_path)
    subject = ["--model", "two_classes_of_corners:Fragile", "--data", "images.npz"]
    assert main(["evaluate", *subject, "--out", "E", "--epsilon", "0.02", "--workers", "1"]) == 1
    found = verdict(tmp_path / "E")
    said, aside = capsys.readouterr()
    assert found["not_run"] == {"apgd": "left out: dlr needs a model of at least 3 classes, this one has 2"}
    assert "apgd: left out" in aside
    assert found["images"]["failed"] == 1
    (row,) = [row for row in images(tmp_path / "E") if row["error"]]
    assert (row["image_id"], row["status"], row["clean_prediction"]) == (6, "robust", None)
    assert "cannot see white corners" in row["error"]
    assert "a search failed on 1 images" in said
    assert "no page: ValueError: cannot see white corners" in aside


@pytest.mark.usefixtures("few_stages")
def test_what_failed_is_searched_again_when_asked(
    kept_ray: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    armed = tmp_path / "armed"
    (kept_ray / "armed_for_one.py").write_text(
        "import pathlib, torch\n"
        "class Armed(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.linear = torch.nn.Linear(48, 3)\n"
        "    def forward(self, x):\n"
        f"        if pathlib.Path({str(armed)!r}).exists() and (x[:, 0, 0, 0] >= 0.9).any():\n"
        "            raise ValueError('cannot see white corners')\n"
        "        return 20 * self.linear(x.flatten(1) - 0.4)\n"
    )
    pixels = np.random.default_rng(0).integers(0, 200, (12, 3, 4, 4)).astype(np.uint8)
    pixels[:, 0, 0, 0] = 128
    pixels[[3, 5], 0, 0, 0] = 255
    monkeypatch.chdir(tmp_path)
    model = read_model("armed_for_one:Armed").build()
    labels = model(torch.tensor(pixels / 255, dtype=torch.float32)).argmax(dim=1).numpy()
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    subject = ["--model", "armed_for_one:Armed", "--data", "images.npz"]
    given = ["evaluate", *subject, "--epsilon", "0.03", "--workers", "1"]
    assert main([*given, "--out", "calm"]) == 0
    calm = images(tmp_path / "calm")
    assert [calm[image]["broken_by"] for image in (3, 5)] == ["fgsm", None]

    armed.touch()
    assert main([*given, "--out", "E"]) == 1
    assert "--retry-failed" in capsys.readouterr().err
    assert [row["image_id"] for row in images(tmp_path / "E") if row["error"]] == [3, 5]
    assert [stage["failed"] for stage in verdict(tmp_path / "E")["stages"]] == [2, 2, 2]
    armed.unlink()
    shutil.rmtree("E/runs/apgd")  # not started yet
    assert main([*given, "--out", "E", "--max-queries", "1"]) == 1
    found = images(tmp_path / "E")
    assert main([*given, "--out", "E", "--max-queries", "1", "--retry-failed"]) == 1
    assert images(tmp_path / "E") == found
    assert "what failed is not searched again: the budget of 1 queries is spent" in capsys.readouterr().err

    assert main([*given, "--out", "E", "--retry-failed"]) == 0
    repaired = images(tmp_path / "E")
    assert [row | {"queries": 0, "gradients": 0} for row in repaired] == [
        row | {"queries": 0, "gradients": 0} for row in calm
    ]
    assert verdict(tmp_path / "E")["images"]["failed"] == 0
    left = [row["image_id"] for row in calm if row["status"] == "robust"]
    plans = {name: RunFolder(Place.of(f"E/runs/{name}")).plan().ids.tolist() for name in ("pgd", "apgd")}
    assert 3 in plans["pgd"]  # as it was when it was started
    assert 3 not in plans["apgd"]
    assert set(left) <= set(plans["apgd"]) <= set(plans["pgd"])
    for name in ("fgsm", "pgd", "apgd"):
        assert main(["verify", f"E/runs/{name}"]) == 0
    assert main([*given, "--out", "E"]) == 0
    assert images(tmp_path / "E") == repaired


def test_a_refused_start_leaves_nothing(mnist_folder: Path, tmp_path: Path) -> None:
    for flags in (("--workers", "1000"), ("--label", "10"), ("--pixels", "785")):
        assert main(command(mnist_folder, tmp_path / "new" / "E", *flags)) == 2
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("threat", "said"),
    [
        ({"pixels": 1, "epsilon": 0.1}, "--pixels"),
        ({"pixels": 1, "norm": "linf"}, "--pixels"),
        ({"epsilon": 1.5}, "--epsilon"),
    ],
)
def test_threats_that_are_refused(threat: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ThreatFlags(**threat)


def test_the_stages_of_a_threat() -> None:
    ball = stages_within(Ball("l2", 1.5))
    assert {stage.attack.norm for stage in ball} == {"l2"}  # type: ignore[attr-defined]
    assert {stage.attack.epsilon for stage in ball if stage.role.counts} == {1.5}  # type: ignore[attr-defined]
    assert min(stage.attack.epsilon for stage in ball if not stage.role.counts) == 3.0  # type: ignore[attr-defined]
    assert ThreatFlags().threat((1, 28, 28)) == Ball("linf", 0.3)
    assert ThreatFlags(norm="l2").threat((3, 32, 32)) == Ball("l2", 0.5)
    for k in (1, 2, 5, 300):
        for stage in stages_within(Pixels(k)):
            assert getattr(stage.attack, "pixels", None) == k
            assert stage.certifies == (k == 1 and isinstance(stage.attack, OnePixelExact))
    assert any(isinstance(stage.attack, PixelBeam) for stage in stages_within(Pixels(300)))
    for epsilon in (0.0, 1.5):
        with pytest.raises(WrongInput, match="--epsilon"):
            stages_within(Ball("linf", epsilon))


def test_the_first_refusal_is_told_when_no_attack_fits(mnist_folder: Path) -> None:
    subject = load_subject(SubjectOptions(model=str(mnist_folder), data="mnist"))
    some = Stage("pixel-beam", PixelBeam(pixels=1)), Stage("apgd", APGD(epsilon=0.1, loss="dlr"))
    assert fitting(some, subject) == (some, {})
    with pytest.raises(WrongInput, match="785"):
        fitting([Stage(f"beam-{k}", PixelBeam(pixels=k, candidates=k)) for k in (785, 786)], subject)


def test_images_given_as_an_array(mnist_folder: Path) -> None:
    subject = load_subject(SubjectOptions(model=str(mnist_folder), data="mnist"))
    ids = np.array([9, 2, 5])
    assert resolve(subject, Selection(), ids).ids.tolist() == [9, 2, 5]
    assert resolve(subject, Selection(limit=2), ids).ids.tolist() == [9, 2]
    for wrong in ([-1, 2], [2, 10_000], [2, 2]):
        with pytest.raises(WrongInput, match="ids: "):
            resolve(subject, Selection(), np.array(wrong))
    with pytest.raises(ValueError, match="one of both"):
        resolve(subject, Selection(ids="1"), ids)
