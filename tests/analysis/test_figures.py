"""The numbers behind the figures against loops over rows, on random searches; what the figures name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.comparison import compare
from analysis.detection import AttackRows, DetectorReport, Kind
from analysis.exhibits import Exhibit, key_of, keys_of, row_key, write_exhibits
from analysis.figures.comparison import comparison_exhibits
from analysis.figures.detection import detection_exhibits
from analysis.figures.heat import heat_map
from analysis.figures.robustness import robustness_exhibits
from analysis.figures.runs import _extremes, run_exhibits
from analysis.figures.style import CLASSES, COLOURS, STYLES, WIDTH, svg
from analysis.figures.transfer import transfer_exhibits
from analysis.page.listing import Listing
from analysis.run_view import RunView
from analysis.statistics import Rate
from tests.analysis.detector_cases import rows as attack_rows
from tests.analysis.test_detection_page import a_report
from tests.analysis.test_robustness import FIRST, known, stage
from tests.analysis.test_transfer import counted
from tests.analysis.test_transfer import drawn as answers
from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import JSMA, PGD, Attack, OnePixelExact, RandomPixels
from workers.images import Dataset
from workers.places import Place
from workers.results import Status, by_products_table

COUNT = 24
ENDED = ("success", "exhausted", "certified")


@pytest.fixture(scope="module", params=["grey", "colour"])
def subject(request: pytest.FixtureRequest) -> tuple[Any, Dataset, int]:
    """A model with random weights, images of which it has one wrong, and its number of classes."""
    model, shape, classes = random_model(request.param, 90)
    images = random_images(shape, COUNT, 91)
    labels = predictions(model, images)
    labels[3] = (labels[3] + 1) % classes
    return model, Dataset(images, labels, "test", "random"), classes


def view(subject: tuple[Any, Dataset, int], attack: Attack, name: str, target: str | None = None) -> RunView:
    model, dataset, classes = subject
    images, labels, targets = dataset.images, dataset.labels, None
    if target == "all":
        images, labels = (np.repeat(each, classes, axis=0) for each in (images, labels))
        targets = np.tile(np.arange(classes), COUNT)
    found = attack(model, images, labels, targets=targets)
    table = found.to_table()
    if target == "all":
        table = table.set_column(0, table.schema.field(0), pa.array(np.repeat(np.arange(COUNT), classes)))
    beside = by_products_table(found)
    return RunView(Place.of(f"/runs/{name}"), name, key_of(name), attack, target, len(table), table, (), beside)


@pytest.fixture(scope="module")
def runs(subject: tuple[Any, Dataset, int]) -> list[RunView]:
    budgets = [
        view(subject, RandomPixels(pixels=k, max_queries=300), "random") for k in (1, 3, 6)
    ]  # fmt: skip
    return [
        view(subject, JSMA(gamma=0.1), "towards", "all"),
        view(subject, PGD(epsilon=0.05, steps=5), "ball"),
        *budgets,
        view(subject, OnePixelExact(levels="extremes"), "exact"),
    ]


@pytest.fixture(scope="module")
def exhibits(subject: tuple[Any, Dataset, int], runs: list[RunView]) -> dict[str, Exhibit]:
    return {exhibit.key: exhibit for exhibit in run_exhibits(runs, subject[1])}


def records(exhibit: Exhibit) -> list[dict[str, Any]]:
    assert exhibit.table is not None
    return exhibit.table.to_pylist()


def ended(run: RunView) -> list[dict[str, Any]]:
    return [row for row in run.table.to_pylist() if row["status"] in ENDED]


def check(record: dict[str, Any], hits: int, of: int, images: int | None = None) -> None:
    assert (record["successes"], record["searches"]) == (hits, of)
    assert (record["low"], record["high"]) == Rate(hits, of, images).interval
    assert record["rate"] == hits / of


def test_source_to_target(exhibits: dict[str, Exhibit], runs: list[RunView]) -> None:
    rows, seen = ended(runs[0]), 0
    for record in records(exhibits["source-target"]):
        cell = [row for row in rows if (row["label"], row["target"]) == (record["source"], record["target"])]
        won = [row for row in cell if row["success"]]
        check(record, len(won), len(cell))
        seen += len(cell)
        if won:
            share = np.mean([row["l0_features"] / np.prod(row["shape"]) for row in won])
            assert record["changed"] == pytest.approx(share, abs=1e-12)
        else:
            assert record["changed"] is None
    assert seen == len(rows) > 0


def test_label_to_prediction(exhibits: dict[str, Exhibit], runs: list[RunView]) -> None:
    found = records(exhibits["label-prediction"])
    seen: dict[tuple[str, str], int] = {}
    for run in runs[1:]:
        rows = ended(run)
        for record in found:
            if (record["run"], record["attack"]) != (run.name, run.attack.title):
                continue
            of = [row for row in rows if row["label"] == record["label"]]
            won = [row for row in of if row["success"] and row["adversarial_prediction"] == record["prediction"]]
            check(record, len(won), len(of))
            key = (run.name, run.attack.title)
            seen[key] = seen.get(key, 0) + len(won)
        assert seen.get((run.name, run.attack.title), 0) == sum(row["success"] for row in rows)
    assert sum(seen.values()) == sum(record["successes"] for record in found) > 0


def test_success_by_queries_and_by_budget(exhibits: dict[str, Exhibit], runs: list[RunView]) -> None:
    by_title = {(run.name, run.attack.title): ended(run) for run in runs}
    curves = records(exhibits["queries"])
    assert {(record["run"], record["attack"]) for record in curves} == by_title.keys()
    for record in curves:
        rows = by_title[record["run"], record["attack"]]
        images = len({row["image_id"] for row in rows})
        assert images < len(rows) or record["run"] != "towards"
        check(record, sum(row["success"] and row["queries"] <= record["queries"] for row in rows), len(rows), images)
    last = {(record["run"], record["attack"]): record for record in curves}
    for key, record in last.items():
        assert record["queries"] == max(row["queries"] for row in by_title[key])
        assert record["successes"] == sum(row["success"] for row in by_title[key])
    budgets = records(exhibits["budgets"])
    assert [(record["run"], record["parameter"], record["value"]) for record in budgets] == [
        ("random", "pixels", 1), ("random", "pixels", 3), ("random", "pixels", 6),
    ]  # fmt: skip
    for record in budgets:
        rows = by_title["random", record["attack"]]
        check(record, sum(row["success"] for row in rows), len(rows))
    assert budgets[0]["successes"] < budgets[2]["successes"]


def test_distances_and_the_rows_that_dots_stand_for(exhibits: dict[str, Exhibit], runs: list[RunView]) -> None:
    by_title = {(run.name, run.attack.title): ended(run) for run in runs}
    for record in records(exhibits["distances"]):
        won = [row for row in by_title[record["run"], record["attack"]] if row["success"]]
        values = sorted(row[record["norm"]] for row in won)
        assert record["successes"] == len(values)
        assert record["median"] == pytest.approx(np.median(values))
        assert record["median_low"] <= record["median"] <= record["median_high"]
    keyed = {row_key(run.name, row): row for run in runs for row in ended(run)}
    for drawing in exhibits["distances"].drawings:
        assert len(drawing.rows) == sum(any(row["success"] for row in ended(run)) for run in (*runs[:2], *runs[4:]))
        for gid, keys in drawing.rows.items():
            assert len(set(keys)) == len(keys)
            norm = drawing.key.split("-")[1]
            distances = [keyed[key][norm] for key in keys]
            (dots,) = [art for art in drawing.figure.axes[0].collections if art.get_gid() == gid]
            x, y = np.asarray(dots.get_offsets()).T
            assert x.tolist() == distances == sorted(distances)
            assert y[-1] == 100
            picture = svg(drawing.figure, drawing.key)
            assert picture.split(f'id="{gid}"')[1].split("</g>\n   </g>")[0].count("<use ") >= len(keys)


def test_vulnerable_pixels(
    exhibits: dict[str, Exhibit], runs: list[RunView], subject: tuple[Any, Dataset, int]
) -> None:
    exact, (_, height, width) = runs[-1], subject[1].shape
    assert exact.by_products is not None
    beside = {row["image_id"]: row for row in exact.by_products.to_pylist()}
    maps = [np.reshape(beside[row["image_id"]]["map"], (height, width)) for row in ended(exact)]
    exhibit = exhibits["vulnerable-exact"]
    found = records(exhibit)
    assert [(record["row"], record["column"]) for record in found] == list(np.ndindex(height, width))
    for record in found:
        here = [each[record["row"], record["column"]] for each in maps]
        assert record["mean_successes"] == pytest.approx(np.mean(here))
        check(record, sum(count > 0 for count in here), len(maps))
    broken = Rate(sum(bool(each.any()) for each in maps), len(maps))
    assert broken.hits > 0
    assert str(broken) in exhibit.finding
    assert str(Rate(0, len(maps))) in exhibit.finding  # extremes only: none is certified
    assert [drawing.key.rsplit("-", 1)[1] for drawing in exhibit.drawings] == ["mean", "images"]


def test_by_products_of_other_rows_give_no_map(runs: list[RunView], subject: tuple[Any, Dataset, int]) -> None:
    assert runs[-1].by_products is not None
    some = replace(runs[-1], by_products=runs[-1].by_products.slice(5))
    assert not any(exhibit.key.startswith("vulnerable") for exhibit in run_exhibits([some], subject[1]))


def drawn(exhibits: Sequence[Exhibit]) -> dict[str, str]:
    """Each figure as SVG, once what all must keep to is checked."""
    pictures = {}
    for exhibit in exhibits:
        assert exhibit.finding.endswith(".")
        for drawing in exhibit.drawings:
            assert drawing.figure.get_size_inches()[0] <= WIDTH
            picture = svg(drawing.figure, drawing.key)
            assert drawing.key not in pictures
            colours = {f"#{part[:6]}" for part in picture.split("fill: #")[1:] + picture.split("stroke: #")[1:]}
            assert colours <= {*COLOURS, *CLASSES}
            pictures[drawing.key] = picture
    return pictures


def test_figures_name_their_axes_and_keep_to_the_palette(exhibits: dict[str, Exhibit], tmp_path: Path) -> None:
    pictures = drawn(list(exhibits.values()))
    for start, labels in {
        "source-target": ("source: label", "target"),
        "label-prediction": ("label", "prediction of the adversarial image"),
        "queries": ("queries allowed an image", "success (% of searches)", "random-pixels --pixels 6", "jsma → all"),
        "budget": ("pixels that may change, k", "success (% of searches)"),
        "distance-l2": ("L2 (pixels in 0 to 1)", "successes within (%)"),
        "vulnerable-exact-mean": ("row", "column", "changes that reach the goal, mean"),
        "vulnerable-exact-images": ("image ",),
    }.items():
        matching = [key for key in pictures if key.startswith(start)]
        assert matching
        for label in labels:
            assert f">{label}" in pictures[matching[0]]
    written = write_exhibits(list(exhibits.values()), tmp_path / "figures")
    assert {path.name for path in written} | {"exhibits.json"} == {
        path.name for path in (tmp_path / "figures").iterdir()
    }


def test_a_folder_of_exhibits_is_kept_as_the_last_call_left_it(tmp_path: Path) -> None:
    def exhibit(key: str, value: int) -> Exhibit:
        return Exhibit(key, "numbers", "none.", table=pa.table({"value": [value]}))

    def states() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in tmp_path.iterdir()}  # writing makes another file

    for name in ("mine.csv", "second.txt"):
        (tmp_path / name).write_text("a user's")
    write_exhibits([exhibit("first", 1), exhibit("second", 2)], tmp_path)
    before = states()
    write_exhibits([exhibit("first", 1), exhibit("second", 2)], tmp_path)
    assert states() == before
    write_exhibits([exhibit("first", 1), exhibit("third", 3)], tmp_path)
    after = states()
    assert after.keys() == {
        "mine.csv", "second.txt", "exhibits.json", "first.csv", "first.parquet", "third.csv", "third.parquet"
    }  # fmt: skip
    assert {name for name in before.keys() & after.keys() if before[name] != after[name]} == {"exhibits.json"}
    (tmp_path / "exhibits.json").write_text('{"files": ["mine.csv/", "../mine.csv", 5]}')
    write_exhibits([exhibit("first", 4)], tmp_path)
    assert (tmp_path / "third.csv").exists()  # not known to be one of these any more
    assert pq.read_table(tmp_path / "first.parquet")["value"].to_pylist() == [4]
    assert (tmp_path / "mine.csv").read_text() == "a user's"


def test_nothing_from_no_data(runs: list[RunView], subject: tuple[Any, Dataset, int]) -> None:
    assert run_exhibits([], subject[1]) == []
    empty = [replace(run, table=run.table.slice(0, 0)) for run in runs]
    assert run_exhibits(empty, subject[1]) == []
    skipped = runs[0].table.filter(pa.array([row not in ENDED for row in runs[0].table["status"].to_pylist()]))
    assert len(skipped)
    assert run_exhibits([replace(runs[0], table=skipped)], subject[1]) == []
    failures = runs[2].table.filter(pa.array([not won for won in runs[2].table["success"].to_pylist()]))
    assert {one.key for one in run_exhibits([replace(runs[2], table=failures)], subject[1])} == {"queries"}
    assert not {"source-target", "budgets"} & {one.key for one in run_exhibits([runs[1]], subject[1])}


def test_runs_called_alike_are_told_apart(runs: list[RunView], subject: tuple[Any, Dataset, int]) -> None:
    twin = replace(runs[1], place=Place.of("/runs/twin"), name="twin", key="twin")
    found = {one.key: one for one in run_exhibits([runs[1], twin], subject[1])}
    assert f"{runs[1].attack.title} (ball)" in found["queries"].finding
    assert f"{runs[1].attack.title} (twin)" in found["queries"].finding
    drawn(list(found.values()))


def test_every_run_twice_has_its_own_drawings_and_rows(runs: list[RunView], subject: tuple[Any, Dataset, int]) -> None:
    """The same searches again, in folders of the same names elsewhere; names that would be formulas."""
    again = [
        replace(run, place=Place.of(f"/a$\\frac$b/{run.name}"), name=f"a$\\frac$b/{run.name}", key=f"b-{run.key}")
        for run in runs
    ]
    found = run_exhibits([*runs, *again], subject[1])
    pictures = drawn(found)  # whose keys all differ
    assert len({exhibit.key for exhibit in found}) == len(found)
    assert r"a$\frac$b/ball" in pictures["queries-2"]
    numbers = Listing.of([*runs, *again], subject[1]).numbers
    assert len(numbers) == 2 * sum(len(run.table) for run in runs)
    for exhibit in found:
        for drawing in exhibit.drawings:
            for keys in drawing.rows.values():
                assert len({key.rpartition("/")[0].rsplit("/", 2)[0] for key in keys}) == 1  # one run's
                assert numbers.keys() >= set(keys)


def test_transfer_matrices_are_the_cells() -> None:
    report = counted(answers())
    (exhibit,) = transfer_exhibits(report)
    pictures = drawn([exhibit])
    assert list(pictures) == ["transfer-pgd", "transfer-ddn"]
    for attack in ("pgd", "ddn"):
        texts = [text.split("</text>")[0].split(">")[-1] for text in pictures[f"transfer-{attack}"].split("<text ")[1:]]
        shown = [cell for cell in report.cells if cell.attack == attack and cell.rate.value is not None]
        expected = [f"{100 * (cell.rate.value or 0):.0f}" for cell in shown]
        assert sorted(text for text in texts if text.isdigit()) == sorted(expected)
        assert {"a", "b", "made", "itself", "source", "victim"} <= set(texts)
    assert exhibit.table is not None
    assert len(exhibit.table) == len(report.cells)
    for victim in report.victims:
        assert f"{victim.name}: {victim.judgement.verdict}" in exhibit.finding
        assert str(victim.fooled) in exhibit.finding
    assert transfer_exhibits(replace(report, cells=())) == []


def a_detector_report() -> DetectorReport:
    """With its attacks, more of one kind than one figure takes, and scores that are no numbers."""
    rng = np.random.default_rng(92)
    report = a_report("vae <kl>")
    attacks = []
    for number in range(len(STYLES) + 2):
        score = np.where(rng.random(80) < 0.1, np.nan, rng.normal(0.3, 0.2, 80))
        found = attack_rows(
            f"joint-{number}", kind=Kind.ADAPTIVE, score=score, fooled=rng.random(80) < 0.7, margin=rng.normal(0, 4, 80)
        )
        attacks.append(found)
    attacks.append(attack_rows("cw", score=rng.normal(0.5, 0.2, 80), fooled=np.ones(80)))
    scores = {"clean": report.scores["clean"], **{one.name: one.score[one.success] for one in attacks}}
    right = np.random.default_rng(93).random(len(scores["clean"])) < 0.97
    return replace(report, attacks=tuple(attacks), scores=scores, right=right)


def test_detector_figures() -> None:
    report = a_detector_report()
    found = {exhibit.key: exhibit for exhibit in detection_exhibits([report])}
    assert list(found) == ["detector-vae-kl", "false-alarms"]
    pictures = drawn(list(found.values()))
    of = "detector-vae-kl"
    assert set(pictures) == {
        f"{of}-scores", f"{of}-roc-adaptive-1", f"{of}-fooled-adaptive-1", f"{of}-roc-adaptive-2",
        f"{of}-fooled-adaptive-2", f"{of}-roc-naive", "false-alarms",  # the naive attack has no margins
    }  # fmt: skip
    for key, labels in {
        f"{of}-scores": ("score", "clean", "joint-0", " 5% ", " 1% "),
        f"{of}-roc-naive": ("clean images flagged (%)", "successes flagged (%)", "cw: AUROC "),
        f"{of}-fooled-adaptive-1": (
            "margin of the classifier alone (logits; wrong above 0)",
            "detector's score",
        ),
        "false-alarms": ("clean test images flagged (%)", "vae &lt;kl&gt;"),
    }.items():
        for label in labels:
            assert f">{label}" in pictures[key], label
    assert str(report.judgement.verdict) in found[of].finding
    assert report.judgement.reasons[0] in found[of].finding

    (roc,) = [one for one in found[of].drawings if one.key == f"{of}-roc-adaptive-1"]
    clean = report.scores["clean"][report.right]
    for line, attack in zip(roc.figure.axes[0].lines[: len(STYLES)], report.attacks, strict=False):
        successes = np.nan_to_num(attack.score[attack.success], nan=-1e9)
        taus = [np.inf, *np.unique(clean), *np.unique(successes), -np.inf]
        expected = {(100 * np.mean(clean >= tau), 100 * np.mean(successes >= tau)) for tau in taus}
        points = list(zip(*(np.asarray(part).tolist() for part in line.get_data()), strict=True))
        assert len(points) > 20
        for alarms, flagged in points:
            assert any(abs(alarms - x) + abs(flagged - y) < 1e-9 for x, y in expected)

    for record, (alarms, images) in zip(
        records(found["false-alarms"]),
        [(one, rate) for one in report.alarms for rate in (one.all, one.right, one.wrong)],
        strict=True,
    ):
        assert (record["stated"], record["threshold"]) == (alarms.threshold.rate, alarms.threshold.value)
        assert (record["flagged"], record["images"]) == (images.hits, images.total)
        assert (record["low"], record["high"]) == images.interval
    for record, cell in zip(records(found[of]), report.cells, strict=True):
        assert cell.success.interval == (record["success_low"], record["success_high"])
        assert cell.auroc is not None
        assert (record["auroc"], record["auroc_low"], record["auroc_high"]) == (cell.auroc.value, *cell.auroc.interval)


def test_what_a_margin_is_of() -> None:
    report = a_detector_report()

    def captions(attacks: Sequence[AttackRows]) -> list[str]:
        (exhibit, *_) = detection_exhibits([replace(report, attacks=tuple(attacks))])
        return [one.caption for one in exhibit.drawings if "-fooled-" in one.key]

    plain = captions(report.attacks)
    assert plain
    assert all("margin of the classifier alone" in caption for caption in plain)
    assert not any("repairs" in caption or "target" in caption for caption in plain)
    towards = captions([replace(one, targeted=True) for one in report.attacks])
    assert all("another class than the label, be that the target or not" in caption for caption in towards)
    repaired = captions([replace(one, bare_prediction=(one.prediction + 1) % 10) for one in report.attacks])
    assert all(caption.endswith("the guarded model may answer otherwise.") for caption in repaired)
    unchanged = captions([replace(one, bare_prediction=one.prediction) for one in report.attacks])
    assert not any("repairs" in caption for caption in unchanged)


def test_the_pair_of_classes_that_is_named() -> None:
    totals = np.array([[0, 20, 20], [20, 0, 20], [9, 12, 0]])
    hits = np.array([[0, 20, 15], [20, 0, 3], [0, 12, 0]])
    said = _extremes(hits, totals)  # 2 → 0 has too few searches to be the least
    assert said == (
        f", most often in 3 of 5 pairs of classes, each 100.0% of 12 to 20 searches, least often 1 → 2: {Rate(3, 20)}"
    )
    hits[1, 0], hits[2, 1] = 19, 11
    assert _extremes(hits, totals) == f", most often 0 → 1: {Rate(20, 20)}, least often 1 → 2: {Rate(3, 20)}"
    assert _extremes(totals, totals) == ""
    assert _extremes(hits // 20, totals // 20) == ""


def test_a_detector_without_scores_or_attacks_gives_what_it_can() -> None:
    report = a_detector_report()
    bare = replace(report, attacks=(), right=None)
    (first, _) = detection_exhibits([bare])
    assert [drawing.key for drawing in first.drawings] == ["detector-vae-kl-scores"]
    broken = replace(bare, scores={"clean": np.full(5, np.nan)}, alarms=())
    assert detection_exhibits([broken]) == []
    assert detection_exhibits([]) == []


def test_stages_of_an_evaluation() -> None:
    second = stage("second", {2: Status.SUCCESS, 4: Status.EXHAUSTED, 8: Status.CERTIFIED}, certifies=True)
    found = known(replace(FIRST, certifies=True), second)
    (exhibit,) = robustness_exhibits(found)
    pictures = drawn([exhibit])
    assert set(pictures) == {"stages", "stages-seconds"}
    for label in ("first", "second", "robust accuracy at most (%)"):
        assert f">{label}" in pictures["stages"]
    assert ">worker time (s)" in pictures["stages-seconds"]
    assert [record["remaining"] for record in records(exhibit)] == [4, 3]
    for record in records(exhibit):
        assert (record["low"], record["high"]) == Rate(record["remaining"], 6).interval
    assert f"at most {found.at_most}" in exhibit.finding
    assert f"at least {found.at_least}" in exhibit.finding
    assert robustness_exhibits(known()) == []


def test_a_comparison_has_both_shares_and_their_difference(
    runs: list[RunView], subject: tuple[Any, Dataset, int]
) -> None:
    found = [compare(runs[2].table, run.table, name=f"--pixels {run.attack.pixels}") for run in runs[3:5]]
    (exhibit,) = comparison_exhibits(found, "A (x)", "B (y)", "success")
    pictures = drawn([exhibit])
    for label in ("success (%)", "A (x)", "B (y)", "--pixels 3", "--pixels 6"):
        assert f">{label}" in pictures["comparison-shares"]
    assert ">difference (points)" in pictures["comparison-difference"]
    assert [record["at"] for record in records(exhibit)] == ["--pixels 3", "--pixels 6"]
    assert comparison_exhibits([], "A", "B", "success") == []


def test_many_classes_fit_without_numbers() -> None:
    shares = np.random.default_rng(94).random((40, 40))
    figure = heat_map(shares, list(map(str, range(40))), list(map(str, range(40))), row_axis="r", column_axis="c")
    picture = svg(figure, "many")
    assert figure.get_size_inches()[0] <= WIDTH
    assert picture.count("fill-opacity") >= 1600
    assert picture.count("<text ") < 60


def test_keys_of_any_name() -> None:
    assert key_of("ROC", "vae-kl,code_size=8", "→ 6") == "roc-vae-kl-code-size-8-6"
    assert key_of("→") == "x"
    assert keys_of(["R_1", "r-1", "x", "→", "r-1-2", "R 1"]) == ["r-1", "r-1-2", "x", "x-2", "r-1-2-2", "r-1-3"]
