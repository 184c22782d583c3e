"""The evaluation of detectors: naive and adaptive searches, scores of what they found, checks, and a report of each."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from analysis import detection as reading
from analysis.detection import AttackRows, Check, DetectorReport, Example, FalseAlarms, Kind, SeedNumbers, ShiftRow
from analysis.replay import stored_images
from analysis.shifts import SHIFTS, Shift
from analysis.statistics import Rate
from cluster.store import RunFolder
from jobs.frozen import FrozenFolder
from jobs.guard import EXPLAINED, Guard, Named, Split, guard, score
from jobs.launch import Selection, WorkerHost, launch
from jobs.progress import progress, say
from jobs.subject import Subject
from jobs.threat import RATIO, Search, adaptive_searches, beam, naive_searches
from workers.attacks import JSMA, Adaptive, Attack
from workers.detectors.guarded import Guarded, Judged
from workers.detectors.scoring import fresh_noise, reconstruct_images
from workers.detectors.vae import VAEKL
from workers.errors import Failed, WrongInput
from workers.evaluation.answers import UNANSWERED, answers, margins
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.scores import predicted
from workers.files import write_whole
from workers.images import Dataset
from workers.losses import cotangents
from workers.places import Place
from workers.results import Status, distances
from workers.threat import Ball, Pixels, Threat, threat_of

if TYPE_CHECKING:
    from jobs.detect import Question

__all__ = ["Detection"]

SHIFTED = 1000
"""Test images that harmless shifts are tried on."""

SOME = 50
"""Attacked images that the few-pixel search on the joint loss and the checks of the attacks are made on."""

EXAMPLES = 2
"""Images of each attack that the page shows."""

THREAT = "threat.json"
"""Where a threat that follows from the undefended classifier is kept."""

SEED_THRESHOLD = 0.3
"""Where the original experiment put it."""


@dataclass(frozen=True, eq=False)
class Attacked:
    """A detector and what searches that know it found; empty where it could not be attacked."""

    guard: Guard
    found: "dict[Search, AttackRows]"

    def best(self, threat: Threat | None, *, gradient: bool = False) -> Search:
        """The search that evades most often within the threat; of those that are untargeted and on all images.

        Args:
            threat: what counts; any distance when None.
            gradient: whether only gradient searches are asked.
        """
        whole = [one for one in self.found if not (one.targeted or one.dear or one.lenient)]
        those = [one for one in whole if isinstance(one.attack, Adaptive)] if gradient else whole
        threshold = self.guard.thresholds[0.05]
        return max(those, key=lambda one: int(self.found[one].evaded(threshold, threat).sum()))


@dataclass
class Detection:
    """An evaluation while it runs.

    Attributes:
        threat: what is judged; None until the undefended classifier has been attacked, where that is to tell.
        others: images of another kind, of the same shape; None where there are none.
        failures: the first reason why a search failed on an image, by the run's name.
    """

    subject: Subject
    training: Dataset
    split: Split
    folder: FrozenFolder
    networks: Path
    host: WorkerHost
    threat: Ball | Pixels | None
    question: "Question"
    others: Dataset | None
    retry_failed: bool = False
    failures: dict[str, str] = field(default_factory=dict)

    @cached_property
    def ids(self) -> np.ndarray:
        """int64 ids of the attacked images: of the test part, classified right."""
        return self.split.test[self.subject.correct[self.split.test]][: self.question.limit]

    def attack_naively(self) -> None:
        """Attacks the classifier alone, and fixes the threat where it was left open.

        Raises:
            WrongInput: when no image is classified right, or none falls.
        """
        if not len(self.ids):
            raise WrongInput("no image is left to attack: the model classifies none of the test part correctly")
        self.naive = naive_searches(self.threat)
        for search in self.naive:
            self._launch(search, self.subject, self.folder.path / "runs" / search.name)
        if self.threat is None and (self.folder.path / THREAT).exists():
            self.threat = threat_of(self.folder.read(THREAT))  # searches that are made again do not move it
        if self.threat is None:
            rows = self._rows(self.folder.path / "runs" / "ddn")
            fallen = rows["l2"].to_numpy()[rows["success"].to_numpy(zero_copy_only=False)]
            if not len(fallen):
                raise WrongInput("--epsilon: must be given, as the classifier itself did not fall to a single search")
            self.threat = Ball("l2", round(float(RATIO * np.median(fallen)), 3))
            write_whole(self.folder.path / THREAT, (json.dumps(self.threat.describe()) + "\n").encode())
            say(f"the threat: {self.threat}, {RATIO} times the median at which the classifier alone falls")

    def attack(self, named: Named) -> Attacked:
        """Fits and calibrates a detector, and searches it and the classifier together.

        Raises:
            WrongInput: for a detector that cannot take these images.
            Interrupted: when stopped; the same command resumes.
        """
        place = self.folder.path / named.folder
        one = guard(named, self.subject, self.training, self.split, place, self.networks, self.question.seed)
        attacked = Attacked(one, {})
        if one.subject is None:
            return attacked
        for search in adaptive_searches(self.threat, self.question.steps, few_pixel=self.question.few_pixel):
            attacked.found[search] = self._searched(one, search, self.ids[:SOME] if search.dear else None)
        if one.lenient is not None:  # what evades at 5 % does at 1 %, but more may
            best = attacked.best(self.judged)
            search = replace(best, name=f"{best.name}-at-1", lenient=True)
            attacked.found[search] = self._searched(one, search)
        return attacked

    def report(self, attacked: Attacked, others: Sequence[Attacked] = ()) -> DetectorReport:
        """Brings a detector to its verdict.

        Args:
            attacked: the detector.
            others: detectors whose adversarial images are tried on it as well; itself and other trainings of the same
                are left out, so that trainings can be compared.

        Raises:
            Interrupted: when stopped; the same command resumes.
        """
        one, labels = attacked.guard, self.subject.dataset.labels
        named, clean = one.named, one.test
        right = clean["prediction"].to_numpy() == labels[clean["image_id"].to_numpy()]
        scores, silent = clean["score"].to_numpy(), clean["prediction"].to_numpy() == UNANSWERED
        thresholds = tuple(one.thresholds.values())
        alarms = tuple(reading.false_alarms(threshold, scores, right, silent) for threshold in thresholds)
        naive = [self._attacked(one, search, self.subject) for search in self.naive]
        adaptive = list(attacked.found.values())
        attacks = [*naive, *adaptive, *self._transferred(one, others)]
        checks = self._checks(attacked, attacks, alarms) if adaptive else []
        calibration = one.calibration["score"].to_numpy()
        with progress(len(attacks), f"{named.text}: intervals", "attacks") as bar:
            cells = []
            for attack in attacks:
                cells.append(reading.cell(attack, calibration, scores[right], seed=self.question.seed))
                bar.advance(1, attack.name)
        clean_ids = clean["image_id"].to_numpy()
        bare = self.subject.extremes[0][clean_ids]
        bare_right = bare == labels[clean_ids]
        headlines = tuple(
            replace(  # of clean images all of the test part tell, not only those that are attacked
                reading.headline(attacks, self.judged, threshold),
                clean_accuracy=Rate.between(bare_right, bare_right | (bare == UNANSWERED)),
                clean_accepted=Rate.between(
                    right & ~threshold.may_flag(scores), (right | silent) & ~threshold.flags(scores)
                ),
            )
            for threshold in thresholds
        )
        judgement = reading.judge_detector(
            headlines[0], thresholds[0], checks, adaptive=bool(adaptive), tolerance=self.question.tolerance
        )
        if adaptive and (said := self._at_any_distance(attacked, naive)):
            judgement = judgement.because(said)
        if adaptive:
            lenient = [search.name for search in attacked.found if search.lenient]
            but = f"but {lenient[0]} aim" if lenient else "aim"
            judgement = judgement.because(
                f"all searches {but} at the threshold of 5% of false alarms: at 1% more may be possible than is shown"
            )
        if one.stand_in is not None:
            lent = (
                "lent its own"
                if one.stand_in >= EXPLAINED
                else "has nothing to lend: searches follow none of the score"
            )
            judgement = judgement.because(
                f"the detector gives no gradients: a stand-in that explains {one.stand_in:.0%} of the variance of its "
                f"scores {lent}"
            )
        if adaptive and not self.question.few_pixel:
            judgement = judgement.because("no few-pixel search knew the detector: --no-few-pixel left them out")
        for name, reason in self.failures.items():
            judgement = judgement.because(
                f"{name}: a search failed, and whether such images are turned is not known: {reason}"
            )
        return DetectorReport(
            name=named.text,
            paper=named.recipe.PAPER,
            judgement=judgement,
            alarms=alarms,
            cells=tuple(cells),
            headlines=headlines,
            checks=tuple(checks),
            tolerance=self.question.tolerance,
            shifts=self._shifts(one),
            scores={"clean": scores} | {attack.name: attack.score[attack.success] for attack in attacks},
            seed=self._seed_numbers(one, naive[0]),
            examples=self._examples(one, attacks),
            attacks=tuple(attacks),
            right=right,
        )

    def _at_any_distance(self, attacked: Attacked, naive: Sequence[AttackRows]) -> str:
        """What the best search comes to without a budget, and what that costs; empty where none evades."""
        threshold = attacked.guard.thresholds[0.05]
        best = attacked.best(None, gradient=True)
        found = attacked.found[best]
        evaded = found.evaded(threshold)
        if not evaded.any():
            return ""
        far = float(np.median(found.l2[evaded]))
        said = f"at any distance {best.name} gets {found.evasion(threshold)} through, at a "
        said += f"median L2 of {far:.3g}"
        alone = next(attack for attack in naive if attack.name == "ddn")
        own = alone.prediction if alone.bare_prediction is None else alone.bare_prediction
        turned = (own != alone.label) & (own != UNANSWERED)
        if turned.any():
            said += f", {far / float(np.median(alone.l2[turned])):.2f} times that of ddn on the classifier alone"
        return said

    @property
    def judged(self) -> Ball | Pixels:
        """The threat, once it is known."""
        assert self.threat is not None
        return self.threat

    def _attacked(self, one: Guard, search: Search, subject: Subject) -> AttackRows:
        """A run's images under the detector, on draws that the search has not seen."""
        own = subject is not self.subject
        place = (self.folder.path / one.named.folder if own else self.folder.path) / "runs" / search.name
        rows = self._rows(place)
        images, bare = stored_images(rows), rows["adversarial_prediction"].to_numpy()
        if own and one.detector.repairs:
            bare = answers(self.subject.model, images)
        ids = rows["image_id"].to_numpy()
        targets = rows["target"].to_numpy() if search.targeted else None
        found = self._scored(one, search.name, Kind(search.kind), _strength(search.attack), ids, images, bare, targets)
        return self._with_failed(found, one, place)

    def _with_failed(self, found: AttackRows, one: Guard, place: Path) -> AttackRows:
        """The rows of a search, and behind them those that it failed on: of these only the clean image is known."""
        folder = RunFolder(Place.of(place))
        (table,) = folder.tables(folder.plan(), ("image_id", "status"))
        ids = table.filter(pc.equal(table["status"].cast("string"), str(Status.FAILED)))["image_id"].to_numpy()
        if not len(ids):
            return found
        clean = one.test.take(pc.index_in(pa.array(ids), one.test["image_id"]))
        label, prediction = self.subject.dataset.labels[ids], clean["prediction"].to_numpy()
        unknown, nothing = np.full(len(ids), UNANSWERED), np.zeros(len(ids))
        more: dict[str, np.ndarray] = {
            "image_id": ids,
            "label": label,
            "clean_prediction": prediction,
            "prediction": unknown,
            "fooled": nothing.astype(bool),
            "score": np.full(len(ids), np.nan),
            "clean_score": clean["score"].to_numpy(),
            "l0": nothing.astype(np.int64),
            "l2": nothing,
            "linf": nothing,
            "attempted": (prediction == label) | (prediction == UNANSWERED),
            "bare_prediction": unknown,
            "bare_clean_prediction": label,
            "margin": np.full(len(ids), np.nan),
        }
        arrays: dict[str, Any] = {
            name: np.concatenate([value, more[name]])
            for name, value in vars(found).items()
            if isinstance(value, np.ndarray)
        }
        return replace(found, **arrays)

    def _transferred(self, one: Guard, others: Sequence[Attacked]) -> list[AttackRows]:
        """What other detectors let through, tried on this one."""
        found = []
        for other in others:
            named = other.guard.named
            if not other.found or named.untrained == one.named.untrained:
                continue
            search = other.best(self.judged)
            place = self.folder.path / named.folder / "runs" / search.name
            rows = self._rows(place)
            images, ids = stored_images(rows), rows["image_id"].to_numpy()
            bare = answers(self.subject.model, images)
            strength = f"the images of {search.name}"
            scored = self._scored(one, f"from-{named.folder}", Kind.TRANSFER, strength, ids, images, bare)
            found.append(self._with_failed(scored, one, place))
        return found

    def _scored(
        self,
        one: Guard,
        name: str,
        kind: Kind,
        strength: str,
        ids: np.ndarray,
        images: np.ndarray,
        bare: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ) -> AttackRows:
        """What a detector makes of attacked images; ``bare`` are the classifier's own predictions."""
        kept = self.folder.path / one.named.folder / "scores" / f"{name}.parquet"
        # One draw an image whatever found it: the worst of many draws would be no attack's merit.
        found = score(one.named, one.detector, images, ids, kept, self.question.seed, purpose="final")
        clean = one.test.take(pc.index_in(pa.array(ids), one.test["image_id"]))
        label, prediction = self.subject.dataset.labels[ids], found["prediction"].to_numpy()
        clean_prediction = clean["prediction"].to_numpy()
        moved = distances(self.subject.dataset.images[ids], images)
        return AttackRows(
            name=name,
            strength=strength,
            targeted=targets is not None,
            kind=kind,
            image_id=ids,
            label=label,
            clean_prediction=clean_prediction,
            prediction=prediction,
            fooled=(prediction != label) & (prediction != UNANSWERED) if targets is None else prediction == targets,
            score=found["score"].to_numpy(),
            clean_score=clean["score"].to_numpy(),
            l0=moved.l0,
            l2=moved.l2,
            linf=moved.linf,
            attempted=(clean_prediction == label) | (clean_prediction == UNANSWERED),
            bare_prediction=bare,
            bare_clean_prediction=None if bare is None else label,  # what is attacked is classified right
            margin=margins(self.subject.model, images, label),
        )

    def _checks(self, attacked: Attacked, attacks: list[AttackRows], alarms: Sequence[FalseAlarms]) -> list[Check]:
        """Whether the attacks behaved as sound ones do."""
        one, threshold = attacked.guard, attacked.guard.thresholds[0.05]
        if not any(found.attempted.any() for found in attacked.found.values()):
            said = "classifier and detector together classify none of the attacked images right, so none was attempted"
            return [Check("something is attempted", False, said)]
        gradient = [found for search, found in attacked.found.items() if isinstance(search.attack, Adaptive)]
        tried = np.unique(np.concatenate([found.image_id[found.attempted] for found in gradient]))
        anywhere = np.concatenate([found.image_id[found.evaded(threshold)] for found in gradient])
        perhaps = np.concatenate([found.image_id[found.may_evade(threshold)] for found in gradient])
        checks = [
            reading.gradients_present(self._without_gradient(one)),
            *self._more_or_less(attacked),
            reading.unbounded_succeeds(Rate.between(np.isin(tried, anywhere), np.isin(tried, perhaps))),
            reading.adaptive_unbeaten([*attacks, self._noise(one)], self.judged, threshold),
        ]
        return [*checks, *map(reading.false_alarms_as_stated, alarms)]

    def _more_or_less(self, attacked: Attacked) -> list[Check]:
        """What the best search comes to with twice the steps or the width, and within smaller budgets."""
        one, threshold = attacked.guard, attacked.guard.thresholds[0.05]
        if isinstance(self.judged, Ball):
            best = attacked.best(self.judged, gradient=True)
            assert isinstance(best.attack, Adaptive)
            twice: Attack = best.attack.model_copy(update={"steps": 2 * best.attack.steps})
            budgets = [share * self.judged.epsilon for share in (0.5, 1.0)]
            within: dict[float, Attack] = {
                budget: best.attack.model_copy(update={"epsilon": budget}) for budget in budgets if 255 * budget >= 1
            }
        else:
            best = next(search for search in attacked.found if search.name == "adaptive-beam")
            twice = beam(self.judged, width=2)
            half = Pixels(max(1, self.judged.count // 2))
            within = {float(some.count): beam(some) for some in (half, self.judged)}
        doubled = self._searched(one, Search(f"doubled-{best.name}", "adaptive", twice), self.ids[:SOME])
        if not doubled.attempted.any():
            return []
        found = []
        for budget, attack in within.items():
            rows = self._searched(one, Search(f"{best.name}-{budget:.3g}", "adaptive", attack), self.ids[:SOME])
            found.append((budget, rows.evasion(threshold)))
        checks = [reading.steps_suffice(attacked.found[best], doubled, self.judged, threshold)]
        return [*checks, reading.monotone_in_budget(found)] if len(found) > 1 else checks

    def _searched(self, one: Guard, search: Search, ids: np.ndarray | None = None) -> AttackRows:
        """What a search of classifier and detector together finds on the attacked images or some of them."""
        subject = one.lenient if search.lenient else one.subject
        assert subject is not None
        self._launch(search, subject, self.folder.path / one.named.folder / "runs" / search.name, ids)
        return self._attacked(one, search, subject)

    def _launch(self, search: Search, subject: Subject, place: Path, ids: np.ndarray | None = None) -> None:
        """Runs a search on the attacked images or some of them, or what is left of it."""
        (summary,) = launch(
            (search.attack,),
            subject,
            Selection(seed=self.question.seed, target="random" if search.targeted else None),
            Place.of(place),
            self.host,
            ids=self.ids if ids is None else ids,
            title=f"{place.parent.parent.name}: {search.name}",
            retry_failed=self.retry_failed,
        )
        if summary.first_error:
            self.failures[f"{place.parent.parent.name} {search.name}"] = summary.first_error

    def _rows(self, place: Path) -> pa.Table:
        """The rows of a run that came to an end, their images included."""
        folder = RunFolder(Place.of(place))
        (table,) = folder.tables(folder.plan())
        kept = table.filter(pc.not_equal(table["status"].cast("string"), str(Status.FAILED)))
        if not len(kept):
            raise Failed(f"{place}: every search failed: {table['error'][0]}; --retry-failed tries again")
        return kept

    def _noise(self, one: Guard) -> AttackRows:
        """Random directions as long as the threat allows, which must not do better than a search."""
        images = self.subject.dataset.images[self.ids]
        streams = [np.random.default_rng([self.question.seed, 2, int(image)]) for image in self.ids]
        change = np.stack([stream.standard_normal(images.shape[1:]) for stream in streams])
        if isinstance(self.judged, Pixels):
            levels = images.reshape(*images.shape[:2], -1).copy()
            for row, stream in enumerate(streams):
                where = stream.choice(levels.shape[2], min(self.judged.count, levels.shape[2]), replace=False)
                levels[row][:, where] = stream.integers(0, 256, (levels.shape[1], len(where)))
            noisy = levels.reshape(images.shape)
        else:
            noisy = _moved_by(images, change, self.judged)
        return self._scored(one, "noise", Kind.NOISE, str(self.judged), self.ids, noisy)

    def _without_gradient(self, one: Guard) -> Rate:
        """Attacked images at which the classifier's loss or the detector's score has a gradient of zero everywhere."""
        assert one.subject is not None
        guarded = one.subject.model
        assert isinstance(guarded, Guarded)
        images = torch.tensor(self.subject.dataset.images[self.ids[:SOME]])
        labels = torch.tensor(self.subject.dataset.labels[self.ids[:SOME]])

        def both(found: torch.Tensor, part: slice) -> list[torch.Tensor]:
            of_loss, of_score = torch.zeros_like(found), torch.zeros_like(found)
            of_loss[:, :-1] = cotangents("ce", found[:, :-1], labels[part], None)
            of_score[:, -1] = 1
            return [of_loss, of_score]

        _, gradients = DenseEvaluator(Judged(guarded)).gradients(images, both)
        zero = torch.zeros(len(images), dtype=torch.bool)
        for gradient in gradients:
            zero |= ~gradient.nan_to_num(0, 0, 0).flatten(1).any(dim=1)  # as searches have them
        return Rate(int(zero.sum()), len(zero))

    def _shifts(self, one: Guard) -> tuple[ShiftRow, ...]:
        """Alarms on harmless shifts and on foreign images, beside the classifier's own error."""
        ids = self.split.test[:SHIFTED]
        place, seed, found = self.folder.path / one.named.folder / "scores", self.question.seed, []
        for shift, shifted, error in self.shifted:
            kept = place / f"shift-{_slug(shift.name, shift.strength)}.parquet"
            table = score(one.named, one.detector, shifted, ids, kept, seed)
            found.append(ShiftRow(shift.name, shift.strength, self._alarms(one, table), error))
        if self.others is not None:
            other = self.others.images[:SHIFTED]
            kept = place / f"foreign-{self.others.content_hash()[:12]}.parquet"
            table = score(one.named, one.detector, other, np.arange(len(other)), kept, seed)
            found.append(ShiftRow(self.others.name, "foreign images", self._alarms(one, table), None))
        return tuple(found)

    @cached_property
    def shifted(self) -> list[tuple[Shift, np.ndarray, Rate]]:
        """Each shift, the test images under it, and the classifier's own error on them; the same for all detectors."""
        ids = self.split.test[:SHIFTED]
        images, labels, found = self.subject.dataset.images[ids], self.subject.dataset.labels[ids], []
        for shift in SHIFTS:
            shifted = shift(images, ids, seed=self.question.seed)
            own = answers(self.subject.model, shifted)
            wrong = own != labels
            found.append((shift, shifted, Rate.between(wrong & (own != UNANSWERED), wrong)))
        return found

    def _alarms(self, one: Guard, table: pa.Table) -> tuple[Rate, ...]:
        return tuple(threshold.alarms(table["score"].to_numpy()) for threshold in one.thresholds.values())

    def _seed_numbers(self, one: Guard, ifgsm: AttackRows) -> SeedNumbers | None:
        """What the original experiment reported, of its own detector and its own attack; all of the same images."""
        if not isinstance(one.named.recipe, VAEKL):
            return None
        ids, labels, bare = ifgsm.image_id, ifgsm.label, ifgsm.bare_prediction
        assert bare is not None

        def right(answer: np.ndarray) -> Rate:
            return Rate.between(answer == labels, (answer == labels) | (answer == UNANSWERED))

        def right_again(pictures: np.ndarray) -> Rate:
            shown = ids[: len(pictures)]  # last are the searches that failed, which have no picture
            noise = fresh_noise(one.detector, shown, seed=self.question.seed, purpose="reconstructions")
            again = reconstruct_images(one.detector, pictures, noise)
            assert again is not None
            answer = np.full(len(ids), UNANSWERED)
            logits = DenseEvaluator(self.subject.model).logits(torch.tensor(again))
            answer[: len(shown)] = predicted(logits).numpy()
            return right(answer)

        at = reading.Threshold(0.0, SEED_THRESHOLD, Rate(0, 0))
        return SeedNumbers(
            adversarial=right(bare),
            adversarial_reconstructed=right_again(stored_images(self._rows(self.folder.path / "runs" / ifgsm.name))),
            clean_reconstructed=right_again(self.subject.dataset.images[ids]),
            flagged=at.alarms(ifgsm.score),
            clean_flagged=at.alarms(one.test["score"].to_numpy()),
            at=SEED_THRESHOLD,
        )

    def _examples(self, one: Guard, attacks: Sequence[AttackRows]) -> tuple[Example, ...]:
        """Two images of each attack, those that evade first."""
        found = []
        threshold = one.thresholds[0.05]
        for attack in attacks:
            evaded = attack.evaded(threshold)
            chosen = np.concatenate([np.flatnonzero(evaded), np.flatnonzero(attack.success & ~evaded)])[:EXAMPLES]
            if attack.kind == Kind.TRANSFER:
                continue  # the other detector's own examples
            own = self.folder.path / one.named.folder if attack.kind == Kind.ADAPTIVE else self.folder.path
            rows = self._rows(own / "runs" / attack.name)
            images, ids = stored_images(rows)[chosen], attack.image_id[chosen]
            if not len(chosen):
                continue
            noise = fresh_noise(one.detector, ids, seed=self.question.seed, purpose="examples")
            again = reconstruct_images(one.detector, images, noise)
            found += [
                Example(
                    attack=attack.name,
                    image_id=int(ids[at]),
                    label=int(attack.label[row]),
                    prediction=int(attack.prediction[row]),
                    clean_score=float(attack.clean_score[row]),
                    score=float(attack.score[row]),
                    clean=self.subject.dataset.images[ids[at]],
                    adversarial=images[at],
                    reconstruction=None if again is None else (again[at] * 255).round().astype(np.uint8),
                )
                for at, row in enumerate(chosen)
            ]
        return tuple(found)


def _moved_by(images: np.ndarray, directions: np.ndarray, ball: Ball) -> np.ndarray:
    """8-bit images on the way from images in given directions, as far out in the ball as pixels in [0, 1] allow."""
    clean, way = torch.tensor(images).float(), torch.tensor(directions).float()
    if ball.norm == "linf":
        way = way.sign()
    way /= way.square().flatten(1).sum(dim=1).sqrt().view(-1, 1, 1, 1)
    low, high = torch.zeros(len(way), 1, 1, 1), torch.full((len(way), 1, 1, 1), 255.0 * way[0].numel())
    for _ in range(30):
        middle = (low + high) / 2
        change = (clean + middle * way).clamp(0, 255) - clean
        size = change.abs().amax(dim=(1, 2, 3)) if ball.norm == "linf" else change.square().flatten(1).sum(dim=1).sqrt()
        inside = (size <= ball.radius).view(-1, 1, 1, 1)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return ball.rounded((clean + low * way).clamp(0, 255), clean).numpy()


def _strength(attack: Attack) -> str:
    """The parameters that say how much is tried."""
    named = {"steps", "epsilon", "pixels", "width", "norm", "step_size", "population", "generations"}
    named |= {"gamma"} if isinstance(attack, JSMA) else set()
    said = attack.model_dump(mode="json", exclude_none=True)
    words = said | ({"epsilon": attack.ball.words} if attack.ball else {})
    return ", ".join(f"{name} {value}" for name, value in words.items() if name in named)


def _slug(*words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
