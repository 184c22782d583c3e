"""Figures of detectors: scores, ROC, what fools the classifier against what alarms the detector, false alarms."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from analysis.detection import AttackRows, DetectorReport, FalseAlarms, Kind
from analysis.exhibits import Drawing, Exhibit, key_of
from analysis.figures.style import BAD, CLASSES, GOOD, INK, LINE, OTHER, QUIET, STYLES, new_figure, styled
from analysis.statistics import Estimate, Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["detection_exhibits"]

BINS = 60

LEAST = 1e-3
"""Where the axis of false alarms begins, unless the clean images are too few to tell so little."""


def detection_exhibits(reports: Sequence[DetectorReport]) -> list[Exhibit]:
    """For each detector its scores, ROC and scatter with the cells behind them, then the false alarms of all.

    Args:
        reports: of detectors that guard one model on one data set.
    """
    exhibits = [exhibit for report in reports if (exhibit := _detector(report))]
    alarms = [(report.name, found) for report in reports for found in report.alarms if found.all.total]
    return [*exhibits, _false_alarms(alarms)] if alarms else exhibits


def _detector(report: DetectorReport) -> Exhibit | None:
    if not any(np.isfinite(scores).any() for scores in report.scores.values()):
        return None
    key = key_of("detector", report.name)
    drawings = [
        Drawing(
            f"{key}-scores",
            f"{report.name}: scores of clean images and of each attack's successes, each to its own height; dashed the "
            "thresholds. What lies beyond the axis is in its end bins.",
            _histograms(report),
        )
    ]
    for name, attacks in _groups(report):
        if report.right is not None and any(attack.success.any() for attack in attacks):
            caption = (
                f"{report.name}, {name} attacks: successes flagged against clean images flagged that the classifier "
                "has right (log axis); dotted the stated false-alarm rates."
            )
            drawings.append(Drawing(key_of(key, "roc", name), caption, _roc(report, attacks)))
        known = [attack for attack in attacks if attack.margin is not None and attack.attempted.any()]
        if known:
            caption = (
                f"{report.name}, {name} attacks: the detector's score of each attempt against the margin of the "
                "classifier alone, above 0 where it sees another class than the label"
                f"{', be that the target or not' if any(attack.targeted for attack in known) else ''}; dashed the "
                "thresholds. Below them and right of 0: the classifier is wrong, and nothing is flagged."
            )
            bare = [(attack.bare_prediction, attack.prediction) for attack in known]
            if any(own is not None and (own != guarded).any() for own, guarded in bare):
                caption += " The detector repairs images, so that the guarded model may answer otherwise."
            drawings.append(Drawing(key_of(key, "fooled", name), caption, _scatter(report, known)))
    reason = report.judgement.reasons[0] if report.judgement.reasons else "no reason was given"
    finding = f"{report.name}: {report.judgement.verdict}: {reason}"
    aurocs = [(cell.auroc, cell.name) for cell in report.cells if cell.auroc and not cell.grey]
    if aurocs:
        worst = min(aurocs, key=lambda pair: pair[0].value)
        best = max(aurocs, key=lambda pair: pair[0].value)
        finding += f"; AUROC {worst[0]} on {worst[1]}" + (f", {best[0]} on {best[1]}" if best != worst else "")
    notes = [*report.judgement.reasons[1:]]
    notes += [f"{check.name}: {check.sentence}" for check in report.checks if not check.passed]
    if thin := [cell.name for cell in report.cells if cell.grey]:
        notes.append(f"Fewer than 50 successes: {', '.join(thin)}.")
    title = f"{report.name}: scores, and what evades"
    return Exhibit(key, title, f"{finding}.", drawings, _cells(report), notes)


def _groups(report: DetectorReport) -> Iterator[tuple[str, list[AttackRows]]]:
    """Attacks that know the detector, that do not, and what was found on others; as many as a figure takes."""
    kinds = {
        "adaptive": [Kind.ADAPTIVE],
        "naive": [Kind.NAIVE, Kind.MINIMAL_NORM, Kind.FEW_PIXEL],
        "other": [Kind.TRANSFER, Kind.NOISE],
    }
    for name, those in kinds.items():
        attacks = [attack for attack in report.attacks if attack.kind in those]
        parts = -(-len(attacks) // len(STYLES))
        for part in range(parts):
            some = attacks[part * len(STYLES) : (part + 1) * len(STYLES)]
            yield (f"{name} {part + 1}" if parts > 1 else name), some


def _span(report: DetectorReport) -> tuple[float, float]:
    """The axis of scores: between the pooled percentiles 0.5 and 99.5, widened to the thresholds."""
    pooled = np.concatenate([scores[np.isfinite(scores)] for scores in report.scores.values()])
    ends = [*np.percentile(pooled, [0.5, 99.5]), *(tau for tau, _ in _taus(report))]
    margin = 0.03 * (max(ends) - min(ends)) or 0.5
    return float(min(ends) - margin), float(max(ends) + margin)


def _taus(report: DetectorReport) -> list[tuple[float, float]]:
    """Finite thresholds and their rates."""
    found = [(alarms.threshold.value, alarms.threshold.rate) for alarms in report.alarms]
    return [(value, rate) for value, rate in found if np.isfinite(value)]


def _histograms(report: DetectorReport) -> "Figure":
    low, high = _span(report)
    kinds = {attack.name: attack.kind for attack in report.attacks}
    populations = {name: scores for name, scores in report.scores.items() if len(scores)}
    with styled():
        figure = new_figure(height=0.75 + 0.36 * len(populations))
        each = figure.subplots(len(populations), sharex=True, squeeze=False)[:, 0]
        for axes, (name, scores) in zip(each, populations.items(), strict=True):
            finite = scores[np.isfinite(scores)]
            colour = GOOD if name == "clean" else BAD if kinds.get(name) == Kind.ADAPTIVE else OTHER
            heights, edges = np.histogram(finite.clip(low, high), BINS, (low, high))
            axes.stairs(heights / max(heights.max(), 1), edges, fill=True, color=colour, linewidth=0.8)
            odd = f", {len(scores) - len(finite)} not finite" if len(finite) < len(scores) else ""
            axes.set_ylabel(f"{name}\n{len(scores):,} images{odd}", rotation=0, ha="right", va="center", fontsize=8)
            axes.set(xlim=(low, high), ylim=(0, 1.1), yticks=[])
            axes.spines["left"].set_visible(False)
            for value, _ in _taus(report):
                axes.axvline(value, color=INK, linestyle="--", linewidth=0.9)
        for number, (value, rate) in enumerate(sorted(_taus(report))):  # on either side of themselves
            side = "left" if number else "right"
            each[0].annotate(f" {rate:.0%} ", (value, 1.1), fontsize=8, va="bottom", ha=side)
        each[-1].xaxis.set_major_locator(MaxNLocator(5))
        each[-1].set_xlabel("score")
    return figure


def _roc(report: DetectorReport, attacks: Sequence[AttackRows]) -> "Figure":
    assert report.right is not None
    clean = _ranked(report.scores["clean"][report.right], 1)
    auroc = {cell.name: cell.auroc for cell in report.cells}
    start = max(LEAST, 1 / max(len(clean), 1))
    with styled():
        shown = [attack for attack in attacks if attack.success.any()]
        figure = new_figure(height=2.7 + 0.16 * len(shown))
        axes = figure.subplots()
        for attack, (colour, dashes) in zip(shown, STYLES, strict=False):
            successes = _ranked(attack.score[attack.success], -1)
            truth = np.repeat([1, 0], [len(successes), len(clean)])
            alarms, flagged, _ = roc_curve(truth, np.concatenate([successes, clean]), drop_intermediate=True)
            label = f"{attack.name}: AUROC {_estimate(auroc.get(attack.name))}"
            axes.plot(100 * alarms, 100 * flagged, color=colour, linestyle=dashes, label=label, drawstyle="steps-post")
        axes.set_xscale("log")
        axes.set(xlim=(100 * start, 100), ylim=(-2, 102))
        ticks = [tick for tick in (0.1, 1, 10, 100) if tick >= 100 * start]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        for alarms_at in report.alarms:
            axes.axvline(100 * alarms_at.threshold.rate, color=QUIET, linestyle=":", linewidth=0.9)
        axes.set(xlabel="clean images flagged (%)", ylabel="successes flagged (%)")
        figure.legend(loc="outside lower left")
    return figure


def _ranked(scores: np.ndarray, end: int) -> np.ndarray:
    """Scores that can be ranked: one that is not finite is the most (1) or the least (−1), as in the AUROC's value."""
    return np.where(np.isfinite(scores), scores.astype(np.float64), end * np.finfo(np.float64).max)


