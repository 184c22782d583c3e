"""Whether adversarial images of one model fool another: rates by source, victim and attack, a verdict on each victim.

Predictions in, numbers out: no model is asked anything here. An image fools a model that predicts another class than
its label and does not reject it. Where a model gave no answer, or the search that was to make the image failed, it is
not known whether it does: such images count in every total, and the rate lies between two ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.robustness import Judgement, bound
from analysis.statistics import Rate
from workers.evaluation.answers import REJECTED, UNANSWERED

__all__ = [
    "TOLERANCE",
    "Answers",
    "Cell",
    "Surrogate",
    "TransferReport",
    "TransferVerdict",
    "Victim",
    "report",
    "to_json",
    "to_table",
    "worst",
]

TOLERANCE = 0.1
"""Share of images that may end misclassified by images made on other models."""

STRONG = 0.5
"""Share of images on which some source must itself be fooled within the threat before its images can clear a victim."""


class TransferVerdict(StrEnum):
    """What transferred images say of a victim.

    ``broken``: they fool it on more images than are tolerated. ``holds``: on no more than that, though they fool their
    own source. ``undecided``: neither is shown.
    """

    BROKEN = "broken"
    HOLDS = "holds"
    UNDECIDED = "undecided"


@dataclass(frozen=True, eq=False)
class Answers:
    """What every model answers to the images that one attack made of one source.

    Attributes:
        source: the model that was searched.
        attack: what the search is called.
        image_id, label: int64 ``[n]``; every image is one that all models classify right as it is.
        l2: float64 ``[n]``, how far each moved, for pixels in [0, 1].
        within: bool ``[n]``, which images the threat allows.
        predictions: int64 ``[n]`` by model, the source's own among them; `REJECTED` where it rejects, `UNANSWERED`
            where it gave no answer or there is no image.
        bounded: whether the attack keeps to the threat by its own parameters.
    """

    source: str
    attack: str
    image_id: np.ndarray
    label: np.ndarray
    l2: np.ndarray
    within: np.ndarray
    predictions: Mapping[str, np.ndarray]
    bounded: bool

    def fooled(self, model: str) -> np.ndarray:
        """bool ``[n]``: which images fool a model."""
        return self.may_fool(model) & (self.predictions[model] != UNANSWERED)

    def may_fool(self, model: str) -> np.ndarray:
        """bool ``[n]``: likewise, or that is not known."""
        found = self.predictions[model]
        return (found != self.label) & (found != REJECTED)


@dataclass(frozen=True)
class Cell:
    """One source, victim and attack.

    Attributes:
        source, victim, attack: the same model twice where it is the search's own success.
        bounded: whether the attack keeps to the threat by its own parameters.
        rate: of the images that fool the source, those that fool the victim; of all images where the two are one. Of
            images that may fool the source or not, nothing is known.
        agreement: of the images that fool both, those that both take for the same class.
        l2: median distance of the images that fool the source, for pixels in [0, 1]; None without any.
    """

    source: str
    victim: str
    attack: str
    bounded: bool
    rate: Rate
    agreement: Rate
    l2: float | None

    @property
    def own(self) -> bool:
        """Whether the model is its own victim: the white box."""
        return self.source == self.victim

    @classmethod
    def of(cls, answers: Answers, victim: str) -> "Cell":
        """Counts one attack's images against one victim."""
        source, fooled = answers.fooled(answers.source), answers.fooled(victim)
        may = answers.may_fool(answers.source)
        both = source & fooled
        same = both & (answers.predictions[answers.source] == answers.predictions[victim])
        own = victim == answers.source
        return cls(
            answers.source,
            victim,
            answers.attack,
            answers.bounded,
            Rate.between(source, may) if own else Rate.between(both[may], (~source | answers.may_fool(victim))[may]),
            Rate(int(same.sum()), int(both.sum())),
            float(np.median(answers.l2[source])) if source.any() else None,
        )


