"""The report command: what its page says to type makes the same rows again, and the files beside the page."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from analysis.statistics import Rate
from cluster.store import Plan, RunFolder
from jobs.attack import _attacks, add_named
from jobs.attack import app as attack_app
from jobs.main import main
from jobs.recorded import RecordedRun
from jobs.report import _command, _search
from tests.jobs.test_other_shapes import CASES
from workers.attacks import Attack, attack_named
from workers.places import Place

RECORDED = {"model": "a b/net", "weights": "", "data": "mnist", "mean": "0.5", "std": "-1e-3", "remedies": {}}
FROZEN = {"split": "test", "seed": 7, "ids": "", "label": 2, "limit": None, "correct": True, "target": "random"}


def recorded(attacks: tuple[Attack, ...], **frozen: Any) -> RecordedRun:
    parameters = Attack.parameters_of(attacks)
    return RecordedRun(
        RunFolder(Place("runs/one")),
        Plan(
            FROZEN | {"attack": attacks[0].NAME, "parameters": json.loads(json.dumps(parameters))} | frozen,
            RECORDED,
            np.arange(3),
            None,
            tuple(attack.params_hash for attack in attacks),
            3,
        ),
        "one",
        "one",
    )


@pytest.mark.parametrize("name", CASES)
def test_the_command_of_a_run_is_read_as_what_the_run_was(name: str) -> None:
    kind = attack_named(name.split()[0])
    add_named(kind.NAME)
    made = [(kind(**CASES[name]),)]
    if kind.BUDGET is not None:
        smaller = getattr(made[0][0], kind.BUDGET)
        if isinstance(smaller, float):
            made.append(kind.at_each_budget({**CASES[name], kind.BUDGET: [smaller / 3, smaller]}))
    for attacks in made:
        words = shlex.split(_command(recorded(attacks)))
        assert words[:2] == ["brittle", "attack"]
        _, bound, _ = attack_app.parse_args(words[2:], exit_on_error=False, print_error=False)
        given = bound.arguments
        assert _attacks(kind, given.get("attack")) == attacks
        assert (given["subject"].model, given["subject"].mean, given["subject"].std) == ("a b/net", "0.5", "-1e-3")
        selection = given["selection"]
        assert (selection.label, selection.correct, selection.target, selection.seed) == (2, True, "random", 7)
        assert given["out"] == "runs/one"


def test_images_that_another_command_chose_are_not_typed() -> None:
    attacks = (attack_named("fgsm")(epsilon=0.1),)
    assert _command(recorded(attacks, ids="5000 images, sha256 0123")) == ""
    assert "--ids 1,2,3" in _command(recorded(attacks, ids="1,2,3"))
    assert "--split" not in _search(recorded(attacks, split="all"))


@pytest.mark.usefixtures("kept_ray")
def test_the_page_and_its_files(mnist_folder: Path, tmp_path: Path) -> None:
    common = ["--model", str(mnist_folder), "--data", "mnist"]
    runs = {
        "pgd": ["pgd", *common, "--correct", "--limit", "12", "--epsilon", "0.02,0.1", "--steps", "5", "--seed", "3"],
        "jsma": ["jsma", *common, "--limit", "6", "--target", "random", "--max-steps", "10"],
    }
    for name, words in runs.items():
        assert main(["attack", *words, "--out", str(tmp_path / name)]) == 0
    page, files = tmp_path / "page.html", tmp_path / "files"
    given = ["report", *(str(tmp_path / name) for name in runs), "--out", str(page), "--files", str(files)]
    assert main(given) == 0
    html = page.read_text()
    shown = re.sub("</?span[^>]*>", "", html)
    assert shlex.join(["brittle", *given[:-2]]) in shown
    assert 'id="exhibit-' in html
    assert {path.suffix for path in files.iterdir()} == {".png", ".svg", ".parquet", ".csv", ".json"}

    tables = {name: pq.read_table(tmp_path / name / "parts") for name in runs}
    rows = pq.read_table(files / "rows.parquet")
    assert rows["run"].to_pylist() == ["pgd"] * 24 + ["jsma"] * 6
    rate = Rate(sum(rows["success"].to_pylist()[12:24]), 12)
    assert f"pgd --epsilon 0.1 (25/255), untargeted: success on {rate}, the most of these attacks" in shown
    assert sorted(rows["queries"].to_pylist()) == sorted(q for t in tables.values() for q in t["queries"].to_pylist())
    assert {"adversarial", "shape"}.isdisjoint(rows.column_names)
    assert pyarrow.csv.read_csv(files / "rows.csv")["status"].to_pylist() == rows["status"].to_pylist()

    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found
    data = json.loads(found[1])
    listed = [dict(zip(data["fields"], row, strict=True)) for row in data["rows"]]
    broken_later = next(row for row in listed if row["run"] == 1 and row["status"] == "success")
    for number, row in enumerate((broken_later, listed[-1])):
        again = data["runs"][row["run"]]["again"]
        target = [] if row["target"] is None else ["--target", str(row["target"])]
        out = tmp_path / f"again-{number}"
        assert main([*shlex.split(again)[1:], "--ids", str(row["image_id"]), *target, "--out", str(out)]) == 0
        name = data["runs"][row["run"]]["name"]
        made = pq.read_table(out / "parts").drop_columns(["seconds", "worker"]).to_pylist()
        first = [
            r for r in tables[name].drop_columns(["seconds", "worker"]).to_pylist() if r["image_id"] == row["image_id"]
        ]
        assert sorted(made, key=lambda r: r["params_hash"]) == sorted(first, key=lambda r: r["params_hash"])


def test_runs_of_one_name(
    mnist_folder: Path,
    tmp_path: Path,
    kept_ray: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each mark of a figure is a row of the run that it was drawn from, whatever the folders are called."""
    given = {"a/x": "0.1", "b/x": "0.2", r"a$\frac$b/R_1": "0.3", r"a$\frac$b/r-1": "0.3"}
    common = ["--model", str(mnist_folder), "--data", "mnist", "--limit", "12", "--correct"]
    for folder, epsilon in given.items():
        out = tmp_path / folder
        assert main(["attack", "fgsm", *common, "--epsilon", epsilon, "--out", str(out)]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["report", *given, "--files", "files"]) == 0
    html = Path("page.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert found
    data = json.loads(found[1])
    assert [run["name"] for run in data["runs"]] == ["a/x", "b/x", "R_1", "r-1"]
    rows = [dict(zip(data["fields"], row, strict=True)) for row in data["rows"]]
    drawing = html.split('data-key="distance-l2-1"')[1].split("</figure>")[0]
    for number in range(4):
        group = drawing.split(f'id="distance-l2-1--distance-l2-1-{number}"')[1].split(f'-1-{number + 1}"')[0]
        marks = [rows[int(row)] for row in re.findall(r'data-row="(\d+)"', group)]
        assert {mark["run"] for mark in marks} == {number}
        assert len(marks) == sum(row["run"] == number and row["status"] == "success" for row in rows) > 0
    names = {path.name for path in Path("files").iterdir()}
    assert {f"label-prediction-{key}.svg" for key in ("a-x", "b-x", "r-1", "r-1-2")} <= names
    assert pq.read_table("files/rows.parquet")["run"].unique().to_pylist() == ["a/x", "b/x", "R_1", "r-1"]
    capsys.readouterr()
    assert main(["report", "a/x", str(tmp_path / "b/../a/x")]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--files", str(tmp_path / "x")]) == 2
    assert "run.json" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
