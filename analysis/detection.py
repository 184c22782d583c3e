"""Whether a detector of adversarial images holds: thresholds, cells, the worst case, validity checks and the verdict.

Scores in, numbers out: no model is asked anything here. A higher score is more suspicious, and an image is flagged when
its score is above the threshold. A score that is not finite neither flags nor clears, and a prediction may be
`UNANSWERED`: such rows count in every total, and what they might be lies between the two ends of the rate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from scipy.stats import betabinom, bootstrap, rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from analysis.robustness import Judgement, bound
from analysis.statistics import Estimate, Rate, widened
from workers.evaluation.answers import UNANSWERED
from workers.threat import Threat

__all__ = [
    "RATES",
    "AtRate",
    "AttackRows",
    "Cell",
    "Check",
    "DetectorReport",
    "DetectorVerdict",
    "Example",
    "FalseAlarms",
    "Headline",
    "Kind",
    "OverSeeds",
    "SeedNumbers",
    "ShiftRow",
    "Spread",
    "Threshold",
    "adaptive_unbeaten",
    "calibrate",
    "cell",
    "false_alarms",
    "false_alarms_as_stated",
    "gradients_present",
    "headline",
    "judge_detector",
    "monotone_in_budget",
    "over_seeds",
    "steps_suffice",
    "to_json",
    "unbounded_succeeds",
]

RATES = (0.05, 0.01)
"""False-alarm rates that a detector is held to."""

CALIBRATION = 5000
"""Calibration images below which the thresholds are called vague."""

GREY = 50
"""Successes below which a cell says little."""

TOLERANCE = 0.1
"""Share of attempts that may end fooled and unflagged."""

ZERO_GRADIENTS = 0.05
"""Share of images without a gradient above which a gradient search cannot be trusted."""

SURPRISE = 0.001
"""How unlikely a share of false alarms must be under the stated rate before the stated rate is called wrong."""

RESAMPLES = 1000
AT_ONCE = 100
"""Resamples held at a time."""


@dataclass(frozen=True)
class Threshold:
    """Above which score an image is flagged, for a stated false-alarm rate.

    Attributes:
        rate: the stated false-alarm rate, in (0, 1).
        value: τ; NaN where scores are not finite or there are none, and ∞ where images are too few: nothing is flagged.
        flagged: the calibration images above τ.
        problem: why τ does not give the stated rate, a sentence; None when it does.
        warning: why τ is to be read with care, a sentence; None without a reason.
    """

    rate: float
    value: float
    flagged: Rate
    problem: str | None = None
    warning: str | None = None

    @property
    def defined(self) -> bool:
        """Whether there is a τ that images can be compared with."""
        return not math.isnan(self.value)

    def flags(self, scores: np.ndarray) -> np.ndarray:
        """bool ``[n]``: which scores are above τ, and finite."""
        scores = np.asarray(scores)
        return (scores > self.value) & np.isfinite(scores)

    def may_flag(self, scores: np.ndarray) -> np.ndarray:
        """bool ``[n]``: which scores are above τ, or not finite."""
        return self.flags(scores) | ~np.isfinite(scores)

    def alarms(self, scores: np.ndarray) -> Rate:
        """The share of scores above τ; one that is not finite may be."""
        return Rate.between(self.flags(scores), self.may_flag(scores))


def calibrate(scores: np.ndarray, rate: float) -> Threshold:
    """The threshold that flags a clean image with probability at most the rate, whatever the scores' distribution.

    It is the ⌈(n + 1)(1 − rate)⌉-th smallest score, the rule of split conformal prediction (Vovk et al., 2005). The
    plain quantile (``method="higher"``) keeps the rate on the calibration images only: an image that is new then has up
    to 1/(n + 1) more.

    Args:
        scores: float ``[n]`` of clean calibration images.
        rate: the stated false-alarm rate.

    Raises:
        ValueError: for a rate that is not in (0, 1).
    """
    if not 0 < rate < 1:
        raise ValueError(f"a false-alarm rate is above 0 and below 1, got {rate}")
    scores, count = np.asarray(scores, dtype=np.float64), len(scores)
    problem: str | None
    undefined = Rate(0, count)
    if not count:
        return Threshold(rate, math.nan, undefined, "there are no calibration images")
    if broken := int((~np.isfinite(scores)).sum()):
        nan = int(np.isnan(scores).sum())
        kinds = f"{nan} not a number, {broken - nan} infinite"
        problem = f"{broken} of {count} calibration scores are not finite ({kinds}): there is no threshold"
        return Threshold(rate, math.nan, undefined, problem)
    warning: str | None = None
    if count < CALIBRATION:
        warning = f"{count} calibration images are fewer than {CALIBRATION}: the threshold at {rate:.0%} is vague"
    order = _order(count, rate)
    if order > count:
        problem = f"{count} calibration images are too few for a rate of {rate:.1%}: nothing is flagged"
        return Threshold(rate, math.inf, undefined, problem, warning)
    value = float(np.partition(scores, order - 1)[order - 1])
    flagged = int((scores > value).sum())
    problem = None
    if scores.min() == scores.max():
        problem = f"the score is {value:g} for all {count} calibration images: it tells no image from another"
    elif flagged < (count - order) / 2:
        tied = int((scores == value).sum())
        problem = (
            f"{tied} of {count} calibration scores are {value:g}: no threshold flags {rate:.1%}, "
            f"this one flags {flagged / count:.2%}"
        )
    return Threshold(rate, value, Rate(flagged, count), problem, warning)


def _order(count: int, rate: float) -> int:
    """Which of the sorted calibration scores is the threshold, counted from 1; above the count when none is."""
    return count + 1 - math.floor((count + 1) * rate + 1e-9)


@dataclass(frozen=True)
class FalseAlarms:
    """A threshold, and what it does to clean test images that the classifier has right, wrong, or gives no answer."""

    threshold: Threshold
    right: Rate
    wrong: Rate
    unanswered: Rate = field(default=Rate(0, 0))

    @property
    def all(self) -> Rate:
        """The realised false-alarm rate."""
        parts = self.right, self.wrong, self.unanswered
        hits, total, unknown = (sum(getattr(part, name) for part in parts) for name in ("hits", "total", "unknown"))
        return Rate(hits, total, unknown=unknown)


def false_alarms(
    threshold: Threshold, scores: np.ndarray, right: np.ndarray, unanswered: np.ndarray | None = None
) -> FalseAlarms:
    """The realised false-alarm rate.

    Args:
        threshold: the frozen one.
        scores: float ``[n]`` of clean test images.
        right: bool ``[n]``, which of them are classified correctly.
        unanswered: bool ``[n]``, which of them have no answer, right or wrong; None for none.
    """
    silent = np.zeros(len(scores), bool) if unanswered is None else unanswered
    parts = right & ~silent, ~right & ~silent, silent
    return FalseAlarms(threshold, *(threshold.alarms(scores[part]) for part in parts))


class Kind(StrEnum):
    """What an attack knows and seeks.

    ``adaptive`` ones know the detector. ``naive`` (a fixed budget), ``minimal-norm`` and ``few-pixel`` ones know the
    classifier only, ``transfer`` ones another model, ``noise`` nothing.
    """

    ADAPTIVE = "adaptive"
    NAIVE = "naive"
    MINIMAL_NORM = "minimal-norm"
    FEW_PIXEL = "few-pixel"
    TRANSFER = "transfer"
    NOISE = "noise"


@dataclass(frozen=True, eq=False)
class AttackRows:
    """What one attack came to on test images, an image at most once.

    Attributes:
        name: of the attack.
        strength: its parameters, in words.
        targeted: whether it had to reach a given class.
        kind: what it knows.
        image_id, label: int64 ``[n]``.
        clean_prediction: int64 ``[n]``, the guarded model's of the clean images (with the detector's repair, if any).
        prediction: int64 ``[n]``, the guarded model's of the stored images; `UNANSWERED` where it gave none, or the
            search failed.
        fooled: bool ``[n]``, the prediction is wrong, or is the target of a targeted attack.
        score: float ``[n]`` of the stored images, on draws that the search has not seen.
        clean_score: float ``[n]``.
        l0, l2, linf: ``[n]``, how far the stored images are from the clean ones; pixels in [0, 1].
        attempted: bool ``[n]``, the clean prediction is right, or `UNANSWERED`.
        bare_prediction, bare_clean_prediction: int64 ``[n]``, the classifier's own where the detector repairs; None
            where it does not, and both are the guarded model's.
        margin: float ``[n]``, the classifier's own on the stored images: the highest logit of another class less the
            label's, above 0 where it is wrong; None where it is not known.

    Raises:
        ValueError: for arrays of several lengths, or an image that comes twice.
    """

    name: str
    strength: str
    targeted: bool
    kind: Kind
    image_id: np.ndarray
    label: np.ndarray
    clean_prediction: np.ndarray
    prediction: np.ndarray
    fooled: np.ndarray
    score: np.ndarray
    clean_score: np.ndarray
    l0: np.ndarray
    l2: np.ndarray
    linf: np.ndarray
    attempted: np.ndarray
    bare_prediction: np.ndarray | None = None
    bare_clean_prediction: np.ndarray | None = None
    margin: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len({len(value) for value in vars(self).values() if isinstance(value, np.ndarray)}) > 1:
            raise ValueError(f"{self.name}: its arrays must be of one length")
        if len(np.unique(self.image_id)) < len(self.image_id):
            raise ValueError(f"{self.name}: an image comes twice; give an attack on several targets as one a target")

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def success(self) -> np.ndarray:
        """bool ``[n]``: attempted and fooled."""
        answered = (self.prediction != UNANSWERED) & (self.clean_prediction != UNANSWERED)
        return self.attempted & self.fooled & answered

    @property
    def may_succeed(self) -> np.ndarray:
        """bool ``[n]``: likewise, or that is not known."""
        return self.attempted & (self.fooled | (self.prediction == UNANSWERED))

    def evaded(self, threshold: Threshold, threat: Threat | None = None) -> np.ndarray:
        """bool ``[n]``: attempted, fooled and not flagged, and within the threat where one is given."""
        evaded = self.success & ~threshold.may_flag(self.score)
        return evaded if threat is None else evaded & threat.within(self)

    def may_evade(self, threshold: Threshold, threat: Threat | None = None) -> np.ndarray:
        """bool ``[n]``: likewise, or that is not known."""
        evaded = self.may_succeed & ~threshold.flags(self.score)
        return evaded if threat is None else evaded & threat.within(self)

    def evasion(self, threshold: Threshold, threat: Threat | None = None, among: np.ndarray | None = None) -> Rate:
        """The share of the attempts that evade.

        Args:
            threshold, threat: as of `evaded`.
            among: bool ``[n]``, the rows to look at; all when None.
        """
        those = self.attempted if among is None else self.attempted & among
        return Rate.between(self.evaded(threshold, threat)[those], self.may_evade(threshold, threat)[those])


@dataclass(frozen=True)
class AtRate:
    """A cell at one false-alarm rate.

    Attributes:
        rate: the stated one.
        tpr: the share of the successes that is flagged, with a bootstrap interval; None without successes. Where some
            have no finite score, the value is as if these were not flagged, and the interval ends as if they were.
        failed: the share of the failed attempts that is flagged.
        evaded: fooled and unflagged, of all attempts.
    """

    rate: float
    tpr: Estimate | None
    failed: Rate
    evaded: Rate


@dataclass(frozen=True)
class Cell:
    """One attack at one strength against a detector.

    Attributes:
        name, strength, targeted, kind: the attack's.
        rows: images, attempted or not.
        success: fooled, of the attempts.
        l2: median over the successes, None without any.
        auroc, aupr: successes against clean test images that are classified correctly; None without either of both.
            Where scores are not finite the value is the least that they may make of it, and the interval goes up to the
            most.
        prevalence: the share of successes in that comparison, which is the AUPR of a random score.
        at: by false-alarm rate.
    """

    name: str
    strength: str
    targeted: bool
    kind: Kind
    rows: int
    success: Rate
    l2: float | None
    auroc: Estimate | None
    aupr: Estimate | None
    prevalence: float | None
    at: tuple[AtRate, ...]

    @property
    def grey(self) -> bool:
        """Whether the successes are too few to say much."""
        return self.success.hits < GREY


def cell(
    attack: AttackRows,
    calibration: np.ndarray,
    clean_test: np.ndarray,
    *,
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> Cell:
    """What the detector does against an attack, budget or none.

    The intervals of TPR, AUROC and AUPR are of a percentile bootstrap by image, in which the calibration images and so
    the thresholds are resampled too. Successes and clean images are resampled apart although some are one image's: an
    image's two scores tend to rise together, which makes the interval too wide rather than too narrow.

    Args:
        attack: its rows.
        calibration: float ``[m]``, scores of clean calibration images.
        clean_test: float ``[c]``, scores of clean test images that are classified correctly.
        rates: false-alarm rates.
        seed: of the resampling.
    """
    success = attack.success
    failed = attack.attempted & ~attack.may_succeed
    hits = int(success.sum())
    thresholds = [calibrate(calibration, rate) for rate in rates]
    found = _separation(attack.score[success], calibration, clean_test, thresholds, seed)
    return Cell(
        name=attack.name,
        strength=attack.strength,
        targeted=attack.targeted,
        kind=attack.kind,
        rows=len(attack),
        success=Rate.between(success[attack.attempted], attack.may_succeed[attack.attempted]),
        l2=float(np.median(attack.l2[success])) if hits else None,
        auroc=found.auroc,
        aupr=found.aupr,
        prevalence=hits / (hits + len(clean_test)) if found.aupr else None,
        at=tuple(
            AtRate(
                rate=threshold.rate,
                tpr=tpr,
                failed=threshold.alarms(attack.score[failed]),
                evaded=attack.evasion(threshold),
            )
            for threshold, tpr in zip(thresholds, found.tpr, strict=True)
        ),
    )


@dataclass(frozen=True)
class _Separation:
    auroc: Estimate | None
    aupr: Estimate | None
    tpr: tuple[Estimate | None, ...]


def _separation(
    successes: np.ndarray, calibration: np.ndarray, clean: np.ndarray, thresholds: Sequence[Threshold], seed: int
) -> _Separation:
    """How well scores of successes stand apart from clean ones; at the least, where scores are not finite."""
    if not len(successes) or not len(clean) or not all(threshold.defined for threshold in thresholds):
        return _Separation(None, None, (None,) * len(thresholds))
    ends = [
        _separated(
            np.where(np.isfinite(successes), successes, end).astype(np.float64),
            calibration,
            np.where(np.isfinite(clean), clean, -end).astype(np.float64),
            thresholds,
            seed,
        )
        for end in ((-np.inf, np.inf) if not np.isfinite([*successes, *clean]).all() else (0.0,))
    ]
    auroc, aupr, *tpr = (
        Estimate(least.value, (least.interval[0], most.interval[1]))
        for least, most in zip(ends[0], ends[-1], strict=True)
    )
    return _Separation(auroc, aupr, tuple(tpr))


def _separated(
    successes: np.ndarray, calibration: np.ndarray, clean: np.ndarray, thresholds: Sequence[Threshold], seed: int
) -> list[Estimate]:
    """AUROC, AUPR and the TPR at each threshold; scores may be infinite, not NaN.

    Everything is counted on ranks: a resample is then a histogram, and neither it nor its AUROC needs sorting.
    """
    pooled = np.concatenate([successes, clean])
    rank = rankdata(pooled, method="dense") - 1
    positive, negative = rank[: len(successes)].astype(np.int64), rank[len(successes) :].astype(np.int64)
    levels = int(rank.max()) + 1
    # flagged are the ranks from this on, by the calibration image whose score is the threshold; by none, no rank
    first_flagged = np.append(np.searchsorted(np.unique(pooled), np.sort(calibration), side="right"), levels)
    orders = [min(_order(len(calibration), threshold.rate), len(calibration) + 1) for threshold in thresholds]

    def statistic(positive: np.ndarray, negative: np.ndarray, order: np.ndarray, axis: int) -> np.ndarray:
        hits, others = _histogram(positive, levels), _histogram(negative, levels)
        below = np.cumsum(others, axis=-1) - others
        pairs = positive.shape[-1] * negative.shape[-1]
        auroc = (hits * (below + others / 2)).sum(axis=-1) / pairs
        caught = np.cumsum(hits[..., ::-1], axis=-1)
        named = caught + np.cumsum(others[..., ::-1], axis=-1)
        precision = np.divide(caught, named, out=np.zeros(caught.shape), where=named > 0)
        aupr = (hits[..., ::-1] * precision).sum(axis=-1) / positive.shape[-1]
        tpr = []
        for number in orders:
            if number > len(calibration):
                least = np.full(positive.shape[:-1], levels)
            else:
                least = first_flagged[np.partition(order, number - 1, axis=-1)[..., number - 1]]
            tpr.append((positive >= least[..., None]).mean(axis=-1))
        return np.stack([auroc, aupr, *tpr])

    resampled = bootstrap(
        (positive, negative, np.arange(len(calibration))), statistic, vectorized=True, method="percentile",
        n_resamples=RESAMPLES, batch=AT_ONCE, rng=np.random.default_rng(seed),
    ) if min(len(positive), len(negative), len(calibration)) > 1 else None  # fmt: skip
    truth = np.concatenate([np.ones(len(positive), dtype=bool), np.zeros(len(negative), dtype=bool)])
    values = [
        float(roc_auc_score(truth, rank)),
        float(average_precision_score(truth, rank)),
        *(float((successes > threshold.value).mean()) for threshold in thresholds),
    ]
    if resampled is None:  # one image alone says nothing of how others would vary
        low, high = np.zeros(len(values)), np.ones(len(values))
    else:
        low, high = resampled.confidence_interval
    auroc, aupr, *tpr = (
        Estimate(value, (float(least), float(most))) for value, least, most in zip(values, low, high, strict=True)
    )
    return [auroc, aupr, *(widened(found, len(successes)) for found in tpr)]


def _histogram(ranks: np.ndarray, levels: int) -> np.ndarray:
    """How often each of the ranks 0 to levels − 1 comes, along the last axis."""
    rows = ranks.reshape(-1, ranks.shape[-1])
    flat = rows + levels * np.arange(len(rows))[:, None]
    return np.bincount(flat.ravel(), minlength=levels * len(rows)).reshape(*ranks.shape[:-1], levels)


@dataclass(frozen=True)
class Headline:
    """The worst over all attacks for each image, within a threat and at one threshold.

    Of images that an adaptive attack was run on, where there is one: another image would count as unbroken for want of
    the attack that might break it. All but `evaded` are of all these images, those that are misclassified clean too;
    `jobs.detection` replaces both clean figures by those of the whole test part.

    Attributes:
        threat: what was allowed.
        rate: the stated false-alarm rate.
        evaded: images that some attack got wrong and unflagged, of the images attempted.
        alone: the same of each attack by itself and its own attempts, in the order given.
        clean_accuracy: of the classifier alone.
        clean_accepted: clean images that are right and not flagged (clean accuracy × coverage).
        attacked_accuracy: images that no attack turns, of the classifier alone.
        detected_or_correct: images of which every attack's result, and the clean image, is right or flagged.
        unscored: attempts, of all attacks, without a finite score or a prediction.
    """

    threat: Threat
    rate: float
    evaded: Rate
    alone: tuple[tuple[str, Rate], ...]
    clean_accuracy: Rate
    clean_accepted: Rate
    attacked_accuracy: Rate
    detected_or_correct: Rate
    unscored: int = 0


def headline(attacks: Sequence[AttackRows], threat: Threat, threshold: Threshold) -> Headline:
    """The mean over images of the worst case, not the worst mean over attacks.

    Args:
        attacks: each of some of the test images.
        threat: results outside of it count as failed attempts.
        threshold: above which an image is flagged.
    """
    counted = [attack for attack in attacks if attack.kind == Kind.ADAPTIVE] or list(attacks)
    ids = np.unique(np.concatenate([np.empty(0, np.int64), *(attack.image_id for attack in counted)]))
    attempted = np.zeros(len(ids), bool)
    evaded, turned, passed, clean_wrong, bare_clean_wrong, clean_flagged = np.zeros((6, 2, len(ids)), bool)
    alone = []
    for attack in attacks:
        within = threat.within(attack)
        flagged = threshold.flags(attack.score), threshold.may_flag(attack.score)
        # a targeted search that ends on another wrong class has not reached its goal, but the image is let through
        wrong = _wrong(attack.prediction, attack.label)
        let = [within & wrong[end] & ~flagged[1 - end] for end in (0, 1)]
        tried = attack.attempted & (attack.clean_prediction != UNANSWERED), attack.attempted
        hit = [tried[end] & let[end] for end in (0, 1)]
        alone.append((attack.name, Rate.between(*(those[attack.attempted] for those in hit))))
        known = np.isin(attack.image_id, ids)
        place = np.searchsorted(ids, attack.image_id[known])
        bare = attack.prediction if attack.bare_prediction is None else attack.bare_prediction
        bare_clean = attack.clean_prediction if attack.bare_clean_prediction is None else attack.bare_clean_prediction
        if attack in counted:
            attempted[place] |= attack.attempted[known]
        for to, ends in (
            (evaded, hit),
            (turned, [within & one for one in _wrong(bare, attack.label)]),
            (passed, let),
            (clean_wrong, _wrong(attack.clean_prediction, attack.label)),
            (bare_clean_wrong, _wrong(bare_clean, attack.label)),
            (clean_flagged, [threshold.flags(attack.clean_score), threshold.may_flag(attack.clean_score)]),
        ):
            for end in (0, 1):
                to[end, place] |= ends[end][known]

    return Headline(
        threat=threat,
        rate=threshold.rate,
        evaded=Rate.between(*(evaded & attempted)[:, attempted]),
        alone=tuple(alone),
        clean_accuracy=Rate.between(*~bare_clean_wrong[::-1]),
        clean_accepted=Rate.between(*(~clean_wrong & ~clean_flagged)[::-1]),
        attacked_accuracy=Rate.between(*(~bare_clean_wrong & ~turned)[::-1]),
        detected_or_correct=Rate.between(*(~passed[::-1] & (~clean_wrong[::-1] | clean_flagged))),
        unscored=sum(
            int((attack.attempted & (~np.isfinite(attack.score) | (attack.prediction == UNANSWERED))).sum())
            for attack in attacks
        ),
    )


def _wrong(prediction: np.ndarray, label: np.ndarray) -> list[np.ndarray]:
    """bool ``[n]`` twice: which predictions are wrong, and which may be."""
    wrong = prediction != label
    return [wrong & (prediction != UNANSWERED), wrong]


@dataclass(frozen=True)
class Check:
    """Whether attacks behave as sound ones do; an attack that does not proves nothing by failing.

    Attributes:
        name: what is looked for.
        passed: None where that hangs on rows without an answer.
        sentence: what was seen.
    """

    name: str
    passed: bool | None
    sentence: str

    @property
    def outcome(self) -> str:
        """In a word or two."""
        return "not known" if self.passed is None else "passed" if self.passed else "failed"


def adaptive_unbeaten(attacks: Sequence[AttackRows], threat: Threat, threshold: Threshold) -> Check:
    """No attack that does not know the detector evades it more often than the adaptive ones together.

    Compared on the images that both attempted; beaten is what lies above the adaptive attack's interval.

    Raises:
        ValueError: without an adaptive attack.
    """
    adaptive = [attack for attack in attacks if attack.kind == Kind.ADAPTIVE]
    if not adaptive:
        raise ValueError("there is no adaptive attack that could be beaten")
    tried = np.unique(np.concatenate([attack.image_id[attack.attempted] for attack in adaptive]))
    evaded = np.concatenate([attack.image_id[attack.evaded(threshold, threat)] for attack in adaptive])
    may_evade = np.concatenate([attack.image_id[attack.may_evade(threshold, threat)] for attack in adaptive])
    compared: list[tuple[bool | None, str]] = []
    for other in attacks:
        if other.kind == Kind.ADAPTIVE:
            continue
        both = other.attempted & np.isin(other.image_id, tried)
        own = Rate.between(np.isin(other.image_id[both], evaded), np.isin(other.image_id[both], may_evade))
        theirs = other.evasion(threshold, threat, both)
        if own.total:
            said = f"{other.name} ({other.kind}) evades on {theirs}, the adaptive attack on {own}"
            compared.append((_above(theirs, own), said))
    said = f"none of {len(compared)} other attacks evades more often than the adaptive one"
    return _none_above("adaptive attack unbeaten", compared, said)


def steps_suffice(attack: AttackRows, doubled: AttackRows, threat: Threat, threshold: Threshold) -> Check:
    """Twice as many steps do not evade more often than the attack's interval allows, on the images of both.

    Raises:
        ValueError: when they attempted no image both.
    """
    hits = []
    for one, other in ((attack, doubled), (doubled, attack)):
        both = one.attempted & np.isin(one.image_id, other.image_id[other.attempted])
        hits.append(one.evasion(threshold, threat, both))
    before, after = hits
    if not before.total:
        raise ValueError(f"{attack.name} and {doubled.name} attempted no image both")
    said = f"{attack.name} evades on {before}, with twice the steps on {after}"
    above = _above(after, before)
    return Check("steps suffice", None if above is None else not above, said)


def unbounded_succeeds(found: Rate) -> Check:
    """A search without a budget evades on every image: any image can be made into one that is accepted and wrong."""
    passed = found.reaches(1) if found.total else False
    return Check("unbounded search succeeds", passed, f"without a budget {found} evade")


def gradients_present(zero: Rate) -> Check:
    """Hardly an image has a gradient of the attack's loss that is zero everywhere.

    Args:
        zero: the images whose gradient is.
    """
    passed = zero.high is not None and zero.high <= ZERO_GRADIENTS
    said = f"the gradient is zero on {zero}; tolerated are {ZERO_GRADIENTS:.0%}"
    return Check("gradients present", passed, said)


def monotone_in_budget(found: Sequence[tuple[float, Rate]]) -> Check:
    """A larger budget evades no less often than a smaller one, but for its interval.

    Shares of images whose least distance is within each budget cannot fail this; those of searches of their own can.

    Args:
        found: pairs of budget and evaded, in any order.
    """
    pairs = sorted(found, key=lambda pair: pair[0])
    compared = [
        (_above(first, second), f"budget {more:g} evades on {second}, {less:g} on {first}")
        for number, (more, second) in enumerate(pairs)
        for less, first in pairs[:number]
    ]
    return _none_above("monotone in the budget", compared, f"evasion never falls over {len(pairs)} growing budgets")


def false_alarms_as_stated(alarms: FalseAlarms) -> Check:
    """The clean test images are flagged no more often than images like the calibration ones would be.

    Of these the number flagged is beta-binomial, the threshold's own vagueness included: with ties in the scores it is
    smaller. A larger one means that test and calibration images are not alike.
    """
    threshold, found = alarms.threshold, alarms.all
    order = _order(threshold.flagged.total, threshold.rate)
    said = f"at a stated {threshold.rate:.1%}, {found} of the clean test images are flagged"
    if not threshold.defined or math.isinf(threshold.value) or not found.total:
        return Check(f"false alarms at {threshold.rate:.0%}", threshold.problem is None, threshold.problem or said)
    chance = betabinom.sf(found.hits + found.unknown - 1, found.total, threshold.flagged.total + 1 - order, order)
    return Check(f"false alarms at {threshold.rate:.0%}", bool(chance >= SURPRISE), said)


def _above(rate: Rate, other: Rate) -> bool | None:
    """Whether a rate is above the other's interval; None where that hangs on rows without an answer."""
    least, most = replace(other, unknown=0).interval, other.interval
    if rate.low is None or rate.high is None or least is None or most is None or rate.high <= least[1]:
        return False
    return True if rate.low > most[1] else None


