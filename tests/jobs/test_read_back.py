"""What is said of runs that are there, on a real Ray: terminal, status and page tell one story, and no better one."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.statistics import Rate
from jobs.launch import _Tally
from jobs.main import main
from tests.analysis.test_page import Seen
from workers.actor import Outcome, ShardSummary
from workers.attacks import FGSM

pytestmark = pytest.mark.usefixtures("kept_ray")

MODELS = """
import torch
from torch import nn


class Answer(nn.Module):
    def __init__(self, lead):
        super().__init__()
        self.lead = lead

    def forward(self, images):
        lead = self.lead(images.flatten(1).mean(dim=1))
        return torch.stack([lead, -lead], dim=1)


def line(factor=1.0):
    return Answer(lambda mean: 20 * factor * (mean - 0.5))


def loud():
    return line(1e3)


def deaf():
    return line(1e6)


def band():
    return Answer(lambda mean: 20 * ((mean - 0.7).abs() - 0.05))
"""


@pytest.fixture(scope="module", autouse=True)
def modules(kept_ray: Path) -> None:
    (kept_ray / "brightness.py").write_text(MODELS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of class 0, of which every model here but `band` takes seven for it, three by a hair."""
    path, rng = tmp_path_factory.mktemp("images") / "eight.npz", np.random.default_rng(0)
    mean = np.array([0.495, 0.508, 0.512, 0.514, 0.65, 0.7, 0.8, 0.9])[:, None, None, None]
    noise = rng.normal(0, 0.02, (8, 1, 4, 4))
    levels = np.round(255 * (mean + noise - noise.mean(axis=(1, 2, 3), keepdims=True)).clip(0, 1))
    np.savez(path, images=levels.astype(np.uint8), labels=np.zeros(8, int))
    return path


def page(path: Path) -> str:
    """What a page says, on one line."""
    return re.sub(r"\s+", " ", Seen(path.read_text()).text)


def told(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What ``status`` and the page of a run say."""
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    status = capsys.readouterr().out
    assert main(["report", str(run), "--out", str(run.parent / f"{run.name}.html")]) == 0
    return status, page(run.parent / f"{run.name}.html")


def test_searches_that_fail_on_what_they_do_not_break_leave_a_rate_between_two_ends(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two classes AutoAttack's targeted step raises, on exactly the images that its first step left."""
    run = tmp_path / "run"
    given = ["attack", "torchattacks:AutoAttack", "--model", "brightness:line", "--data", str(images), "--eps", "0.02"]
    assert main([*given, "--out", str(run)]) == 1
    printed = capsys.readouterr()
    status = pq.read_table(run / "parts")["status"].to_pylist()
    hits, failed = status.count("success"), status.count("failed")
    assert (hits, failed, status.count("already_wrong")) == (3, 4, 1)
    rate = Rate(3, 7, unknown=4)
    assert f"success {rate}" in printed.out
    assert "42.9% to 100.0% (" in printed.out
    status_says, shown = told(run, capsys)
    assert f"success {rate}" in status_says
    assert f"success on {rate}" in shown
    assert "42.9% to 100.0%" in shown
    assert "4 failed" in shown
    assert "the most of these attacks" not in shown


def test_images_that_come_back_unchanged_and_checks_are_told_everywhere(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Searched as given, with no gradient left beside such logits."""
    for name, flag in (("torchattacks:FGSM", "--eps"), ("fgsm", "--epsilon")):
        run = tmp_path / name.replace(":", "-")
        given = ["attack", name, "--model", "brightness:deaf", "--data", str(images), flag, "0.02", "--as-given"]
        assert main([*given, "--out", str(run)]) == 0
        printed = capsys.readouterr()
        for said in (printed.out, *told(run, capsys)):
            assert ("7 of 7 came back unchanged" in said) == (name != "fgsm")
        for said in (printed.err, *told(run, capsys)):
            assert "scale of logits: found, and not remedied" in said
            assert "scale of logits: remedied" not in said
    assert main([*given[:-1], "--out", str(tmp_path / "remedied")]) == 0
    for said in (capsys.readouterr().err, *told(tmp_path / "remedied", capsys)):
        assert "scale of logits: remedied" in said


def test_budgets_of_which_a_larger_one_breaks_less(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step of .2 leads into the band that the model fails in, one of .35 past it."""
    data = tmp_path / "half.npz"
    np.savez(data, images=np.full((9, 1, 4, 4), 127, np.uint8), labels=np.zeros(9, int))
    given = ["--model", "brightness:band", "--data", str(data), "--epsilon", "0.1,0.2,0.35"]
    assert main(["attack", "fgsm", *given, "--out", str(tmp_path / "apart")]) == 0
    _, shown = told(tmp_path / "apart", capsys)
    assert "keeps that image" not in shown
    assert "Of apart each budget was searched by itself" in shown
    none, all_of = Rate(0, 9), Rate(9, 9)
    small, middle, large = (FGSM(epsilon=epsilon).title for epsilon in (0.1, 0.2, 0.35))
    assert f"{small} {none}, {middle} {all_of}, the most, {large} {none}" in shown
    assert f"{middle} turns {all_of}" in shown
    assert main(["attack", "pgd", *given, "--steps", "3", "--out", str(tmp_path / "carried")]) == 0
    _, shown = told(tmp_path / "carried", capsys)
    assert "Of carried an image that a smaller budget broke keeps that image" in shown
    assert "searched by itself" not in shown


def test_progress_has_a_success_for_each_budget() -> None:
    some = FGSM.at_each_budget({"epsilon": [0.1, 0.2]})
    tally = _Tally(some, [Outcome()] * 2)
    assert tally.figures(2) == ""
    tally.add(ShardSummary(8, (Outcome(3, 0, 1), Outcome(4, 4, 0)), 100, 2.0))
    first, second = (attack.budget for attack in some)
    assert tally.figures(2) == f"success 0.0% to 25.0% at {first}, 100.0% at {second}, 100 queries/s, 1 failed"
    tally.lose()
    assert "0.0% to 40.0% at" in tally.figures(2)
    assert "80.0% to 100.0% at" in tally.figures(2)
    assert tally.figures(2).endswith("3 failed")
    nothing = _Tally(some[:1], [Outcome()])
    nothing.add(ShardSummary(4, (Outcome(),), 4, 1.0))
    assert nothing.figures(1).startswith("nothing searched")
    many = _Tally(FGSM.at_each_budget({"epsilon": [n / 10 for n in range(1, 10)]}), [Outcome()] * 9)
    many.add(ShardSummary(9, tuple(Outcome(8, hits) for hits in range(9)), 9, 1.0))
    assert many.figures(1).count("%") == 2
    assert "0.0% at" in many.figures(1)
    assert "100.0% at" in many.figures(1)


def test_a_page_is_written_over_only_where_it_is_named(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["attack", "fgsm", "--model", "brightness:line", "--data", str(images), "--out", "run"]) == 0
    Path("page.html").write_text("mine")
    capsys.readouterr()
    assert main(["report", "run"]) == 2
    assert capsys.readouterr().err.strip() == (
        "brittle: page.html: is there already; --out page.html writes over it, --out NAME elsewhere"
    )
    assert Path("page.html").read_text() == "mine"
    assert main(["report", "run", "--out", "page.html"]) == 0
    assert "Clean accuracy" in page(Path("page.html"))
