"""What is known of each image after several attacks within one threat, and what that says of the model's robustness.

An attack that fails proves nothing, so attacks bound robust accuracy from above only; certificates bound it from below.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.statistics import Rate, percent
from analysis.summary import unchanged
from workers.results import SEARCHED, Status

__all__ = ["COLUMNS", "Judgement", "Robustness", "StageRows", "StageTally", "Standing", "Verdict", "bound", "judge"]

COLUMNS = ["image_id", "status", "success", "clean_prediction", "l0", "queries", "gradients", "seconds", "error"]
"""Of the schema of results, what is read here: the images themselves are not."""

_UNKNOWN = -1


class Standing(StrEnum):
    """What is known of an image.

    ``robust``: nothing has broken it so far, which proves nothing. ``broken``: an attack turned it; the image that it
    found is a witness, which no certificate outweighs. ``certified``: no change within the threat turns it. ``wrong``:
    the model misclassifies the clean image.
    """

    ROBUST = "robust"
    BROKEN = "broken"
    CERTIFIED = "certified"
    WRONG = "wrong"


@dataclass(frozen=True)
class StageRows:
    """The rows that one attack within the threat has given so far.

    Attributes:
        name: of the stage.
        certifies: whether its status ``certified`` is about the whole threat; not so for the certificate of a smaller
            space, as that of pixels made black or white only.
        rows: `COLUMNS` of the untargeted search, an image at most once.
    """

    name: str
    certifies: bool
    rows: pa.Table


@dataclass(frozen=True)
class StageTally:
    """What one stage came to.

    Attributes:
        searched: images searched to an end.
        successes: those whose search succeeded.
        broken: images that no stage before it had broken.
        remaining: images that neither it nor a stage before it found misclassified or broken.
        failed: rows with status ``failed``.
        unchanged: images that came back as they were, of those that neither success nor a certificate ended.
        queries, gradients: of all rows.
        seconds: worker time.
    """

    searched: int
    successes: int
    broken: int
    remaining: int
    failed: int
    unchanged: int
    queries: int
    gradients: int
    seconds: float

    @property
    def success(self) -> Rate:
        """Of the images that it was asked about: those that the stages before it left, or all."""
        return Rate(self.successes, self.searched + self.failed, unknown=self.failed)


class Robustness:
    """The standing of every image, after the rows of some stages.

    Args:
        ids: int64 ``[n]``, the images, each once.
        labels: int64 ``[n]``.
        stages: in the order in which an image's breaking is ascribed to them.
        rejected: bool ``[n]``, clean images that the model itself rejects, which count as misclassified; None where it
            never does.

    Attributes:
        ids, labels: as given.
        clean_prediction: int64 ``[n]``; −1 where no row has told yet.
        standing: `Standing` values ``[n]``.
        asked: bool ``[n]``, whether any stage has come to the image.
        certified: bool ``[n]``, whether a certificate was given, even of an image that is broken.
        broken_by: the name of the first stage that broke each image, None elsewhere.
        error: the first error of each image's failed rows, None elsewhere.
        queries, gradients: int64 ``[n]``, of all stages.
        seconds: float64 ``[n]``, worker time.
        tallies: by the name of the stage.

    Raises:
        ValueError: when a row is of an image that is not among the ids.
    """

    def __init__(
        self, ids: np.ndarray, labels: np.ndarray, stages: Sequence[StageRows], rejected: np.ndarray | None = None
    ) -> None:
        self.ids, self.labels, count = ids, labels, len(ids)
        self.rejected = np.zeros(count, dtype=bool) if rejected is None else rejected
        self.clean_prediction = np.full(count, _UNKNOWN, dtype=np.int64)
        self.standing = np.full(count, Standing.ROBUST, dtype=object)
        self.standing[self.rejected] = Standing.WRONG
        self.asked, self.certified = np.zeros((2, count), dtype=bool)
        self.broken_by, self.error = np.full((2, count), None, dtype=object)
        self.queries, self.gradients = np.zeros((2, count), dtype=np.int64)
        self.seconds = np.zeros(count)
        self.tallies: dict[str, StageTally] = {}
        order = np.argsort(ids)
        for stage in stages:
            image = stage.rows["image_id"].to_numpy()
            place = order[np.searchsorted(ids, image, sorter=order).clip(max=count - 1)]
            if not np.array_equal(ids[place], image):
                raise ValueError(f"{stage.name}: has rows of images that are not evaluated")
            self._add(stage, place)

    def _add(self, stage: StageRows, place: np.ndarray) -> None:
        rows = stage.rows
        status = np.array(rows["status"].cast(pa.string()).to_pylist(), dtype=object)
        prediction = pc.fill_null(rows["clean_prediction"], _UNKNOWN).to_numpy()
        told = prediction != _UNKNOWN
        self.asked[place] = True
        self.clean_prediction[place[told]] = prediction[told]
        self.standing[place[status == Status.ALREADY_WRONG]] = Standing.WRONG
        if stage.certifies:
            certain = place[status == Status.CERTIFIED]
            self.certified[certain] = True
            self.standing[certain[self._open(certain)]] = Standing.CERTIFIED
        hit = place[status == Status.SUCCESS]
        new = hit[self._open(hit)]
        self.standing[new], self.broken_by[new] = Standing.BROKEN, stage.name
        for row in np.flatnonzero(status == Status.FAILED):
            self.error[place[row]] = self.error[place[row]] or f"{stage.name}: {rows['error'][int(row)].as_py()}"
        spent = {name: rows[name].to_numpy() for name in ("queries", "gradients", "seconds")}
        for name, amount in spent.items():
            getattr(self, name)[place] += amount
        self.tallies[stage.name] = StageTally(
            searched=int(np.isin(status, SEARCHED).sum()),
            successes=len(hit),
            broken=len(new),
            remaining=self.count(Standing.ROBUST, Standing.CERTIFIED),
            failed=int((status == Status.FAILED).sum()),
            unchanged=unchanged(rows),
            queries=int(spent["queries"].sum()),
            gradients=int(spent["gradients"].sum()),
            seconds=float(spent["seconds"].sum()),
        )

    def _open(self, place: np.ndarray) -> np.ndarray:
        """bool: which of the images are neither broken nor misclassified."""
        return ~np.isin(self.standing[place], (Standing.BROKEN, Standing.WRONG))

    def count(self, *standings: Standing) -> int:
        """How many images stand so."""
        return int(np.isin(self.standing, standings).sum())

    @property
    def at_most(self) -> Rate:
        """Robust accuracy is at most this: the images that are neither misclassified nor broken.

        Images that no stage has come to yet count among them; of no images before a stage has come to any.
        """
        return self._of_all(self.count(Standing.ROBUST, Standing.CERTIFIED))

    @property
    def at_least(self) -> Rate:
        """Robust accuracy is at least this: the certified images."""
        return self._of_all(self.count(Standing.CERTIFIED))

    @cached_property
    def clean(self) -> Rate:
        """Clean accuracy, of the same images as the bounds; where no clean prediction is known there is no answer."""
        right = (self.clean_prediction == self.labels) & ~self.rejected
        unknown = (self.clean_prediction == _UNKNOWN) & ~self.rejected
        return self._of_all(int(right.sum()), int(unknown.sum()))

    def _of_all(self, hits: int, unknown: int = 0) -> Rate:
        """A share of all images; of none before any was asked about."""
        return Rate(hits, len(self.ids), unknown=unknown) if self.asked.any() else Rate(0, 0)

    @property
    def failed(self) -> int:
        """How many images a search failed on; they count as not broken unless another stage breaks them."""
        return sum(error is not None for error in self.error)

    @property
    def contradicted(self) -> np.ndarray:
        """int64, ids of the images that are both broken and certified: one of both attacks is wrong about them."""
        return self.ids[self.certified & (self.standing == Standing.BROKEN)]

    def left(self, *, broken_too: bool = False) -> np.ndarray:
        """int64, ids of the images for which another attack can still change something, in the order given.

        Args:
            broken_too: all that are not misclassified instead, whatever is known of them.
        """
        if broken_too:
            return self.ids[self.standing != Standing.WRONG]
        return self.ids[self.standing == Standing.ROBUST]

    def to_table(self) -> pa.Table:
        """A row for each image."""
        unknown = self.clean_prediction == _UNKNOWN
        return pa.table(
            {
                "image_id": pa.array(self.ids, pa.int64()),
                "label": pa.array(self.labels, pa.int32()),
                "clean_prediction": pa.array(self.clean_prediction.astype(np.int32), mask=unknown),
                "status": pa.array([str(standing) for standing in self.standing]).dictionary_encode(),
                "broken_by": pa.array(self.broken_by.tolist(), pa.string()),
                "queries": self.queries,
                "gradients": self.gradients,
                "seconds": self.seconds,
                "error": pa.array(self.error.tolist(), pa.string()),
            }
        )


class Verdict(StrEnum):
    """Whether robust accuracy is at least what was asked for.

    ``broken``: shown to be below. ``holds``: certified to be at least that. ``undecided``: neither. ``none asked``.
    ``evaluation invalid``: a check on the attacks failed, so what they left says nothing.
    """

    BROKEN = "broken"
    HOLDS = "holds"
    UNDECIDED = "undecided"
    NONE_ASKED = "none asked"
    INVALID = "evaluation invalid"


@dataclass(frozen=True)
class Judgement:
    """A verdict, one of the question's own, with its reasons, a sentence each."""

    verdict: StrEnum
    reasons: tuple[str, ...]

    def because(self, *more: str) -> "Judgement":
        """The same verdict with more reasons."""
        return Judgement(self.verdict, (*self.reasons, *more))

    def unless(self, failed: Sequence[str]) -> "Judgement":
        """An invalid evaluation where checks failed, a sentence each; but counterexamples and certificates stand."""
        if not failed:
            return self
        if self.verdict in (Verdict.BROKEN, Verdict.HOLDS):
            return Judgement(self.verdict, (*failed, *self.reasons))
        return Judgement(Verdict.INVALID, (*failed, *(f"void: {reason}" for reason in self.reasons)))


