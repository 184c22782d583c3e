"""brittle compare on real runs: its numbers again by hand from the parts, the gate, and what it refuses."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from analysis.comparison import compare, with_misclassified
from analysis.robustness import Robustness
from analysis.statistics import Rate
from jobs.compare import _Side
from jobs.evaluation import EvaluationFolder
from jobs.main import main
from jobs.recorded import open_run
from tests.analysis.test_robustness import stage
from workers.places import Place
from workers.remedies.checks import unlooked
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
    wide = ("--limit", "50", "--steps", "5", "--epsilon", "0.05,0.1,0.15")
    return {
        "plain": attack("pgd", models[0], folder / "plain", *wide),
        "other": attack(
            "pgd", models[1], folder / "other", "--limit", "50", "--steps", "5", "--epsilon", "0.1,0.15,0.3"
        ),
        "longer": attack("pgd", models[1], folder / "longer", "--limit", "20", "--steps", "8", "--epsilon", "0.1"),
        "wide": attack("pgd", models[1], folder / "wide", "--limit", "20", "--steps", "8", "--epsilon", "0.3"),
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
    assert "note:" not in printed.err
    content = json.loads((out / "comparison.json").read_text())
    assert [one["at"] for one in content["comparisons"]] == ["--epsilon 0.1", "--epsilon 0.15"]
    assert content["differs"] == []
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


def test_what_was_searched_otherwise_is_told_and_passes_no_gate(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for first, second, said in (
        ("plain", "longer", ("--steps differs: A 5, B 8",)),
        ("longer", "wide", ("--epsilon differs: A 0.1, B 0.3",)),
        ("targeted", "wider", ("--gamma differs: A none, B 0.05",)),
        ("exact", "longer", ("two attacks: A attack one-pixel-exact", "B attack pgd")),
    ):
        pair = ["compare", runs[first], runs[second]]
        assert main(pair) == 0
        told = capsys.readouterr().err
        assert f"note: {said[0]}" in told
        assert said[-1] in told
        assert main([*pair, "--require", "no-worse"]) == 2
        refused = capsys.readouterr()
        assert "did not search alike" in refused.err
        assert said[0] in refused.err
        assert said[-1] in refused.err
        assert not refused.out


def test_rows_that_failed_or_are_missing_pass_no_gate(
    runs: dict[str, str], models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(runs["longer"], broken)
    for part in (broken / "parts").glob("*.parquet"):
        table = pq.read_table(part)
        status = ["failed" if image < 3 else str(was) for image, was in
                  zip(table["image_id"].to_pylist(), table["status"].to_pylist(), strict=True)]  # fmt: skip
        won = [was == "success" for was in status]
        columns = {"status": pa.array(status).cast(table.schema.field("status").type), "success": pa.array(won)}
        for name, column in columns.items():
            field = table.schema.field(name)
            table = table.set_column(table.column_names.index(name), field, column)
        pq.write_table(table, part)
    gate = ["--require", "no-worse"]
    assert main(["compare", runs["longer"], str(broken), *gate]) == 1
    told = capsys.readouterr().out
    asked = [row for row in pq.read_table(broken / "parts").to_pylist() if row["status"] in (*ENDED, "failed")]
    failed = sum(row["status"] == "failed" for row in asked)
    assert failed > 0
    assert f"success of B {Rate(sum(row['success'] for row in asked), len(asked), unknown=failed)}" in told
    assert "whether B is worse than A cannot be told: " in told
    assert main(["compare", runs["longer"], str(broken)]) == 0
    cut = tmp_path / "cut"
    shutil.copytree(runs["longer"], cut)
    next((cut / "parts").glob("*.parquet")).unlink()
    assert main(["compare", runs["longer"], str(cut)]) == 0
    assert "note:" in (printed := capsys.readouterr()).err
    assert "shards are not done" in printed.err
    for pair in ((runs["longer"], str(cut)), (str(cut), runs["longer"])):
        assert main(["compare", *pair, *gate]) == 1
        assert "cannot be told" in capsys.readouterr().out
    record = json.loads((cut / "run.json").read_text())
    check = {"name": "scale of logits", "state": "failed", "reason": "so", "remedy": "", "seconds": 0.0}
    record["recorded"]["probe"]["checks"] = [check]
    blind = tmp_path / "blind"
    shutil.copytree(runs["longer"], blind)
    (blind / "run.json").write_text(json.dumps(record))
    assert main(["compare", runs["longer"], str(blind), *gate]) == 1
    assert "may have been blind: scale of logits not remedied" in capsys.readouterr().out
    record["recorded"]["probe"] = unlooked("its worker's process died").describe()
    (blind / "run.json").write_text(json.dumps(record))
    assert main(["compare", runs["longer"], str(blind), *gate]) == 1
    assert "blind: its model could not be looked at: its worker's process died" in capsys.readouterr().out


def changed(run: str, out: Path, statuses: dict[int, str], *, cut: int | None = None) -> str:
    """A copy of a run in which images end otherwise, and those from `cut` on have no row."""
    shutil.copytree(run, out)
    for part in (out / "parts").glob("*.parquet"):
        table = pq.read_table(part)
        table = table.slice(0, sum(image < (cut or 10**9) for image in table["image_id"].to_pylist()))
        pairs = zip(table["image_id"].to_pylist(), table["status"].to_pylist(), strict=True)
        status = [statuses.get(image, str(was)) for image, was in pairs]
        columns = {"status": pa.array(status), "success": pa.array([was == "success" for was in status])}
        for name, column in columns.items():
            field = table.schema.field(name)
            table = table.set_column(table.column_names.index(name), field, column.cast(field.type))
        pq.write_table(table, part)
    return str(out)


def test_a_model_that_has_lost_its_accuracy_is_worse(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although of the images that it is still right about it has as many broken as before."""
    whole = changed(runs["longer"], tmp_path / "whole", dict.fromkeys(range(20), "exhausted"))
    wrong = dict.fromkeys(range(15), "already_wrong")
    lost = changed(whole, tmp_path / "lost", wrong)
    gate = ["--require", "no-worse"]
    assert main(["compare", whole, lost]) == 0
    assert "left out 15 of A and 0 of B" in capsys.readouterr().out
    assert main(["compare", whole, lost, *gate]) == 1
    assert "B is worse than A: broken or misclassified, B less A +75.0 points" in capsys.readouterr().out
    assert main(["compare", whole, lost, *gate, "--margin", "0.9"]) == 0
    assert main(["compare", lost, whole, *gate]) == 0  # it has gained
    assert main(["compare", lost, lost, *gate]) == 0
    failed = changed(lost, tmp_path / "failed", {0: "failed"})  # which may be right, and broken
    for pair in ((lost, failed), (failed, lost)):
        capsys.readouterr()
        assert main(["compare", *pair, *gate]) == 1
        assert "cannot be told: 1 rows failed in A or B" in capsys.readouterr().out