def worst(cells: Sequence[Cell]) -> Cell | None:
    """The cell that transfers most: of several, the one whose interval begins highest, so that 1 of 1 is not the worst.

    Returns:
        None where no source is fooled.
    """
    known = [(cell.rate.interval[0], cell) for cell in cells if cell.rate.interval]
    return max(known, key=lambda pair: pair[0])[1] if known else None


@dataclass(frozen=True)
class Victim:
    """What becomes of one victim.

    Attributes:
        name: the victim.
        clean: the share of test images that it classifies right.
        worst: the highest transfer rate onto it, of attacks that keep to the threat; None where no source is fooled.
        fooled: of all images, those that some image within the threat, made on another model, fools it on.
        judgement: the verdict.
    """

    name: str
    clean: Rate
    worst: Cell | None
    fooled: Rate
    judgement: Judgement


@dataclass(frozen=True)
class Surrogate:
    """A model that was made to be a source.

    Attributes:
        name: as a source.
        what: how it was made, in a few words.
        clean: the share of test images that it classifies right.
        queries: images that a victim was asked for its answer to; 0 where none was.
    """

    name: str
    what: str
    clean: Rate
    queries: int = 0


@dataclass(frozen=True)
class TransferReport:
    """All of it.

    Attributes:
        threat: in words.
        right: the share of the test images not held back that all models classify right.
        attacked: how many of those were.
        sources, attacks: names in their order.
        cells: of every source, victim and attack, and each source on itself.
        victims: in their order.
        surrogates: those of the sources that were made for it.
    """

    threat: str
    right: Rate
    attacked: int
    sources: tuple[str, ...]
    attacks: tuple[str, ...]
    cells: tuple[Cell, ...]
    victims: tuple[Victim, ...]
    surrogates: tuple[Surrogate, ...] = ()

    @property
    def verdict(self) -> TransferVerdict:
        """The worst of the victims'."""
        order = [TransferVerdict.BROKEN, TransferVerdict.UNDECIDED, TransferVerdict.HOLDS]
        return min((TransferVerdict(one.judgement.verdict) for one in self.victims), key=order.index)

    @property
    def worst(self) -> Cell | None:
        """The highest transfer rate onto any victim."""
        return worst([victim.worst for victim in self.victims if victim.worst])

    def cell(self, source: str, victim: str, attack: str) -> Cell | None:
        """One cell; None where there is none."""
        wanted = (source, victim, attack)
        return next((one for one in self.cells if (one.source, one.victim, one.attack) == wanted), None)


def report(
    answers: Sequence[Answers],
    victims: Mapping[str, Rate],
    *,
    threat: str,
    right: Rate,
    surrogates: Sequence[Surrogate] = (),
    tolerance: float = TOLERANCE,
) -> TransferReport:
    """Counts everything.

    Args:
        answers: of every source and attack; all of the same images.
        victims: the clean accuracy of each, by name.
        threat: in words.
        right: the share of the test images not held back that all models classify right.
        surrogates: those of the sources that were made for it.
        tolerance: the largest share of images that may fool a victim, in (0, 1).

    Raises:
        ValueError: without answers.
    """
    if not answers:
        raise ValueError("expected the answers to one attack at least")
    cells = tuple(
        Cell.of(one, victim)
        for one in answers
        for victim in (*victims, *(() if one.source in victims else (one.source,)))
    )
    judged = tuple(_victim(name, clean, answers, cells, tolerance) for name, clean in victims.items())
    return TransferReport(
        threat,
        right,
        max(len(one.label) for one in answers),
        tuple(dict.fromkeys(one.source for one in answers)),
        tuple(dict.fromkeys(one.attack for one in answers)),
        cells,
        judged,
        tuple(surrogates),
    )


def _victim(name: str, clean: Rate, answers: Sequence[Answers], cells: Sequence[Cell], tolerance: float) -> Victim:
    others = [one for one in answers if one.source != name]
    onto = [cell for cell in cells if cell.victim == name and not cell.own and cell.bounded]
    fooled = _images(others, name)
    strongest = max((_images([one], one.source).low or 0 for one in others), default=0.0)
    return Victim(name, clean, worst(onto), fooled, _judge(fooled, strongest, tolerance))


