"""Thresholds, cells and headlines against slow and hand-made ones; the verdicts at their boundaries."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import average_precision_score, roc_auc_score

from analysis.detection import (
    AttackRows,
    Check,
    DetectorReport,
    DetectorVerdict,
    FalseAlarms,
    Headline,
    Kind,
    Threshold,
    adaptive_unbeaten,
    calibrate,
    cell,
    false_alarms,
    false_alarms_as_stated,
    gradients_present,
    headline,
    judge_detector,
    monotone_in_budget,
    steps_suffice,
    to_json,
    unbounded_succeeds,
)
from analysis.statistics import Rate
from jobs.threat import ThreatFlags
from tests.analysis.detector_cases import rows
from workers.threat import Ball, threat_of

SMALL = Ball("linf", 0.1)
HALF = Threshold(0.05, 0.5, Rate(5, 100))


# thresholds


@pytest.mark.parametrize(
    ("count", "rate"), [(5000, 0.05), (5000, 0.01), (99, 0.01), (19, 0.05), (123, 0.05), (6001, 0.01)]
)
def test_the_threshold_is_the_conformal_quantile(count: int, rate: float) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    found = calibrate(scores, rate)
    allowed = [tau for tau in scores if (1 + (scores > tau).sum()) / (count + 1) <= rate]
    assert found.value == min(allowed)
    assert found.flagged == Rate(int((scores > found.value).sum()), count)
    assert found.flagged.value <= rate
    assert found.problem is None
    assert (found.warning is None) == (count >= 5000)


def test_a_score_at_the_threshold_is_not_flagged() -> None:
    assert HALF.flags(np.array([0.5, np.nextafter(0.5, 1), math.nan, math.inf, -math.inf])).tolist() == [
        False, True, False, False, False,
    ]  # fmt: skip
    assert HALF.alarms(np.array([0.4, 0.6])) == Rate(1, 2)
    assert HALF.alarms(np.array([0.4, 0.6, math.nan, math.inf])) == Rate(1, 4, unknown=2)


@pytest.mark.parametrize("rate", [0.05, 0.01])
def test_stated_rates_hold_over_many_calibrations(rate: float) -> None:
    rng, count, realised = np.random.default_rng(3), 999, []
    for _ in range(2000):
        tau = calibrate(rng.exponential(size=count), rate).value
        realised.append(math.exp(-tau))  # of a new image, exactly
    assert np.mean(realised) == pytest.approx(rate, abs=4 * np.std(realised) / math.sqrt(len(realised)))
    flagged = round((count + 1) * rate)
    inside = beta.interval(0.9, flagged, count + 1 - flagged)
    covered = np.mean([inside[0] <= share <= inside[1] for share in realised])
    assert covered == pytest.approx(0.9, abs=0.03)


def test_degenerate_scores_are_told() -> None:
    good = np.random.default_rng(0).normal(size=6000)
    broken = good.copy()
    broken[:3], broken[3] = math.nan, math.inf
    undefined = calibrate(broken, 0.05)
    assert not undefined.defined
    assert undefined.problem is not None
    assert "4 of 6000" in undefined.problem
    assert "3 not a number, 1 infinite" in undefined.problem
    assert undefined.alarms(good) == Rate(0, 6000)
    constant = calibrate(np.full(6000, 0.7), 0.05)
    assert constant.problem is not None
    assert "0.7 for all 6000" in constant.problem
    assert constant.flagged == Rate(0, 6000)
    tied = calibrate(np.where(np.arange(6000) < 1200, 1.0, good.clip(max=0.9)), 0.05)
    assert tied.problem is not None
    assert "1200 of 6000" in tied.problem
    assert tied.flagged.hits == 0
    assert calibrate(np.zeros(0), 0.05).problem == "there are no calibration images"
    few = calibrate(good[:50], 0.01)
    assert few.problem is not None
    assert few.value == math.inf
    with pytest.raises(ValueError, match="above 0"):
        calibrate(good, 1.0)


def test_ties_that_leave_the_rate_are_no_problem() -> None:
    scores = np.concatenate([np.zeros(4000), np.random.default_rng(1).uniform(1, 2, 2000)])
    assert calibrate(scores, 0.05).problem is None


def test_false_alarms_by_what_the_classifier_says() -> None:
    found = false_alarms(HALF, np.array([0.1, 0.9, 0.9, 0.2]), np.array([True, True, False, False]))
    assert (found.right, found.wrong, found.all) == (Rate(1, 2), Rate(1, 2), Rate(2, 4))
    silent = np.array([False, False, True, False])
    found = false_alarms(HALF, np.array([0.1, 0.9, 0.9, 0.2]), np.array([True, True, False, False]), silent)
    assert (found.right, found.wrong, found.unanswered) == (Rate(1, 2), Rate(0, 1), Rate(1, 1))
    assert found.all == Rate(2, 4)


def test_images_unlike_the_calibration_ones_are_noticed() -> None:
    rng, surprised = np.random.default_rng(5), 0
    for _ in range(300):
        threshold = calibrate(rng.normal(size=500), 0.05)
        alarms = FalseAlarms(threshold, threshold.alarms(rng.normal(size=500)), Rate(0, 0))
        surprised += not false_alarms_as_stated(alarms).passed
    assert surprised <= 3
    unlike = FalseAlarms(threshold, threshold.alarms(rng.normal(0.5, size=500)), Rate(0, 0))
    assert not false_alarms_as_stated(unlike).passed
    broken = calibrate(np.full(10, math.nan), 0.05)
    assert not false_alarms_as_stated(FalseAlarms(broken, Rate(0, 5), Rate(0, 0))).passed


# cells


def slow_intervals(successes: np.ndarray, calibration: np.ndarray, clean: np.ndarray, rate: float) -> np.ndarray:
    rng, found = np.random.default_rng(99), []
    truth = np.repeat([1, 0], [len(successes), len(clean)])
    for _ in range(1000):
        hit, other, held = (rng.choice(scores, len(scores)) for scores in (successes, clean, calibration))
        both = np.concatenate([hit, other])
        tpr = (hit > calibrate(held, rate).value).mean()
        found.append([roc_auc_score(truth, both), average_precision_score(truth, both), tpr])
    return np.percentile(found, [2.5, 97.5], axis=0).T


def test_a_cell_is_what_a_loop_gives() -> None:
    rng = np.random.default_rng(8)
    calibration, clean = rng.normal(size=(2, 300)).round(1)  # ties
    fooled, attempted = rng.random((2, 200)) < 0.8
    attack = rows(score=rng.normal(1, size=200).round(1), fooled=fooled, attempted=attempted, l2=rng.random(200))
    found = cell(attack, calibration, clean, rates=(0.05,))
    hit, missed = attempted & fooled, attempted & ~fooled
    successes, tau = attack.score[hit], calibrate(calibration, 0.05).value
    assert found.success == Rate(int(hit.sum()), int(attempted.sum()))
    assert found.l2 == np.median(attack.l2[hit])
    assert not found.grey
    pairs = successes[:, None] - clean
    assert found.auroc is not None
    assert found.auroc.value == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    truth = np.repeat([1, 0], [hit.sum(), 300])
    assert found.aupr is not None
    assert found.aupr.value == pytest.approx(average_precision_score(truth, np.concatenate([successes, clean])))
    assert found.prevalence == hit.sum() / (hit.sum() + 300)
    (at,) = found.at
    assert at.tpr is not None
    assert at.tpr.value == pytest.approx((successes > tau).mean())
    assert at.failed == Rate(int((attack.score[missed] > tau).sum()), int(missed.sum()))
    assert at.evaded == Rate(int((successes <= tau).sum()), int(attempted.sum()))
    slow = slow_intervals(successes, calibration, clean, 0.05)
    assert np.array([found.auroc.interval, found.aupr.interval, at.tpr.interval]) == pytest.approx(slow, abs=0.03)


def test_a_random_score_has_an_auroc_of_one_half() -> None:
    rng, covered = np.random.default_rng(21), 0
    for _ in range(100):
        calibration, clean, score = rng.random((3, 150))
        found = cell(rows(score=score, fooled=np.ones(150)), calibration, clean, rates=(0.05,))
        assert found.auroc is not None
        covered += found.auroc.interval[0] <= 0.5 <= found.auroc.interval[1]
    assert 88 <= covered <= 100
    assert found.aupr is not None
    assert found.aupr.interval[0] <= found.prevalence <= found.aupr.interval[1]


def test_cells_of_little_or_nothing() -> None:
    clean = np.random.default_rng(2).normal(size=200)
    none = cell(rows(score=np.ones(60), fooled=np.zeros(60)), clean, clean)
    assert (none.success, none.l2, none.auroc, none.aupr, none.prevalence) == (Rate(0, 60), None, None, None, None)
    assert [at.tpr for at in none.at] == [None, None]
    assert none.at[0].failed.total == 60
    assert none.grey
    one = cell(rows(score=[9.0], fooled=[True]), clean, clean)
    assert one.auroc is not None
    assert (one.auroc.value, one.auroc.interval) == (1.0, (0.0, 1.0))
    assert cell(rows(score=np.ones(49), fooled=np.ones(49)), clean, clean).grey
    assert not cell(rows(score=np.ones(50), fooled=np.ones(50)), clean, clean).grey


def test_constant_and_broken_scores_in_a_cell() -> None:
    constant = cell(rows(score=np.ones(60), fooled=np.ones(60)), np.ones(6000), np.ones(300))
    assert constant.auroc is not None
    assert (constant.auroc.value, constant.auroc.interval) == (0.5, (0.5, 0.5))
    assert constant.at[0].evaded == Rate(60, 60)
    calibration = np.random.default_rng(2).normal(size=200)
    missing = cell(rows(score=np.full(60, math.nan), fooled=np.ones(60)), calibration, calibration)
    assert missing.auroc is not None
    assert (missing.auroc.value, missing.auroc.interval) == (0, (0, 1))
    assert missing.at[0].evaded == Rate(0, 60, unknown=60)
    undefined = cell(rows(score=np.ones(60), fooled=np.ones(60)), np.full(60, math.nan), calibration)
    assert undefined.auroc is None


def test_rows_are_of_one_length_and_each_image_once() -> None:
    with pytest.raises(ValueError, match="one length"):
        rows(score=[1, 2], fooled=[True, True], l2=[1])
    with pytest.raises(ValueError, match="comes twice"):
        rows(score=[1, 2], fooled=[True, True], image_id=[4, 4])


# threats and the headline


def test_threats_are_those_of_the_command_line() -> None:
    linf = np.array([25, 51, 52]) / 255
    moved = rows(score=[0, 0, 0], fooled=[1, 1, 1], l0=[1, 2, 3], l2=[0.5, 1.5, 1.0], linf=linf)
    for flags, inside in (
        ({"norm": "linf", "epsilon": 0.2}, [True, True, False]),
        ({"norm": "l2", "epsilon": 1.0}, [True, False, True]),
        ({"pixels": 2}, [True, True, False]),
    ):
        threat = ThreatFlags(**flags).threat((1, 28, 28))
        assert threat.within(moved).tolist() == inside
        assert threat_of(threat.describe()) == threat


def test_the_headline_is_the_mean_of_the_worst() -> None:
    # each evades on half of the images, together on all but the last
    first = rows("first", kind=Kind.ADAPTIVE, score=[0, 0, 9, 9, 9], fooled=[1, 1, 1, 1, 0])
    second = rows("second", score=[9, 9, 0, 0, 0], fooled=[1, 1, 1, 1, 0], image_id=[0, 1, 2, 3, 4])
    worst = headline([first, second], SMALL, HALF)
    assert worst.evaded == Rate(4, 5)
    assert worst.alone == (("first", Rate(2, 5)), ("second", Rate(2, 5)))
    assert worst.clean_accuracy == Rate(5, 5)
    assert worst.attacked_accuracy == Rate(1, 5)
    assert worst.detected_or_correct == Rate(1, 5)


def test_the_headline_by_hand() -> None:
    # 0: misclassified clean and accepted; 1: misclassified clean and flagged; 2: fooled outside of the threat;
    # 3: fooled and flagged; 4: fooled and accepted; 5: right but flagged clean
    attack = rows(
        kind=Kind.ADAPTIVE,
        score=[0, 9, 0, 9, 0, 9],
        clean_score=[0, 9, 0, 0, 0, 9],
        fooled=[1, 1, 1, 1, 1, 0],
        clean_prediction=[5, 5, 3, 3, 3, 3],
        attempted=[False, False, True, True, True, True],
        linf=np.array([0, 0, 51, 25, 25, 25]) / 255,
    )
    other = rows("elsewhere", score=[0.0], fooled=[1], image_id=[77])
    worst = headline([attack, other], SMALL, HALF)
    assert worst.evaded == Rate(1, 4)
    assert worst.clean_accuracy == Rate(4, 6)
    assert worst.clean_accepted == Rate(3, 6)
    assert worst.attacked_accuracy == Rate(2, 6)  # 2 and 5
    assert worst.detected_or_correct == Rate(4, 6)  # not 0 and 4
    bare = dataclasses.replace(
        attack, bare_prediction=np.full(6, 5), bare_clean_prediction=np.array([3, 5, 3, 3, 3, 3])
    )
    alone = headline([bare], SMALL, HALF)
    assert alone.clean_accuracy == Rate(5, 6)
    assert alone.attacked_accuracy == Rate(1, 6)  # 2 only: the classifier alone has what is stored of 5 wrong
    assert alone.clean_accepted == worst.clean_accepted


# checks


def evading(count: int, total: int = 200, name: str = "pgd", kind: Kind = Kind.NAIVE) -> AttackRows:
    return rows(name, kind=kind, score=np.zeros(total), fooled=np.arange(total) < count)


def test_an_adaptive_attack_that_another_beats() -> None:
    adaptive = evading(100, kind=Kind.ADAPTIVE, name="adaptive")
    assert adaptive_unbeaten([adaptive, evading(105), evading(3, kind=Kind.NOISE)], SMALL, HALF).passed
    beaten = adaptive_unbeaten([adaptive, evading(130)], SMALL, HALF)
    assert not beaten.passed
    assert "pgd (naive)" in beaten.sentence
    # two adaptive ones count together
    rest = rows("rest", kind=Kind.ADAPTIVE, score=np.zeros(200), fooled=np.arange(200) >= 100)
    assert adaptive_unbeaten([adaptive, rest, evading(130)], SMALL, HALF).passed
    with pytest.raises(ValueError, match="no adaptive"):
        adaptive_unbeaten([evading(1)], SMALL, HALF)


def test_steps_that_do_not_suffice() -> None:
    assert steps_suffice(evading(100), evading(105), SMALL, HALF).passed
    more = steps_suffice(evading(100), evading(130), SMALL, HALF)
    assert not more.passed
    assert str(Rate(130, 200)) in more.sentence
    # only the images of both count
    assert steps_suffice(evading(20, total=20), evading(130), SMALL, HALF).passed
    elsewhere = rows(score=[0.0], fooled=[1], image_id=[900])
    with pytest.raises(ValueError, match="no image both"):
        steps_suffice(evading(1), elsewhere, SMALL, HALF)


def test_the_other_checks() -> None:
    assert unbounded_succeeds(Rate(50, 50)).passed
    assert not unbounded_succeeds(Rate(49, 50)).passed
    assert not unbounded_succeeds(Rate(0, 0)).passed
    assert gradients_present(Rate(5, 100)).passed
    assert not gradients_present(Rate(6, 100)).passed
    assert not gradients_present(Rate(0, 0)).passed
    rising = [(0.3, Rate(90, 100)), (0.1, Rate(10, 100)), (0.2, Rate(88, 100))]
    assert monotone_in_budget(rising).passed
    falling = monotone_in_budget([*rising, (0.4, Rate(50, 100))])
    assert not falling.passed
    assert "budget 0.4" in falling.sentence


# the verdict

FAILED = Check("steps suffice", False, "they do not")
PASSED = Check("steps suffice", True, "they do")


def worst_of(hits: int, total: int) -> Headline:
    same = Rate(total, total)
    return Headline(SMALL, 0.05, Rate(hits, total), (("pgd", Rate(hits, total)),), same, same, same, same)


def verdict(hits: int, total: int = 1000, *checks: Check, adaptive: bool = True, threshold: Threshold = HALF) -> str:
    judgement = judge_detector(worst_of(hits, total), threshold, checks, adaptive=adaptive)
    assert judgement.reasons
    assert all(judgement.reasons)
    return judgement.verdict


def test_each_verdict_begins_where_the_interval_leaves_the_tolerance() -> None:
    lows = [Rate(hits, 1000).interval for hits in range(1001)]
    broken = next(hits for hits, interval in enumerate(lows) if interval and interval[0] > 0.1)
    undecided = next(hits for hits, interval in enumerate(lows) if interval and interval[1] >= 0.1)
    assert verdict(broken) == DetectorVerdict.BROKEN
    assert verdict(broken - 1) == verdict(undecided) == verdict(100) == DetectorVerdict.UNDECIDED
    assert verdict(undecided - 1) == verdict(0) == DetectorVerdict.HOLDS


def test_a_failed_check_voids_all_but_counterexamples() -> None:
    assert verdict(0, 1000, PASSED) == DetectorVerdict.HOLDS
    assert verdict(0, 1000, FAILED) == verdict(100, 1000, FAILED) == DetectorVerdict.INVALID
    broken = judge_detector(worst_of(900, 1000), HALF, [FAILED], adaptive=True)
    assert broken.verdict == DetectorVerdict.BROKEN
    assert "steps suffice" in broken.reasons[1]
    assert "counterexample" in broken.reasons[2]


def test_without_an_adaptive_attack_nothing_is_tested() -> None:
    assert verdict(0, adaptive=False) == verdict(900, adaptive=False) == DetectorVerdict.UNTESTED
    assert verdict(0, 0) == DetectorVerdict.UNTESTED
    assert "already exceed" in judge_detector(worst_of(900, 1000), HALF, [], adaptive=False).reasons[2]


def test_scores_that_give_no_threshold() -> None:
    undefined, constant = calibrate(np.full(6000, math.nan), 0.05), calibrate(np.zeros(6000), 0.05)
    assert verdict(900, threshold=undefined) == DetectorVerdict.INVALID
    assert verdict(0, threshold=constant) == DetectorVerdict.INVALID
    assert verdict(900, threshold=constant) == DetectorVerdict.BROKEN
    missing = headline([rows(kind=Kind.ADAPTIVE, score=[math.nan] * 9, fooled=[1] * 9)], SMALL, HALF)
    assert missing.unscored == 9
    judgement = judge_detector(missing, HALF, [], adaptive=True)
    assert judgement.verdict == DetectorVerdict.UNDECIDED
    assert "9 attacked images have no finite score" in judgement.reasons[1]


def test_the_report_as_json() -> None:
    attack = rows(kind=Kind.ADAPTIVE, score=np.linspace(0, 1, 100), fooled=np.ones(100))
    scores = np.linspace(0, 1, 50)
    threshold = calibrate(scores, 0.01)
    assert threshold.value == math.inf
    worst = headline([attack], SMALL, HALF)
    report = DetectorReport(
        name="kl",
        paper="",
        judgement=judge_detector(worst, HALF, [PASSED], adaptive=True),
        alarms=(false_alarms(threshold, scores, scores < 0.9),),
        cells=(cell(attack, np.linspace(0, 0.6, 5000), scores),),
        headlines=(worst,),
        checks=(PASSED,),
    )
    found = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert found["verdict"] == "broken"
    assert found["thresholds"][0]["value"] is None
    assert found["headlines"][0]["evaded"]["images"] == worst.evaded.hits == 50
    assert found["cells"][0]["at"][0]["tpr"]["value"] == found["worst_tpr"]["value"]
    assert found["auroc"]["attack"] == "cw"
