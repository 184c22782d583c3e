"""brittle compare on real runs: its numbers again by hand from the parts, the gate, and what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from analysis.comparison import compare
from analysis.robustness import Robustness
from analysis.statistics import Rate
from jobs.compare import _Side
from jobs.evaluation import EvaluationFolder
from jobs.main import main
from jobs.recorded import open_run
from tests.analysis.test_robustness import stage
from workers.places import Place
from workers.results import Status

pytestmark = pytest.mark.usefixtures("kept_ray")

ENDED = ("success", "exhausted", "certified")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two CNNs, the second trained a quarter as long from other weights."""
    folder = tmp_path_factory.mktemp("digits")
    for name, epochs, seed in (("plain", "8", "1"), ("other", "2", "2")):
        how = ("--epochs", epochs, "--seed", seed, "--batch-size", "64")
        assert main(["train", "--data", "digits", "--out", str(folder / name), *how]) == 0
    return [folder / "plain", folder / "other"]


def attack(name: str, model: Path, out: Path, *flags: str) -> str:
    assert main(["attack", name, "--model", str(model), "--data", "digits", "--out", str(out), *flags]) == 0
    return str(out)


@pytest.fixture(scope="module")
def runs(models: list[Path], tmp_path_factory: pytest.TempPathFactory, kept_ray: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("runs")
    wide = ("--limit", "60", "--steps", "5", "--epsilon", "0.05,0.1,0.15")
    return {
        "plain": attack("pgd", models[0], folder / "plain", *wide),
        "other": attack(
            "pgd", models[1], folder / "other", "--limit", "50", "--steps", "8", "--epsilon", "0.1,0.15,0.3"
        ),
        "targeted": attack("jsma", models[0], folder / "targeted", "--limit", "12", "--target", "all"),
        "wider": attack("jsma", models[1], folder / "wider", "--limit", "12", "--target", "all", "--gamma", "0.05"),
        "elsewhere": attack("fgsm", models[0], folder / "elsewhere", "--ids", "200,201,202"),
        "train": attack("fgsm", models[0], folder / "train", "--limit", "10", "--split", "train"),
        "exact": attack("one-pixel-exact", models[1], folder / "exact", "--limit", "20", "--levels", "extremes"),
    }


def rows(run: str, params_hash: str) -> dict[tuple[int, int | None], dict[str, Any]]:
    """The rows that ended, by key, straight from the parts."""
    found = pq.read_table(Path(run) / "parts").drop_columns(["adversarial"]).to_pylist()
    mine = [row for row in found if row["params_hash"] == params_hash and row["status"] in ENDED]
    return {(row["image_id"], row["target"]): row for row in mine}


def test_two_models_at_each_budget_that_both_have(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison"
    assert main(["compare", runs["plain"], runs["other"], "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "note: --steps differs: A 5, B 8" in printed.err
    assert "--seed" not in printed.err
    assert "--epsilon" not in printed.err
    content = json.loads((out / "comparison.json").read_text())
    assert [one["at"] for one in content["comparisons"]] == ["--epsilon 0.1", "--epsilon 0.15"]
    assert content["differs"] == ["--steps differs: A 5, B 8"]
    attacks = [open_run(Place.of(runs[name])).attacks for name in ("plain", "other")]
    for number, one in enumerate(content["comparisons"]):
        a = rows(runs["plain"], attacks[0][number + 1].params_hash)
        b = rows(runs["other"], attacks[1][number].params_hash)
        keys = a.keys() & b.keys()
        assert 30 < len(keys) < 50  # the models have some images wrong
        outcomes = [(a[key]["success"], b[key]["success"]) for key in keys]
        assert one["both"] == outcomes.count((True, True)) > 0
        assert one["only_first"] == outcomes.count((True, False))
        assert one["only_second"] == outcomes.count((False, True))
        assert one["neither"] == outcomes.count((False, False))
        gained = np.mean([second - first for first, second in outcomes])
        assert one["difference"]["value"] == pytest.approx(gained)
        won = [key for key in keys if a[key]["success"] and b[key]["success"]]
        for name in ("l0", "l2", "linf"):
            expected = np.median([np.float64(b[key][name]) - a[key][name] for key in won])
            assert one["paired"][name]["difference"] == pytest.approx(expected, abs=1e-6)
        assert f"success of A {Rate(one['first']['images'], one['first']['of'])}" in printed.out
        assert f"only A {one['only_first']}, only B {one['only_second']}" in printed.out
    names = {path.name for path in out.iterdir()}
    assert {"comparison.parquet", "comparison.csv", "comparison-shares.png", "comparison-difference.svg"} <= names
    assert main(["compare", runs["plain"], runs["other"], "--out", str(out)]) == 0  # a comparison may be made again


def test_no_worse(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    better, worse = runs["plain"], runs["other"]
    assert main(["compare", better, better, "--require", "no-worse"]) == 0
    assert "no row tells them apart" in capsys.readouterr().out
    codes = [main(["compare", *pair, "--require", "no-worse"]) for pair in ((better, worse), (worse, better))]
    assert sorted(codes) == [0, 1]
    bad = (better, worse) if codes[0] else (worse, better)
    assert "B is worse than A, at --epsilon 0.1" in capsys.readouterr().out
    assert main(["compare", *bad, "--require", "no-worse", "--margin", "1"]) == 0


def test_targets_are_paired_with_their_like(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", runs["targeted"], runs["wider"], "--out", str(tmp_path / "c")]) == 0
    (one,) = json.loads((tmp_path / "c" / "comparison.json").read_text())["comparisons"]
    a, b = (rows(runs[name], open_run(Place.of(runs[name])).attacks[0].params_hash) for name in ("targeted", "wider"))
    keys = a.keys() & b.keys()
    assert one["first"]["of"] == len(keys) > one["images"] == len({image for image, _ in keys})
    assert one["only_second"] == sum(b[key]["success"] and not a[key]["success"] for key in keys)
    better = {image: 0 for image, _ in keys}
    for key in keys:
        better[key[0]] += b[key]["success"] - a[key]["success"]
    ways = [sum(gain < 0 for gain in better.values()), sum(gain > 0 for gain in better.values())]
    assert one["mcnemar_p"] == pytest.approx(binomtest(ways[0], sum(ways)).pvalue if any(ways) else 1)
    assert one["first"]["interval"] == list(Rate(one["first"]["images"], len(keys), one["images"]).interval or ())
    assert "McNemar's exact p by image" in capsys.readouterr().out


def test_a_difference_of_one_image_is_not_worse_however_many_targets_it_has() -> None:
    def side(lost: Sequence[int]) -> pa.Table:
        won = np.repeat(~np.isin(np.arange(8), lost), 9)
        return pa.table({"image_id": np.repeat(np.arange(8), 9), "target": np.tile(np.arange(9), 8), "success": won,
                         "status": np.where(won, "success", "exhausted")})  # fmt: skip

    whole = _Side("B", "", "success", {}, {}, [])
    few, many = (compare(side(lost), side([])) for lost in ([0, 1, 2, 3], list(range(7))))
    assert few.difference.interval[0] > 0
    assert (whole.worse(few, 0), whole.worse(many, 0)) == (False, True)


def test_wrong_input(runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("")
    evaluation = EvaluationFolder(tmp_path / "evaluation")
    evaluation.path.mkdir()
    evaluation.create({})
    out = tmp_path / "out"
    for arguments, said in (
        ((runs["plain"], runs["train"]), "another data"),
        ((runs["plain"], runs["elsewhere"]), "no budget in common"),
        ((runs["targeted"], runs["elsewhere"]), "at least 2 images that both searched, got 0"),
        ((runs["plain"], str(tmp_path)), "not a run's folder"),
        ((runs["plain"], str(evaluation.path)), "two runs or two evaluations"),
        ((str(evaluation.path), str(evaluation.path)), "cannot be read: 'data'"),
        ((runs["plain"], runs["other"], "--require", "better"), "--require: expected no-worse"),
        ((runs["plain"], runs["other"], "--margin", "0.1"), "--margin: goes with --require"),
        ((runs["plain"], runs["other"], "--margin", "7", "--require", "no-worse"), "a share from 0 to 1"),
        ((runs["plain"], runs["other"], "--out", str(taken)), "not a comparison's folder"),
        ((runs["plain"],), "SECOND"),
    ):
        where = () if "--out" in arguments else ("--out", str(out))
        assert main(["compare", *arguments, *where]) == 2
        told = capsys.readouterr().err.strip()
        assert said in told
        assert "\n" not in told
        assert not out.exists()
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = np.arange(40)
    standing = {"a": ids < 10, "b": ids < 25}  # broken
    for name, broken in standing.items():
        folder = EvaluationFolder(tmp_path / name)
        folder.path.mkdir()
        folder.create({"data": "d", "split": "test", "model": name * 20, "epsilon": 0.1 if name == "a" else 0.2})
        found = {int(i): Status.SUCCESS if broken[i] else Status.EXHAUSTED for i in ids[:-2]}
        found |= {38: Status.ALREADY_WRONG, 39: Status.CERTIFIED}
        known = Robustness(ids, np.full(40, 3), [stage("first", found)])
        folder.write({}, known)
    sides = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", *sides, "--out", str(tmp_path / "c"), "--require", "no-worse"]) == 1
    printed = capsys.readouterr()
    assert f"robust accuracy of A {Rate(29, 40)}" in printed.out
    assert f"robust accuracy of B {Rate(14, 40)}" in printed.out
    assert "epsilon differs: A 0.1, B 0.2" in printed.err
    (one,) = json.loads((tmp_path / "c" / "comparison.json").read_text())["comparisons"]
    assert (one["both"], one["only_first"], one["only_second"], one["neither"]) == (14, 15, 0, 11)
    assert one["mcnemar_p"] == pytest.approx(2 / 2**15)
    assert main(["compare", *sides[::-1], "--require", "no-worse"]) == 0
    (tmp_path / "b" / "images.parquet").unlink()
    assert main(["compare", *sides]) == 2
    assert "has no results yet" in capsys.readouterr().err


def test_by_products_are_read_beside_their_rows(runs: dict[str, str]) -> None:
    exact = open_run(Place.of(runs["exact"]))
    ((_, table),), (beside,) = exact.tables, exact.by_products
    assert beside is not None
    found = {row["image_id"]: row for row in beside.to_pylist()}
    ended = [row for row in table.to_pylist() if row["status"] in ENDED]
    assert sum(row["success"] for row in ended) > 0
    for row in ended:  # of the others nothing need be left
        count = found[row["image_id"]]["successes"]
        assert (count > 0) == row["success"]
        assert sum(found[row["image_id"]]["map"]) == count
    assert open_run(Place.of(runs["plain"])).by_products == [None, None, None]