def _none_above(name: str, compared: Sequence[tuple[bool | None, str]], said: str) -> Check:
    """Whether no comparison by `_above` came out true; a sentence of each, and one for all."""
    found = [above for above, _ in compared]
    passed = False if True in found else None if None in found else True
    return Check(name, passed, "; ".join(sentence for above, sentence in compared if above is not False) or said)


class DetectorVerdict(StrEnum):
    """Whether images that are fooled and unflagged stay within what is tolerated.

    ``broken``: shown to be more. ``holds``: shown to be fewer, for these attacks. ``undecided``: neither.
    ``untested``: no adaptive attack was run. ``evaluation invalid``: a check failed, so failed attacks prove nothing.
    """

    BROKEN = "broken"
    HOLDS = "holds"
    UNDECIDED = "undecided"
    UNTESTED = "untested"
    INVALID = "evaluation invalid"


def judge_detector(
    worst: Headline,
    threshold: Threshold,
    checks: Sequence[Check],
    *,
    adaptive: bool,
    tolerance: float = TOLERANCE,
) -> Judgement:
    """Holds the images that are fooled and unflagged, with their interval, against the share that is tolerated.

    A failed check voids ``holds`` and ``undecided``, which rest on attacks that failed, but not ``broken``: images that
    are fooled and unflagged are so whatever else the attacks missed. A check that is not known leaves ``undecided``
    what else would hold.

    Args:
        worst: the worst over all attacks, at the threshold.
        threshold: of the false-alarm rate that the detector is held to.
        checks: of the attacks.
        adaptive: whether an attack that knows the detector was run.
        tolerance: share in [0, 1].
    """
    failed = [f"failed check: {check.name}: {check.sentence}" for check in checks if check.passed is False]
    unclear = [f"check not known: {check.name}: {check.sentence}" for check in checks if check.passed is None]
    notes = [*(note for note in (threshold.problem, threshold.warning) if note), *unclear]
    if not threshold.defined:
        return Judgement(DetectorVerdict.INVALID, (*notes, *failed))
    if worst.unscored:
        notes.append(
            f"{worst.unscored} attacked images have no finite score or answer: they are neither flagged nor let through"
        )
    evaded = worst.evaded
    found = (
        f"within {worst.threat}, at a stated {threshold.rate:.0%} of false alarms, {evaded} are fooled and not flagged "
        f"by the worst of {len(worst.alone)} attacks"
    )
    if evaded.interval is None:
        return Judgement(DetectorVerdict.UNTESTED, ("no image was attempted", *notes, *failed))
    low, high = evaded.interval
    if not adaptive:
        reasons = ["no attack that knows the detector was run, so that others fail says nothing", found]
        if low > tolerance:
            reasons.append(f"these attacks alone already exceed the {tolerance:.1%} tolerated")
        return Judgement(DetectorVerdict.UNTESTED, (*reasons, *notes, *failed))
    if low > tolerance:
        reason = f"{found}: more than the {tolerance:.1%} tolerated even at the interval's lower end"
        kept = ("a failed check does not void this: an image that is fooled and not flagged is a counterexample",)
        return Judgement(DetectorVerdict.BROKEN, (reason, *notes, *(failed and (*failed, *kept))))
    if failed or threshold.problem:
        void = f"{found}, which proves nothing because " + (
            "a validity check failed" if failed else "the score gives no threshold of that rate"
        )
        return Judgement(DetectorVerdict.INVALID, (*failed, *notes, void))
    if high < tolerance and unclear:
        reason = f"{found}: fewer than are tolerated, but whether the attacks are sound hangs on what has no answer"
        return Judgement(DetectorVerdict.UNDECIDED, (reason, *notes))
    if high < tolerance:
        reason = f"{found}: fewer than the {tolerance:.1%} tolerated even at the interval's upper end"
        limits = "this holds for the attacks that were run: a stronger one may break it"
        return Judgement(DetectorVerdict.HOLDS, (reason, limits, *notes))
    reason = f"{found}: the interval includes the {tolerance:.1%} tolerated, so more images are needed"
    return Judgement(DetectorVerdict.UNDECIDED, (reason, *notes))


