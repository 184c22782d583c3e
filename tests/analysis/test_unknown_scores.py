"""Scores and predictions that are missing: both ends of every rate against all that they might have been."""

import itertools

import numpy as np
import pytest

from analysis.detection import (
    AttackRows,
    Check,
    DetectorVerdict,
    Headline,
    Kind,
    Threshold,
    adaptive_unbeaten,
    cell,
    headline,
    judge_detector,
    monotone_in_budget,
    unbounded_succeeds,
)
from analysis.robustness import Judgement
from analysis.statistics import Rate
from tests.analysis.detector_cases import rows
from workers.evaluation.answers import UNANSWERED
from workers.threat import Ball

HALF = Threshold(0.05, 0.5, Rate(5, 100))
SMALL = Ball("linf", 0.1)
BAD = (np.nan, np.inf, -np.inf)
RATES = ("evaded", "clean_accuracy", "clean_accepted", "attacked_accuracy", "detected_or_correct")


def drawn(rng: np.random.Generator, count: int) -> AttackRows:
    """An attack on images of label 3, up to three of its numbers missing."""
    score, clean_score = rng.random((2, count))
    prediction, clean = rng.choice([3, 5], (2, count))
    missing = rng.integers(4)
    for _ in range(missing):
        which, row = rng.integers(4), rng.integers(count)
        (score, clean_score, prediction, clean)[which][row] = rng.choice(BAD) if which < 2 else UNANSWERED
    return _attack(score, clean_score, prediction, clean, rng.choice([0.05, 0.2], count))


def _attack(
    score: np.ndarray, clean_score: np.ndarray, prediction: np.ndarray, clean: np.ndarray, linf: np.ndarray
) -> AttackRows:
    return rows(
        kind=Kind.ADAPTIVE,
        score=score,
        clean_score=clean_score,
        prediction=prediction,
        clean_prediction=clean,
        fooled=(prediction != 3) & (prediction != UNANSWERED),
        attempted=(clean == 3) | (clean == UNANSWERED),
        linf=linf,
    )


def worlds(attack: AttackRows) -> list[AttackRows]:
    """Every attack that it might be if nothing were missing."""
    columns = [attack.score, attack.clean_score, attack.prediction, attack.clean_prediction]
    gaps = [(which, row) for which in range(4) for row in np.flatnonzero(_missing(which, columns[which]))]
    found = []
    for filled in itertools.product((0, 1), repeat=len(gaps)):
        copies = [column.copy() for column in columns]
        for (which, row), value in zip(gaps, filled, strict=True):
            copies[which][row] = value if which < 2 else (3, 5)[value]
        found.append(_attack(*copies, attack.linf))
    return found


def _missing(which: int, column: np.ndarray) -> np.ndarray:
    return ~np.isfinite(column) if which < 2 else column == UNANSWERED


def test_headlines_reach_from_the_least_to_the_most() -> None:
    rng = np.random.default_rng(3)
    for _ in range(600):
        attack = drawn(rng, 6)
        found, possible = headline([attack], SMALL, HALF), [headline([one], SMALL, HALF) for one in worlds(attack)]
        for name in RATES:
            rate = getattr(found, name)
            hits = [getattr(one, name).hits for one in possible]
            assert rate.hits <= min(hits), name
            assert max(hits) <= rate.hits + rate.unknown, name
            if name != "detected_or_correct":  # of one image its clean and stored score hang together there
                assert (rate.hits, rate.hits + rate.unknown) == (min(hits), max(hits)), name
        assert found.alone[0][1] == found.evaded
        if len(possible) == 1:
            assert not any(getattr(found, name).unknown for name in RATES)