def test_rows_that_only_one_was_asked_about_pass_no_gate(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = changed(runs["longer"], tmp_path / "few", {}, cut=12)
    for pair in ((runs["longer"], few), (few, runs["longer"])):
        assert main(["compare", *pair]) == 0
        capsys.readouterr()
        assert main(["compare", *pair, "--require", "no-worse"]) == 1
        told = capsys.readouterr().out
        alone = sum(row["status"] in (*ENDED, "already_wrong") and row["image_id"] >= 12
                    for row in pq.read_table(Path(runs["longer"]) / "parts").to_pylist())  # fmt: skip
        assert f"{alone} rows of {runs['longer']} are of an image and target that the other was not asked" in told
        assert "not shown" not in told


def test_a_target_that_is_the_label_asks_nothing() -> None:
    """Of an image of the target's class that only one model misclassifies."""
    status = ["skipped", "already_wrong", "already_wrong", "failed", "exhausted", "skipped"]
    rows = pa.table({"image_id": range(6), "label": [2, 2, 3, 3, 3, 3], "target": [2] * 6, "success": [False] * 6,
                     "status": status})  # fmt: skip
    counted = with_misclassified(rows)
    assert counted["image_id"].to_pylist() == [2, 3, 4, 5]
    assert counted["status"].to_pylist() == ["success", "failed", "exhausted", "skipped"]
    assert counted["success"].to_pylist() == [True, False, False, False]


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
    assert few.difference.value == 0.5
    assert few.difference.interval[0] < 0  # four of four: McNemar's p is .125
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


ASKED = {"data": "d", "split": "test", "norm": "linf", "epsilon": 0.1, "levels": 25, "correct": False, "seed": 0}
FINE = {
    "verdict": "none asked", "robust_accuracy": {"void": False}, "checks": [], "images": {"contradicted": 0},
    "unfinished": [],
}  # fmt: skip


def evaluated(path: Path, broken: np.ndarray, *, failed: Sequence[int] = (), ids: int = 40, **changed: Any) -> str:
    """An evaluation of some images; all but the last are searched to an end but those that failed."""
    folder = EvaluationFolder(path)
    folder.path.mkdir()
    about = {name: changed.pop(name) for name in list(changed) if name in ("verdict", "robust_accuracy", "checks",
             "images", "unfinished")}  # fmt: skip
    folder.create(ASKED | {"model": path.name * 20, "attacks": {"first": "aa"}} | changed)
    found = {int(i): Status.SUCCESS if broken[i] else Status.EXHAUSTED for i in range(ids - 2)}
    found |= {ids - 2: Status.ALREADY_WRONG, ids - 1: Status.CERTIFIED} | dict.fromkeys(failed, Status.FAILED)
    folder.write(FINE | about, Robustness(np.arange(ids), np.full(ids, 3), [stage("first", found)]))
    return str(path)


def test_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [evaluated(tmp_path / name, np.arange(40) < count) for name, count in (("a", 10), ("b", 25))]
    assert main(["compare", *sides, "--out", str(tmp_path / "c"), "--require", "no-worse"]) == 1
    printed = capsys.readouterr()
    assert f"robust accuracy of A {Rate(29, 40)}" in printed.out
    assert f"robust accuracy of B {Rate(14, 40)}" in printed.out
    (one,) = json.loads((tmp_path / "c" / "comparison.json").read_text())["comparisons"]
    assert (one["both"], one["only_first"], one["only_second"], one["neither"]) == (14, 15, 0, 11)
    assert one["mcnemar_p"] == pytest.approx(2 / 2**15)
    assert main(["compare", *sides[::-1], "--require", "no-worse"]) == 0
    assert "B is not shown to be worse than A" in capsys.readouterr().out
    assert main(["compare", sides[0], sides[0], "--require", "no-worse"]) == 0
    typed = evaluated(tmp_path / "typed", np.arange(40) < 10, epsilon=25 / 255)  # the same levels
    assert main(["compare", sides[0], typed, "--require", "no-worse"]) == 0
    failed = evaluated(tmp_path / "failed", np.arange(40) < 10, failed=range(30, 34))
    assert main(["compare", sides[0], failed]) == 0
    assert f"robust accuracy of B {Rate(25, 40, unknown=4)}" in capsys.readouterr().out
    assert main(["compare", sides[0], failed, "--require", "no-worse"]) == 1
    assert "4 rows failed" in capsys.readouterr().out
    checks = unlooked("so").describe()["checks"]
    blind = evaluated(tmp_path / "blind", np.arange(40) < 10, checks=checks)
    assert main(["compare", sides[0], blind, "--require", "no-worse"]) == 1
    assert "cannot be told: " in (told := capsys.readouterr().out)
    assert "its model could not be looked at: so" in told
    (tmp_path / "b" / "images.parquet").unlink()
    assert main(["compare", *sides]) == 2
    assert "has no results yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"verdict": "evaluation invalid", "robust_accuracy": {"void": True}}, "is void (evaluation invalid)"),
        ({"verdict": "broken", "robust_accuracy": {"void": True},
          "checks": [{"name": "scale of logits", "state": "failed"}]}, "is void (scale of logits)"),
        ({"unfinished": ["square"]}, "unfinished: square not run to their end"),
        ({"images": {"contradicted": 2}}, "2 images are both broken and certified"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flags", [(), ("--require", "no-worse")])
def test_what_is_void_or_unfinished_compares_with_nothing(
    about: dict[str, Any], said: str, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However robust its number looks, on whichever side it stands."""
    fine = evaluated(tmp_path / "fine", np.arange(40) < 20)
    bad = evaluated(tmp_path / "bad", np.arange(40) < 0, **about)
    for pair in ((fine, bad), (bad, fine), (bad, bad)):
        assert main(["compare", *pair, "--out", str(tmp_path / "c"), *flags]) == 1
        printed = capsys.readouterr()
        assert f"nothing to compare: {bad}: " in printed.out
        assert said in printed.out
        assert "%" not in printed.out
        assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epsilon": 0.2, "levels": 51}, "another ε in levels than"),
        ({"norm": "l2"}, "another norm than"),
        ({"norm": None, "epsilon": None, "levels": None, "pixels": 1}, "another norm than"),
        ({"seed": 7}, "another seed than"),
        ({"correct": True}, "another correct than"),
        ({"attacks": {"first": "aa", "second": "bb"}}, "other attacks than"),
        ({"ids": 39}, "other images than"),
        ({"data": "e"}, "another data than"),
    ],
)
def test_evaluations_that_asked_something_else_are_refused(
    changed: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = evaluated(tmp_path / "one", np.arange(40) < 20)
    other = evaluated(tmp_path / "other", np.arange(40) < 20, **changed)
    for flags in ((), ("--require", "no-worse")):
        assert main(["compare", one, other, *flags]) == 2
        told = capsys.readouterr()
        assert said in told.err
        assert not told.out


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