@dataclass(frozen=True)
class ShiftRow:
    """A harmless shift or a foreign data set: alarms at each false-alarm rate, beside the classifier's own error.

    Attributes:
        name, strength: in words.
        alarms: by rate, in the order of the report's thresholds.
        error: None for foreign data, whose classes are others.
    """

    name: str
    strength: str
    alarms: tuple[Rate, ...]
    error: Rate | None


@dataclass(frozen=True)
class SeedNumbers:
    """What the original experiment reported of its attack.

    Attributes:
        adversarial: accuracy on adversarial images.
        adversarial_reconstructed, clean_reconstructed: accuracy on reconstructions.
        flagged, clean_flagged: adversarial and clean images whose score is above `at`.
        at: the threshold used there.
    """

    adversarial: Rate
    adversarial_reconstructed: Rate
    clean_reconstructed: Rate
    flagged: Rate
    clean_flagged: Rate
    at: float = 0.3


@dataclass(frozen=True, eq=False)
class Example:
    """One attacked image.

    Attributes:
        attack: its name.
        image_id, label, prediction: the last of the adversarial image, by the guarded model.
        clean_score, score: of both images.
        clean, adversarial: uint8 ``[C, H, W]``.
        reconstruction: uint8 ``[C, H, W]`` of the adversarial image, None where the detector has none.
    """

    attack: str
    image_id: int
    label: int
    prediction: int
    clean_score: float
    score: float
    clean: np.ndarray
    adversarial: np.ndarray
    reconstruction: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class DetectorReport:
    """All that an evaluation says of one detector.

    Attributes:
        name: of the detector.
        paper: where it comes from; empty for a control.
        judgement: the verdict with its reasons.
        alarms: thresholds and realised false alarms, the one that was judged first.
        cells: one for each attack.
        headlines: one for each threshold, in the same order.
        checks: of the attacks.
        tolerance: that was judged by.
        shifts: harmless shifts and foreign data.
        scores: float ``[n]`` by the name of the population, in the order shown.
        seed: None unless asked.
        examples: attacked images, all of one shape.
        attacks: the rows that the cells are counted from, in the same order; empty where figures are not wanted.
        right: bool ``[n]``, which of the scores of the population ``clean`` are of images classified right; None where
            that is not known.
    """

    name: str
    paper: str
    judgement: Judgement
    alarms: tuple[FalseAlarms, ...]
    cells: tuple[Cell, ...]
    headlines: tuple[Headline, ...]
    checks: tuple[Check, ...] = ()
    tolerance: float = TOLERANCE
    shifts: tuple[ShiftRow, ...] = ()
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    seed: SeedNumbers | None = None
    examples: tuple[Example, ...] = ()
    attacks: tuple[AttackRows, ...] = ()
    right: np.ndarray | None = None