def _scatter(report: DetectorReport, attacks: Sequence[AttackRows]) -> "Figure":
    low, high = _span(report)
    with styled():
        figure = new_figure(height=3.2 + 0.16 * -(-len(attacks) // 2))
        axes = figure.subplots()
        axes.axvline(0, color=LINE)
        for number, attack in enumerate(attacks):
            assert attack.margin is not None
            known = attack.attempted & np.isfinite(attack.score) & np.isfinite(attack.margin)
            axes.scatter(
                attack.margin[known], attack.score[known].clip(low, high), s=7, color=CLASSES[number], linewidths=0,
                label=f"{attack.name} ({int(known.sum())})", rasterized=True,
            )  # fmt: skip
        ends = axes.get_xlim()
        for number, (value, rate) in enumerate(_taus(report)):
            axes.axhline(value, color=INK, linestyle="--", linewidth=0.9)
            axes.text(
                ends[number % 2], value, f" {rate:.0%} ", fontsize=8, va="bottom", ha=("left", "right")[number % 2]
            )
        axes.set(xlim=ends, ylim=(low, high))
        axes.set(xlabel="margin of the classifier alone (logits; wrong above 0)", ylabel="detector's score")
        figure.legend(loc="outside lower left", ncols=2, markerscale=2)
    return figure


def _false_alarms(found: Sequence[tuple[str, FalseAlarms]]) -> Exhibit:
    rates = sorted({alarms.threshold.rate for _, alarms in found}, reverse=True)
    records = []
    for name, alarms in found:
        tau = alarms.threshold.value
        parts = {"all": alarms.all, "classified right": alarms.right, "misclassified": alarms.wrong}
        parts |= {"without an answer": alarms.unanswered} if alarms.unanswered.total else {}
        for images, rate in parts.items():
            ends = rate.interval or (None, None)
            records.append(
                {"detector": name, "stated": alarms.threshold.rate, "threshold": tau if np.isfinite(tau) else None}
                | {"clean_images": images, "flagged": rate.hits, "images": rate.total, "rate": rate.value}
                | dict(zip(("low", "high"), ends, strict=True))
            )
    names = list(dict.fromkeys(name for name, _ in found))

    def figure() -> "Figure":
        with styled():
            drawn = new_figure(height=1.1 + 0.3 * len(names))
            axes: Axes = drawn.subplots()
            for number, (rate, (colour, _)) in enumerate(zip(rates, STYLES, strict=False)):
                those = [(name, alarms.all) for name, alarms in found if alarms.threshold.rate == rate]
                value = np.array([100 * (all_of.low or 0) for _, all_of in those])
                ends = 100 * np.array([all_of.interval for _, all_of in those])
                place = [names.index(name) + 0.16 * (number - (len(rates) - 1) / 2) for name, _ in those]
                around = np.abs(ends.T - value)
                label = f"stated {rate:.0%}"
                axes.errorbar(value, place, xerr=around, color=colour, linestyle="", marker="o", markersize=4,
                              capsize=3, label=label)  # fmt: skip
                axes.axvline(100 * rate, color=colour, linestyle=":", linewidth=0.9)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set(xlabel="clean test images flagged (%)", ylim=(len(names) - 0.5, -0.5))
            axes.set_xlim(left=0)
            drawn.legend(loc="outside lower left", ncols=max(len(rates), 1))
        return drawn

    off = [
        f"{name} flags {alarms.all} at a stated {alarms.threshold.rate:.0%}"
        for name, alarms in found
        if _off(alarms.all, alarms.threshold.rate)
    ]
    said = "; ".join(off) if off else "every stated rate lies within the interval of the realised one"
    kinds: dict[str, pa.DataType] = {"detector": pa.string(), "stated": pa.float64(), "threshold": pa.float64()}
    kinds |= {"clean_images": pa.string(), "flagged": pa.int64(), "images": pa.int64()}
    kinds |= dict.fromkeys(("rate", "low", "high"), pa.float64())
    caption = "Clean test images flagged at each stated false-alarm rate (dotted), with 95% intervals."
    return Exhibit(
        "false-alarms",
        "False alarms",
        f"On clean test images {said}.",
        [Drawing("false-alarms", caption, figure())],
        pa.Table.from_pylist(records, schema=pa.schema(list(kinds.items()))),
        ["Thresholds are set on calibration images and frozen; these are other ones."],
    )


def _off(rate: Rate, stated: float) -> bool:
    return rate.interval is not None and not rate.interval[0] <= stated <= rate.interval[1]


def _cells(report: DetectorReport) -> pa.Table:
    records = []
    for cell in report.cells:
        record: dict[str, Any] = {
            "attack": cell.name, "strength": cell.strength, "knows": str(cell.kind), "targeted": cell.targeted,
            "attempts": cell.success.total, "successes": cell.success.hits, "l2": cell.l2,
        }  # fmt: skip
        record |= _three("success", cell.success) | _three("auroc", cell.auroc)
        for at in cell.at:
            record |= _three(f"tpr_at_{100 * at.rate:g}", at.tpr) | _three(f"evaded_at_{100 * at.rate:g}", at.evaded)
        records.append(record)
    return pa.Table.from_pylist(records)


def _three(name: str, found: Rate | Estimate | None) -> dict[str, float | None]:
    low, high = (found.interval if found else None) or (None, None)
    return {name: found.value if found else None, f"{name}_low": low, f"{name}_high": high}


def _estimate(found: Estimate | None) -> str:
    return "unknown" if found is None else f"{found.value:.2f} ({found.interval[0]:.2f} to {found.interval[1]:.2f})"