def test_cells_reach_from_the_least_to_the_most() -> None:
    rng = np.random.default_rng(4)
    calibration, clean = np.random.default_rng(5).random((2, 40))
    for _ in range(60):
        score = rng.random(6)
        score[rng.integers(0, 6, 2)] = rng.choice(BAD, 2)
        test = clean.copy()
        test[0] = rng.choice([0.3, np.nan, np.inf])
        attack = rows(score=score, fooled=rng.random(6) < 0.8)
        found = cell(attack, calibration, test, rates=(0.05,))
        gaps = np.flatnonzero(~np.isfinite(score))
        ends = []
        for filled in itertools.product((-9.0, 9.0), repeat=len(gaps)):
            for other in (-9.0, 9.0) if not np.isfinite(test[0]) else (test[0],):
                whole, against = score.copy(), test.copy()
                whole[gaps], against[0] = filled, other
                ends.append(cell(rows(score=whole, fooled=attack.fooled), calibration, against, rates=(0.05,)))
        hits = [one.at[0].evaded.hits for one in ends]
        evaded = found.at[0].evaded
        assert (evaded.hits, evaded.hits + evaded.unknown) == (min(hits), max(hits))
        for name in ("auroc", "aupr"):
            values = [getattr(one, name) for one in ends]
            if values[0] is None:
                assert getattr(found, name) is None
                continue
            assert getattr(found, name).value == pytest.approx(min(one.value for one in values))
            low, high = getattr(found, name).interval
            assert all(low <= one.value <= high + 1e-9 for one in values)


def test_verdicts_hold_whatever_the_missing_scores_are() -> None:
    def verdict(evaded: Rate) -> str:
        worst = Headline(SMALL, 0.05, evaded, (("a", evaded),), *[Rate(1, 1)] * 4)
        return judge_detector(worst, HALF, [], adaptive=True).verdict

    assert verdict(Rate(2, 1000)) == DetectorVerdict.HOLDS
    assert verdict(Rate(2, 1000, unknown=200)) == DetectorVerdict.UNDECIDED
    assert verdict(Rate(300, 1000, unknown=200)) == DetectorVerdict.BROKEN


def test_a_score_that_is_not_finite_does_not_evade() -> None:
    attack = rows(kind=Kind.ADAPTIVE, score=[np.nan, 0.0, np.inf, -np.inf], fooled=[1, 1, 1, 0])
    assert attack.evaded(HALF).tolist() == [False, True, False, False]
    assert attack.may_evade(HALF).tolist() == [True, True, True, False]
    assert attack.evasion(HALF) == Rate(1, 4, unknown=2)
    worst = headline([attack], SMALL, HALF)
    assert worst.unscored == 3
    other = rows("pgd", score=np.full(4, np.nan), fooled=np.ones(4))
    assert adaptive_unbeaten([attack, other], SMALL, HALF).passed is None


def test_checks_hold_whatever_the_missing_rows_are() -> None:
    for hits, unknown in itertools.product(range(0, 41, 4), repeat=2):
        unsure = Rate(hits, 80, unknown=unknown)
        ends = [Rate(hits, 80), Rate(hits + unknown, 80)]
        for check in (
            lambda rate: unbounded_succeeds(rate),
            lambda rate: monotone_in_budget([(0.1, Rate(20, 80)), (0.2, rate)]),
            lambda rate: monotone_in_budget([(0.1, rate), (0.2, Rate(20, 80))]),
        ):
            found = {check(end).passed for end in ends}
            assert check(unsure).passed == (found.pop() if len(found) == 1 else None)
    assert unbounded_succeeds(Rate(1, 50, unknown=49)).passed is None
    assert unbounded_succeeds(Rate(1, 50, unknown=48)).passed is False


def test_a_check_that_is_not_known_leaves_open_what_would_hold() -> None:
    def judged(hits: int, *checks: Check) -> Judgement:
        evaded = Rate(hits, 1000)
        return judge_detector(
            Headline(SMALL, 0.05, evaded, (("a", evaded),), *[Rate(1, 1)] * 4), HALF, checks, adaptive=True
        )

    unclear = Check("steps suffice", None, "that is open")
    assert judged(2).verdict == DetectorVerdict.HOLDS
    found = judged(2, unclear)
    assert found.verdict == DetectorVerdict.UNDECIDED
    assert "check not known: steps suffice: that is open" in found.reasons
    assert judged(300, unclear).verdict == DetectorVerdict.BROKEN
    assert judged(2, unclear, Check("other", False, "it fails")).verdict == DetectorVerdict.INVALID