@dataclass(frozen=True)
class Spread:
    """A figure over several trainings, `count` of them."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread | None":
        """Of those that there are; None without any."""
        found = [value for value in values if value is not None]
        return cls(float(np.mean(found)), min(found), max(found), len(found)) if found else None


@dataclass(frozen=True)
class OverSeeds:
    """One detector, trained several times: an interval by image says nothing of what another training would give.

    Attributes:
        name: of the detector, without its seed.
        verdicts: one a training.
        evaded: of the headline that was judged, the upper end where some images have no answer.
        auroc: the lowest of each training's cells that are not grey.
    """

    name: str
    verdicts: tuple[str, ...]
    evaded: Spread | None
    auroc: Spread | None


def over_seeds(name: str, reports: Sequence[DetectorReport]) -> OverSeeds:
    """What reports of a detector that differ in the training seed alone come to."""
    lowest = [_worst_auroc(report) for report in reports]
    return OverSeeds(
        name=name,
        verdicts=tuple(str(report.judgement.verdict) for report in reports),
        evaded=Spread.of([report.headlines[0].evaded.high for report in reports]),
        auroc=Spread.of([found[1].value if found else None for found in lowest]),
    )


def _worst_auroc(report: DetectorReport) -> tuple[str, Estimate] | None:
    """The attack that the score tells least from clean images, of the cells that are not grey."""
    found = [(cell.name, cell.auroc) for cell in report.cells if cell.auroc and not cell.grey]
    return min(found, key=lambda pair: pair[1].value, default=None)


def to_json(report: DetectorReport) -> dict[str, Any]:
    """A report as ``verdict.json`` has it: numbers, strings and None only; a threshold that is not finite is None.

    ``auroc`` and ``worst_tpr`` are the lowest of the cells that are not grey.
    """
    solid = [found for found in report.cells if not found.grey]
    tprs = [(found.name, at.rate, at.tpr) for found in solid for at in found.at[:1] if at.tpr]
    auroc = _worst_auroc(report)
    worst = min(tprs, key=lambda triple: triple[2].value, default=None)
    return {
        "detector": report.name,
        "paper": report.paper,
        "verdict": str(report.judgement.verdict),
        "reasons": list(report.judgement.reasons),
        "tolerance": report.tolerance,
        "auroc": auroc and {"attack": auroc[0], **_estimate(auroc[1])},
        "worst_tpr": worst and {"attack": worst[0], "false_alarms": worst[1], **_estimate(worst[2])},
        "headlines": [
            {"threat": found.threat.describe(), "false_alarms": found.rate}
            | {"alone": {name: _rate(rate) for name, rate in found.alone}}
            | {name: _rate(value) for name, value in vars(found).items() if isinstance(value, Rate)}
            | {"unscored": found.unscored}
            for found in report.headlines
        ],
        "thresholds": [
            {
                "false_alarms": found.threshold.rate,
                "value": found.threshold.value if math.isfinite(found.threshold.value) else None,
                "calibration": _rate(found.threshold.flagged),
                "realised": _rate(found.all),
                "clean_right": _rate(found.right),
                "clean_wrong": _rate(found.wrong),
                "clean_unanswered": _rate(found.unanswered),
                "problem": found.threshold.problem,
                "warning": found.threshold.warning,
            }
            for found in report.alarms
        ],
        "cells": [
            {
                "attack": found.name,
                "strength": found.strength,
                "targeted": found.targeted,
                "kind": str(found.kind),
                "grey": found.grey,
                "rows": found.rows,
                "success": _rate(found.success),
                "l2": found.l2,
                "auroc": found.auroc and _estimate(found.auroc),
                "aupr": found.aupr and _estimate(found.aupr),
                "prevalence": found.prevalence,
                "at": [
                    {
                        "false_alarms": at.rate,
                        "tpr": at.tpr and _estimate(at.tpr),
                        "failed_flagged": _rate(at.failed),
                        "evaded": _rate(at.evaded),
                    }
                    for at in found.at
                ],
            }
            for found in report.cells
        ],
        "checks": [vars(check) for check in report.checks],
        "shifts": [
            {
                "name": row.name,
                "strength": row.strength,
                "alarms": [_rate(rate) for rate in row.alarms],
                "classifier_error": row.error and _rate(row.error),
            }
            for row in report.shifts
        ],
        "seed": report.seed
        and {name: _rate(value) if isinstance(value, Rate) else value for name, value in vars(report.seed).items()},
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return bound(rate) | {"interval": rate.interval and list(rate.interval)}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval": list(estimate.interval)}
