"""Transfer counted: against a loop over images, and the verdicts at their edges."""

import dataclasses
import itertools

import numpy as np
import pytest

from analysis.page.transfer import render_transfer
from analysis.statistics import Rate
from analysis.transfer import Answers, Cell, Surrogate, TransferReport, report, to_json, to_table, worst
from workers.evaluation.answers import REJECTED, UNANSWERED

ATTACKS, SOURCES, COUNT = ("pgd", "ddn"), ("a", "b", "made"), 60


def drawn(seed: int = 0) -> list[Answers]:
    """Random answers of two victims and a surrogate, rejections among them."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, COUNT)
    return [
        Answers(
            source,
            attack,
            np.arange(COUNT) * 7,
            label,
            random.random(COUNT),
            random.random(COUNT) < 0.5,
            {name: random.integers(REJECTED, 3, COUNT) for name in dict.fromkeys(("a", "b", source))},
            attack == "pgd",
        )
        for source in SOURCES
        for attack in ATTACKS
    ]


def counted(answers: list[Answers], **options: float) -> TransferReport:
    victims = {"a": Rate(95, 100), "b": Rate(90, 100)}
    made = [Surrogate("made", "by hand", Rate(80, 100), 150)]
    return report(answers, victims, threat="L∞ ε = 0.3", right=Rate(70, 90), surrogates=made, **options)


def test_cells_against_a_loop() -> None:
    answers = drawn()
    found = counted(answers)
    assert len(found.cells) == 2 * (2 + 2 + 3)
    for cell in found.cells:
        (one,) = (x for x in answers if (x.source, x.attack) == (cell.source, cell.attack))
        fooled = both = same = 0
        lengths = []
        for image in range(COUNT):
            truth = one.label[image]
            by_source, by_victim = one.predictions[cell.source][image], one.predictions[cell.victim][image]
            if by_source not in (truth, REJECTED):
                fooled += 1
                lengths.append(one.l2[image])
                if by_victim not in (truth, REJECTED):
                    both += 1
                    same += by_source == by_victim
        of = COUNT if cell.source == cell.victim else fooled
        assert (cell.rate, cell.agreement) == (Rate(both, of), Rate(same, both))
        assert cell.l2 == pytest.approx(np.median(lengths))
        assert cell.bounded == (cell.attack == "pgd")
        assert cell.own == (cell.source == cell.victim)


def test_victims_against_a_loop() -> None:
    answers = drawn(1)
    for victim in counted(answers).victims:
        hit = set()
        for one in answers:
            if one.source != victim.name:
                for image in range(COUNT):
                    if one.within[image] and one.predictions[victim.name][image] not in (one.label[image], REJECTED):
                        hit.add(image)
        assert victim.fooled == Rate(len(hit), COUNT)
        assert victim.worst is not None
        assert victim.worst.attack == "pgd"
        assert victim.worst.source != victim.name


def test_answers_that_are_missing_leave_both_ends() -> None:
    """Against every class that the missing ones might have been."""
    random = np.random.default_rng(2)
    for _ in range(80):
        label, count = random.integers(0, 3, 5), 5
        classes = {name: random.integers(REJECTED, 3, count) for name in ("a", "b")}
        for _ in range(random.integers(1, 4)):
            classes[("a", "b")[random.integers(2)]][random.integers(count)] = UNANSWERED
        one = Answers("a", "pgd", np.arange(count), label, np.ones(count), random.random(count) < 0.7, classes, True)
        gaps = [(name, row) for name in classes for row in np.flatnonzero(classes[name] == UNANSWERED)]
        cells, fooled = [], []
        for filled in itertools.product(range(REJECTED, 3), repeat=len(gaps)):
            whole = {name: column.copy() for name, column in classes.items()}
            for (name, row), value in zip(gaps, filled, strict=True):
                whole[name][row] = value
            world = dataclasses.replace(one, predictions=whole)
            cells.append(Cell.of(world, "b"))
            fooled.append(report([world], {"b": Rate(9, 10)}, threat="", right=Rate(9, 10)).victims[0].fooled)
        found = Cell.of(one, "b").rate
        shares = [possible.rate.value for possible in cells if possible.rate.total]
        if shares:
            assert found.low is not None
            assert found.low <= min(shares)
            assert max(shares) <= (found.high or 0)
        assert found.unknown or found == cells[0].rate
        unanswered = int((classes["a"] == UNANSWERED).sum())
        assert Cell.of(one, "a").rate == Rate(int(one.fooled("a").sum()), count, unknown=unanswered)
        all_of = report([one], {"b": Rate(9, 10)}, threat="", right=Rate(9, 10)).victims[0].fooled
        hits = [possible.hits for possible in fooled]
        assert (all_of.hits, all_of.hits + all_of.unknown) == (min(hits), max(hits))


def cell(hits: int, total: int) -> Cell:
    return Cell("a", "b", "pgd", True, Rate(hits, total), Rate(0, hits), None)


def test_the_worst_is_not_one_of_one() -> None:
    assert worst([cell(1, 1), cell(80, 100), cell(70, 100)]) == cell(80, 100)
    assert worst([cell(0, 0)]) is None
    assert worst([]) is None


def made_on_a(fooling: int, *, source: int = 100, within: bool = True) -> list[Answers]:
    """100 images made on a, of which so many fool b, and so many a."""
    ones, places = np.zeros(100, dtype=np.int64), np.arange(100)
    predictions = {"a": (places < source).astype(np.int64), "b": (places < fooling).astype(np.int64)}
    return [Answers("a", "pgd", places, ones, ones + 0.5, ones == (0 if within else 1), predictions, True)]


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        (made_on_a(30), "broken", "on 30.0% (21.9% to 39.6%, 30 of 100): more than the tolerated 10.0%"),
        (made_on_a(10), "undecided", "not told from the tolerated 10.0%"),
        (made_on_a(2), "holds", "no more than the tolerated 10.0%"),
        (made_on_a(2, source=40), "undecided", "no source is itself fooled within the threat on more than 40.0%"),
        (made_on_a(90, within=False), "undecided", "no source is itself fooled within the threat on more than 0.0%"),
    ],
)
def test_verdicts(answers: list[Answers], verdict: str, said: str) -> None:
    found = report(answers, {"b": Rate(1, 1)}, threat="", right=Rate(1, 1))
    assert found.verdict == verdict
    assert said in " ".join(found.victims[0].judgement.reasons)


def test_a_victim_without_other_sources_is_undecided_and_the_worst_verdict_stands() -> None:
    found = report(made_on_a(30), {"a": Rate(1, 1), "b": Rate(1, 1)}, threat="", right=Rate(1, 1))
    assert [str(one.judgement.verdict) for one in found.victims] == ["undecided", "broken"]
    assert found.verdict == "broken"
    with pytest.raises(ValueError, match="one attack at least"):
        report([], {}, threat="", right=Rate(0, 0))


def test_table_and_json_say_the_same() -> None:
    found = counted(drawn(2))
    rows, said = to_table(found).to_pylist(), to_json(found)
    assert len(rows) == len(said["cells"]) == len(found.cells)
    for row, one in zip(rows, said["cells"], strict=True):
        assert (row["rate_images"], row["rate_of"]) == (one["images"], one["of"])
        assert (row["rate_low"], row["rate_high"]) == one["interval"]
        assert row["agreement"] == one["agreement"]["value"]
    assert said["worst_transfer"] in said["cells"]
    assert said["surrogates"] == [
        {
            "surrogate": "made",
            "what": "by hand",
            "clean_accuracy": {"value": 0.8, "interval": Rate(80, 100).interval, "images": 80, "of": 100},
            "queries": 150,
        }
    ]


def test_the_page_has_every_number_and_escapes_names() -> None:
    answers = [
        Answers("<b>", x.attack, x.image_id, x.label, x.l2, x.within, {"<b>": x.predictions["a"]} | x.predictions, True)
        for x in drawn(3)
        if x.source == "a"
    ]
    page = render_transfer(counted([*drawn(3), *answers]))
    assert "<b>:" not in page
    assert "&lt;b&gt;" in page
    assert "://" not in page
    for one in counted([*drawn(3), *answers]).cells:
        assert f"{one.rate.hits:,} of {one.rate.total:,}" in page
    assert page.count('scope="row"') == 2 * 4 + 1