def _images(answers: Sequence[Answers], model: str) -> Rate:
    """Of all images, those that some image within the threat fools a model on."""
    ids = np.unique(np.concatenate([np.empty(0, np.int64), *(one.image_id for one in answers)]))
    hits, perhaps = (
        np.isin(ids, np.concatenate([np.empty(0, np.int64), *found]))
        for found in (
            [one.image_id[one.fooled(model) & one.within] for one in answers],
            [one.image_id[one.may_fool(model) & one.within] for one in answers],
        )
    )
    return Rate.between(hits, perhaps)


def _judge(fooled: Rate, strongest: float, tolerance: float) -> Judgement:
    if fooled.interval is None:
        return Judgement(TransferVerdict.UNDECIDED, ("no image was made on another model",))
    low, high = fooled.interval
    said = f"fooled within the threat, by images made on other models, on {fooled}"
    if low > tolerance:
        return Judgement(TransferVerdict.BROKEN, (f"{said}: more than the tolerated {tolerance:.1%}",))
    if high > tolerance:
        return Judgement(TransferVerdict.UNDECIDED, (f"{said}: not told from the tolerated {tolerance:.1%}",))
    if strongest < STRONG:
        return Judgement(
            TransferVerdict.UNDECIDED,
            (said, f"no source is itself fooled within the threat on more than {strongest:.1%} of the images"),
        )
    return Judgement(
        TransferVerdict.HOLDS,
        (
            f"{said}: no more than the tolerated {tolerance:.1%}",
            "other sources, and searches that know it, may do more",
        ),
    )


def to_json(found: TransferReport) -> dict[str, Any]:
    """A report as ``verdict.json`` has it: numbers, strings and None only."""
    return {
        "verdict": str(found.verdict),
        "reasons": [f"{one.name}: {reason}" for one in found.victims for reason in one.judgement.reasons],
        "worst_transfer": _cell(found.worst),
        "images": {"right_by_all": bound(found.right), "attacked": found.attacked},
        "victims": [
            {
                "victim": one.name,
                "verdict": str(one.judgement.verdict),
                "reasons": list(one.judgement.reasons),
                "clean_accuracy": bound(one.clean),
                "worst_transfer": _cell(one.worst),
                "fooled_by_any": bound(one.fooled),
            }
            for one in found.victims
        ],
        "surrogates": [
            {"surrogate": one.name, "what": one.what, "clean_accuracy": bound(one.clean), "queries": one.queries}
            for one in found.surrogates
        ],
        "cells": [_cell(one) for one in found.cells],
    }


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    named = {"source": cell.source, "victim": cell.victim, "attack": cell.attack, "bounded": cell.bounded}
    return named | bound(cell.rate) | {"agreement": bound(cell.agreement), "l2": cell.l2}


def to_table(found: TransferReport) -> pa.Table:
    """A row for each source, victim and attack; of a model on itself its rate is the white box's success."""
    rows = []
    for cell in found.cells:
        row: dict[str, Any] = {
            "source": cell.source,
            "victim": cell.victim,
            "attack": cell.attack,
            "bounded": cell.bounded,
            "l2": cell.l2,
        }
        for name, rate in (("rate", cell.rate), ("agreement", cell.agreement)):
            low, high = rate.interval or (None, None)
            row |= {name: rate.value, f"{name}_low": low, f"{name}_high": high}
            row |= {f"{name}_images": rate.hits, f"{name}_of": rate.total}
        rows.append(row)
    real, whole = pa.float64(), pa.int64()
    fields = [("source", pa.string()), ("victim", pa.string()), ("attack", pa.string()), ("bounded", pa.bool_())]
    fields += [("l2", real)]
    for name in ("rate", "agreement"):
        fields += [(name, real), (f"{name}_low", real), (f"{name}_high", real)]
        fields += [(f"{name}_images", whole), (f"{name}_of", whole)]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))