def judge(at_most: Rate, at_least: Rate, require: float | None) -> Judgement:
    """Holds the bounds of robust accuracy, with their intervals, against the lowest one that is acceptable.

    Args:
        at_most: the share of images neither misclassified nor broken.
        at_least: the share certified.
        require: lowest acceptable robust accuracy in [0, 1]; None when nothing was asked.
    """
    if at_most.interval is None or at_least.interval is None:
        unknown = Verdict.NONE_ASKED if require is None else Verdict.UNDECIDED
        return Judgement(unknown, ("nothing was searched: nothing is known of the robust accuracy",))
    above = f"robust accuracy is at most {at_most}"
    below = f"{at_least} are certified" if at_least.hits else "no image is certified: attacks bound from above only"
    if require is None:
        return Judgement(Verdict.NONE_ASKED, (above, below))
    if at_most.interval[1] < require:
        reason = f"{above}, below the {percent(require)} required even at the interval's upper end"
        return Judgement(Verdict.BROKEN, (reason,))
    if at_least.interval[0] >= require:
        reason = f"{below}, no fewer than the {percent(require)} required even at the interval's lower end"
        return Judgement(Verdict.HOLDS, (reason,))
    unshown = f"{below}, which does not show the {percent(require)} required"
    if at_least.hits:
        unshown += f": {percent(at_least.interval[0])} at the interval's lower end"
    reasons = f"{above}, which does not rule out the {percent(require)} required", unshown
    return Judgement(Verdict.UNDECIDED, reasons)


def bound(rate: Rate) -> dict[str, Any]:
    """A rate as ``verdict.json`` has it."""
    found = {"value": rate.value, "interval": rate.interval, "images": rate.hits, "of": rate.total}
    return found | ({"unknown": rate.unknown} if rate.unknown else {})
