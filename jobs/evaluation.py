"""An evaluation while it runs: its folder, its stages, what is known so far, its verdict."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.store import RunFolder
from jobs.frozen import FrozenFolder
from jobs.launch import Images, Selection, WorkerHost, launch, shard_of_few, short
from jobs.progress import say
from jobs.recorded import open_runs
from jobs.report import write_page
from jobs.subject import Subject
from jobs.surrogates import quick_surrogate
from jobs.threat import Role, Stage
from workers.actor import ShardSummary
from workers.budgets import Number
from workers.errors import Interrupted, WrongInput, in_one_line
from workers.files import write_whole
from workers.places import Place
from workers.remedies.checks import Check, Probe, State
from workers.results import SEARCHED, Status, write_part
from workers.threat import Ball, Pixels

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.exhibits import Exhibit
    from analysis.robustness import Judgement, Robustness, StageRows
    from analysis.statistics import Rate
    from workers.models.loading import ModelRecipe

__all__ = ["Budget", "Evaluation", "EvaluationFolder", "Question"]

TRIED_DEEPER = 64
"""Of the images left, how many twice the steps are tried on."""
TRIED_BEYOND = 50
"""Of those that are classified right, how many are searched outside the threat."""

_ASKED = (*SEARCHED, Status.FAILED)
_BY_GRADIENTS = (Role.SEARCH, Role.DEEPER, Role.DEEPER_ALL)


class Budget(BaseModel):
    """What an evaluation may spend, all its starts together; when it is spent the evaluation ends with what it has."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    max_queries: int | None = Field(
        None, ge=1, description="Model evaluations of finished shards; looked at whenever a shard ends."
    )
    max_seconds: float | None = Field(None, gt=0, description="Wall time; shards in flight are dropped at its end.")

    def spent(self, queries: int, seconds: float) -> str:
        """Which budget is spent, in words; empty when there is some left."""
        if self.max_queries is not None and queries >= self.max_queries:
            return f"the budget of {self.max_queries} queries is spent"
        if self.max_seconds is not None and seconds >= self.max_seconds:
            return f"the budget of {self.max_seconds:g} seconds is spent"
        return ""


class Question(BaseModel):
    """What is asked of the evaluation."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    require: Number | None = Field(
        None, ge=0, le=1, description="Lowest acceptable robust accuracy; exit code 1 unless it is certified to hold."
    )
    accept_undecided: bool = Field(False, description="Exit code 1 only when the model is shown to fall below that.")
    all_attacks: bool = Field(False, description="Search broken images too, so that every attack has met every image.")


class EvaluationFolder(FrozenFolder):
    """An evaluation: ``evaluation.json``, ``runs/NAME``, ``images.parquet``, ``verdict.json``,
    ``page.html``, ``figures/``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "evaluation")

    def forget(self) -> None:
        super().forget()
        with suppress(OSError):  # absent, or somebody has put something there meanwhile
            (self.path / "runs").rmdir()

    def probe(self) -> Probe:
        """What the first start found out about the model.

        Raises:
            WrongInput: when it is not there.
        """
        try:
            return Probe.of(self.read("evaluation.json")["probe"])
        except (KeyError, TypeError, ValueError):
            raise WrongInput(f"--out {self.path}: its evaluation.json does not say what its model is like") from None

    def run(self, stage: Stage) -> Place:
        """The folder of a stage's run."""
        return Place.of(self.path / "runs" / stage.name)

    def seconds(self) -> float:
        """Wall time that earlier starts have spent, as far as they wrote it down.

        Raises:
            WrongInput: when ``verdict.json`` is broken.
        """
        if not (self.path / "verdict.json").exists():
            return 0.0
        try:
            return float(self.read("verdict.json")["spent"]["seconds"])
        except (KeyError, TypeError, ValueError):
            raise WrongInput(f"--out {self.path}: its verdict.json does not say the seconds spent") from None

    def write(self, verdict: dict[str, Any], known: "Robustness") -> None:
        """Writes what is known so far."""
        write_part(known.to_table(), Place.of(self.path / "images.parquet"))
        write_whole(self.path / "verdict.json", (json.dumps(verdict, indent=1) + "\n").encode())


@dataclass
class Evaluation:
    """An evaluation while it runs.

    Attributes:
        subject: what is evaluated, as it was given; of a randomised model the mean of its answers.
        probe: what was found out about it.
        rows: of each stage within the threat that has any, by its name.
        beyond: likewise of each stage outside it.
        complete: names of the stages that have all of theirs, failed ones among them.
        ended: why no more stages are run; empty while they are.
        skipped: why some stages need not be, by name.
        tied: what is to be said of certificates that rest on ties; empty for nothing.
        command: what was typed, or what comes to the same.
    """

    subject: Subject
    probe: Probe
    threat: Ball | Pixels
    images: Images
    question: Question
    budget: Budget
    folder: EvaluationFolder
    host: WorkerHost
    stages: Sequence[Stage]
    unfit: dict[str, str]
    ids: np.ndarray
    retry_failed: bool
    command: str
    rows: "dict[str, StageRows]" = field(default_factory=dict)
    beyond: "dict[str, pa.Table]" = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    ended: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    introduced: bool = False
    tied: str = ""
    _known: "Robustness | None" = None

    def run(self) -> None:
        """Runs what is left of the stages, until all are done or the budget is spent.

        Raises:
            WrongInput: for a run that is in the folder and is another one.
            Interrupted: when stopped; the same command resumes.
        """
        self.earlier, self.started = self.folder.seconds(), time.monotonic()
        for stage in self.stages:
            self._read(stage)
        for stage in self.stages:
            if stage.name not in self.complete:
                if not len(self._of(stage)):
                    why = "no image is left to search" if stage.role.counts else "no image is classified right"
                    self.skipped[stage.name] = why
                    continue
                self.ended = self.ended or self._spent()
                if self.ended:
                    continue
                if why := self._unneeded(stage):
                    self.skipped[stage.name] = why
                    continue
            self._search(stage)
            self._print(stage)
        self.folder.write(self.verdict(), self.known)

    def _unneeded(self, stage: Stage) -> str:
        """Why a stage is not to be started, in words; empty where it is."""
        from analysis.validity import LEFT

        if stage.role == Role.DEEPER_ALL and not self._fired(Role.DEEPER):
            return "not needed: they broke next to nothing of some images"
        if stage.role == Role.HARD_LABEL:
            if all(check.state != State.FAILED for check in self.checks()):
                return "not needed: no check failed"
            if (left := self.known.at_most.high) is not None and left <= LEFT:
                return "not needed: hardly an image is left"
        return ""

    def _fired(self, role: Role) -> bool:
        """Whether the check that a stage is for failed, or was remedied."""
        found = [self._check(stage) for stage in self.stages if stage.role == role]
        return any(check is not None and check.state in (State.FAILED, State.REMEDIED) for check in found)

    def _of(self, stage: Stage) -> np.ndarray:
        """Ids of the images that a stage which is started now would search."""
        from analysis.robustness import Standing

        if not stage.role.counts:
            return self.ids[self.known.standing != Standing.WRONG][:TRIED_BEYOND]
        if stage.role == Role.DEEPER:
            return self.known.left()[:TRIED_DEEPER]
        if stage.role in (Role.DEEPER_ALL, Role.HARD_LABEL):
            return self.known.left()
        return self.known.left(broken_too=self.question.all_attacks)

    def _searched_by(self, stage: Stage) -> Subject:
        """The subject as a stage searches it."""
        if stage.role == Role.TRANSFER:
            return self.subject.searched_as(self.probe.remedies, self.surrogate)
        return self.subject if stage.as_given else self.remedied

    @cached_property
    def remedied(self) -> Subject:
        """The subject under the remedies."""
        return self.subject.searched_as(self.probe.remedies)

    def _view_of(self, stage: Stage) -> str:
        """What a stage searches, in words."""
        if stage.role == Role.TRANSFER:
            return "a surrogate"
        remedies = self.probe.remedies.answering if stage.as_given else self.probe.remedies
        return f"the model under {remedies}" if remedies else "the model as given"

    @cached_property
    def surrogate(self) -> "ModelRecipe":
        """Another model, whose adversarial images are tried on this one."""
        return quick_surrogate(self.subject.dataset, self.folder.path / "surrogate")

    def introduce(self) -> None:
        """Says once what is evaluated; not before a start that is refused, which has one line to say."""
        if self.introduced:
            return
        self.introduced = True
        say(f"robust accuracy within {self.threat} on {len(self.ids)} images of {self.subject.dataset.name}")
        for name, reason in self.unfit.items():
            say(f"{name}: {reason}")
        print("success: of the images that a stage searched; robust accuracy: of all images")
        print(_line("stage", "searched", "broken", "success", "robust accuracy at most", "queries", "s"), flush=True)

    def _search(self, stage: Stage) -> None:
        """Runs a stage, or what is left of it, and writes down what is known then.

        A stage that is there goes on with the images that were left when it was started, even if searching failed
        ones of an earlier stage again has broken some since; it is not refused, and they count as broken.
        """
        place, number = self.folder.run(stage), self.stages.index(stage)
        folder, tally = RunFolder(place), self.known.tallies.get(stage.name)
        retry = self.retry_failed and tally is not None and tally.failed > 0
        if retry and (spent := self._spent()):
            say(f"{stage.name}: what failed is not searched again: {spent}")
            retry = False
        if retry or stage.name not in self.complete:
            self.host.pool()  # refuses what does not fit before anything is said
            self.introduce()
        selection, ids = Selection(**self.images.model_dump()), None
        if number:
            ids, size = folder.plan().ids if folder.exists else self._of(stage), self.images.shard_size
            if not folder.exists:
                size = size or (shard_of_few(len(ids)) if isinstance(self.threat, Ball) else None)
            selection = Selection(seed=self.images.seed, shard_size=size)
        live = _Live(self, stage, self.ids if ids is None else ids)
        try:
            launch(
                (stage.attack,),
                self._searched_by(stage),
                selection,
                place,
                self.host,
                ids=ids,
                title=f"{number + 1}/{len(self.stages)} {stage.name}",
                watch=live,
                retry_failed=retry,
            )
        except (Interrupted, RuntimeError):
            self._read(stage)
            self.folder.write(self.verdict(), self.known)
            raise
        if self._read(stage):
            self.folder.write(self.verdict(), self.known)
        if stage.name not in self.complete:
            self.ended = live.ended or "it did not come to its end"

    def _spent(self) -> str:
        """Which budget is spent, in words; empty when there is some left."""
        return self.budget.spent(self.queries, self.seconds)

    @property
    def queries(self) -> int:
        """Of all stages."""
        return int(self.known.queries.sum() + self._of_beyond("queries"))

    def _of_beyond(self, what: str) -> float:
        """What all stages outside the threat add up to."""
        return sum(float(table[what].to_numpy().sum()) for table in self.beyond.values())

    @property
    def not_run(self) -> dict[str, str]:
        """Why each stage that is not complete is not, by name."""
        waiting = [stage.name for stage in self.stages if stage.name not in self.complete]
        return self.unfit | dict.fromkeys(waiting, self.ended or "not finished yet") | self.skipped

    @cached_property
    def rejected(self) -> np.ndarray | None:
        """Clean images that the model itself rejects; None for one that never does."""
        return self.subject.rejected(self.ids)

    @property
    def known(self) -> "Robustness":
        """The standing of every image now; made anew only when other rows have been read."""
        from analysis.robustness import Robustness

        if self._known is None:
            rows = [self.rows[stage.name] for stage in self.stages if stage.name in self.rows]
            self._known = Robustness(self.ids, self.subject.dataset.labels[self.ids], rows, self.rejected)
        return self._known

    @property
    def seconds(self) -> float:
        """Wall time spent, all starts together."""
        return self.earlier + time.monotonic() - self.started

    def _read(self, stage: Stage) -> bool:
        """Reads the rows of a stage that are there; returns whether they are other ones than were read before.

        Raises:
            WrongInput: for a run that cannot be of this evaluation.
        """
        import pyarrow as pa

        from analysis.reservations import tied
        from analysis.robustness import COLUMNS, StageRows

        folder = RunFolder(self.folder.run(stage))
        if not folder.exists:
            return False
        plan = folder.plan()
        if plan.params_hashes != (stage.attack.params_hash,) or not np.isin(plan.ids, self.ids).all():
            raise WrongInput(f"--out {folder.place}: that run is not of this evaluation; name another folder")
        done, tables = folder.read(plan, COLUMNS)
        if not done:
            return False
        (table,) = tables
        if len(table) == plan.rows:
            self.complete.add(stage.name)
        if not stage.role.counts:
            self.beyond[stage.name] = table
            return True
        if stage.name in self.rows and self.rows[stage.name].rows.equals(table):
            return False
        self.rows[stage.name], self._known = StageRows(stage.name, stage.certifies, table), None
        if stage.certifies:
            untargeted = table.append_column("target", pa.nulls(len(table), pa.int32()))
            self.tied = tied(untargeted, folder.beside(plan)[0])
        return True

    def _print(self, stage: Stage) -> None:
        from analysis.statistics import Rate, percent
        from analysis.summary import success_rate

        if stage.name in self.beyond:
            self.introduce()
            searched, broken = self._beyond(stage)
            found = success_rate(self.beyond[stage.name])
            where = str(stage.attack.ball).replace(" = ", " ").partition(" (")[0]
            print(_line(stage.name, searched, broken, _low(found), f"not counted: {where}"), flush=True)
        if (tally := self.known.tallies.get(stage.name)) is None:
            return
        self.introduce()
        left = Rate(tally.remaining, len(self.ids))
        low, high = left.interval or (None, None)
        bounds = f"{left.share} ({percent(low)} to {percent(high)})"
        spent = f"{tally.seconds:.1f}" if tally.seconds < 1000 else f"{tally.seconds:.0f}"
        success = _low(tally.success)
        print(_line(stage.name, tally.searched, tally.broken, success, bounds, short(tally.queries), spent), flush=True)
        if tally.unchanged:
            print(f"{stage.name}: {tally.unchanged} of {tally.searched} came back unchanged", flush=True)

    def _beyond(self, stage: Stage) -> tuple[int, int]:
        """How many images a stage outside the threat has searched to an end, and broken."""
        return len(self._ids(stage, SEARCHED)), len(self._ids(stage, (Status.SUCCESS,)))

    def checks(self) -> list[Check]:
        """What was found out about the model, and what the stages say of each other so far."""
        from analysis.validity import CHECKS

        found = [*self.probe.checks, *filter(None, map(self._check, self.stages))]
        if isinstance(self.threat, Ball):
            told = {check.name for check in found}
            found += [Check(x, State.NOT_RUN, "its search is left out") for x in CHECKS.values() if x not in told]
        return found

    def _check(self, stage: Stage) -> Check | None:
        """What a stage says of the others; None for one that only searches."""
        from analysis.robustness import Standing
        from analysis.statistics import Rate
        from analysis.validity import CHECKS, beaten, deeper

        if (name := CHECKS.get(stage.role)) is None:
            return None
        if stage.name not in self.complete:
            return Check(name, State.NOT_RUN, self.not_run.get(stage.name, "not finished yet"))
        if not stage.role.counts:
            return self._check_beyond(stage)
        tally, known = self.known.tallies[stage.name], self.known
        if stage.role == Role.DEEPER:
            rest = [x for x in self.stages if x.role == Role.DEEPER_ALL and x.name in self.complete]
            more = known.tallies[rest[0].name].broken if rest else None
            found = Rate(tally.broken, tally.searched + tally.failed, unknown=tally.failed)
            return deeper(found, more, tally.seconds)
        earlier = [other.name for other in self.stages[: self.stages.index(stage)]]
        met = np.isin(known.ids, self._searched_by_gradients) & ~np.isin(known.broken_by, earlier)
        asked = known.ids[met & np.isin(known.ids, self._ids(stage, _ASKED))]
        found = self._among(stage, asked, known.ids[known.broken_by == stage.name])
        return beaten(name, found, len(self.ids) - known.count(Standing.WRONG), tally.seconds)

    def _check_beyond(self, stage: Stage) -> Check:
        from analysis.validity import monotone, unbounded

        asked, reached = self._ids(stage, _ASKED), self._ids(stage, (Status.SUCCESS,))
        seconds = float(self.beyond[stage.name]["seconds"].to_numpy().sum())
        if stage.role == Role.UNBOUNDED:
            return unbounded(self._among(stage, asked, reached), seconds)
        within = self.known.ids[np.isin(self.known.broken_by, self._names(*_BY_GRADIENTS))]
        inside = np.intersect1d(within, asked)
        return monotone(self._among(stage, inside, np.setdiff1d(inside, reached)), str(stage.attack.ball), seconds)

    def _among(self, stage: Stage, asked: np.ndarray, those: np.ndarray) -> "Rate":
        """The share of some ids, of the images that a stage was asked about; unknown where its search failed."""
        from analysis.statistics import Rate

        return Rate.of(np.isin(asked, those), asked, ~np.isin(asked, self._ids(stage, (Status.FAILED,))))

    def _names(self, *roles: Role) -> list[str]:
        return [stage.name for stage in self.stages if stage.role in roles]

    def _ids(self, stage: Stage, statuses: Sequence[str]) -> np.ndarray:
        """Ids of a stage's rows that ended so."""
        rows = self.rows[stage.name].rows if stage.role.counts else self.beyond[stage.name]
        ended = np.isin(np.array(rows["status"].cast("string").to_pylist(), dtype=object), [str(x) for x in statuses])
        return rows["image_id"].to_numpy()[ended]

    @property
    def _searched_by_gradients(self) -> np.ndarray:
        """Ids of the images that some search by gradients came to an end with."""
        stages = [stage for stage in self.stages if stage.role in _BY_GRADIENTS and stage.name in self.rows]
        found = [self._ids(stage, SEARCHED) for stage in stages]
        return np.unique(np.concatenate([np.empty(0, np.int64), *found]))

    def verdict(self) -> dict[str, Any]:
        """What ``verdict.json`` holds."""
        from analysis.robustness import bound
        from analysis.statistics import Rate

        known, checks, judgement = self.known, self.standing, self._judgement()
        certifying = any(stage.certifies and stage.name in known.tallies for stage in self.stages)
        return {
            "verdict": str(judgement.verdict),
            "reasons": judgement.reasons,
            "require": self.question.require,
            "threat": self.threat.describe(),
            "robust_accuracy": {"bound": "upper", "void": bool(self._failed(checks))} | bound(known.at_most),
            "certified_accuracy": {"bound": "lower"} | bound(known.at_least) if certifying else None,
            "clean_accuracy": bound(known.clean),
            "clean_rejected": None if self.rejected is None else bound(Rate(int(self.rejected.sum()), len(self.ids))),
            "images": {
                "count": len(self.ids),
                "only_correct": self.images.correct,
                "failed": known.failed,
                "contradicted": len(known.contradicted),
            },
            "stages": [
                {
                    "name": stage.name,
                    "attack": stage.attack.NAME,
                    "parameters": stage.attack.model_dump(mode="json"),
                    "params_hash": stage.attack.params_hash,
                    "searches": self._view_of(stage),
                    "run": str(self.folder.run(stage).path.relative_to(self.folder.path)),
                    "complete": stage.name in self.complete,
                    **vars(known.tallies[stage.name]),
                }
                for stage in self.stages
                if stage.name in known.tallies
            ],
            "beyond": [
                {"name": stage.name, "parameters": stage.attack.model_dump(mode="json")}
                | dict(zip(("searched", "successes"), self._beyond(stage), strict=True))
                | {"queries": int(self.beyond[stage.name]["queries"].to_numpy().sum())}
                for stage in self.stages
                if stage.name in self.beyond
            ],
            "checks": [check.describe() for check in checks],
            "remedies": str(self.probe.remedies),
            "not_run": self.not_run,
            "unfinished": self.unfinished,
            "budget": self.budget.model_dump(mode="json"),
            "spent": {
                "queries": self.queries,
                "gradients": int(known.gradients.sum() + self._of_beyond("gradients")),
                "worker_seconds": float(known.seconds.sum() + self._of_beyond("seconds")),
                "seconds": self.seconds,
            },
        }

    @property
    def unfinished(self) -> list[str]:
        """The stages that would still have images to search, of which some or all are not searched."""
        waiting = [stage.name for stage in self.stages if stage.name not in self.complete | self.skipped.keys()]
        return waiting if len(self.known.left()) else []

    @property
    def standing(self) -> list[Check]:
        """The checks, held against how many images are left."""
        from analysis.validity import standing

        return standing(self.checks(), self.known.at_most)

    @staticmethod
    def _failed(checks: Sequence[Check]) -> list[str]:
        return [f"check failed: {check.name}: {check.reason}" for check in checks if check.state == State.FAILED]

    def _judgement(self) -> "Judgement":
        from analysis.robustness import judge

        known = self.known
        judgement = judge(known.at_most, known.at_least, self.question.require).unless(self._failed(self.standing))
        more = []
        if self.images.correct:
            more.append("only correctly classified images were taken: robust accuracy is a share of these")
        if self.rejected is not None:
            more.append(
                f"{int(self.rejected.sum())} of {len(self.ids)} clean images are rejected by the model itself and "
                "count as misclassified; an attack must fool it without being rejected"
            )
        if self.tied:
            more.append(self.tied)
        if known.failed:
            more.append(
                f"a search failed on {known.failed} images, which count as not broken unless another attack broke them"
            )
        if len(contradicted := known.contradicted):
            some = ", ".join(map(str, contradicted[:5])) + ", …" * (len(contradicted) > 5)
            more.append(
                f"{len(contradicted)} images are certified although an attack broke them, so one of both is wrong; "
                f"they count as broken: {some}"
            )
        if known.asked.any() and (left := int((~known.asked).sum())):
            more.append(f"{left} of {len(self.ids)} images were not searched and count as robust")
        if unfinished := self.unfinished:
            more.append(f"not run to their end: {', '.join(unfinished)}")
        return judgement.because(*more)

    def conclude(self) -> int:
        """Says the verdict, writes the page, and returns the exit code."""
        from analysis.exhibits import write_exhibits
        from analysis.figures.robustness import robustness_exhibits
        from analysis.robustness import Verdict

        self.introduce()
        known, judgement, out = self.known, self._judgement(), self.folder.path
        if known.asked.any():
            print(f"clean accuracy {known.clean}")
        for reason in judgement.reasons:
            print(reason)
        if known.failed:
            say("the same command with --retry-failed searches again what failed")
        names: dict[str, list[str]] = {}
        for name, reason in self.not_run.items():
            names.setdefault(reason, []).append(name)
        left = [f"{', '.join(some)}: {reason}" for reason, some in names.items()]
        quiet = self.question.require is None and judgement.verdict == Verdict.NONE_ASKED
        asked = [] if quiet else [f"verdict: {judgement.verdict}"]
        checks = self.standing
        counts = Counter(check.state for check in checks)
        checked = [f"{len(checks)} checks of the attacks: {', '.join(f'{counts[x]} {x}' for x in State if counts[x])}"]
        checked += [f"  {check}" for check in checks if check.state == State.REMEDIED]  # the reasons have what failed
        for line in [*left, *checked, *asked]:
            print(line)
        print(f"verdict in {out / 'verdict.json'}, images in {out / 'images.parquet'}")
        if self.rows:
            exhibits = robustness_exhibits(known)
            write_exhibits(exhibits, out / "figures")
            title = f"{len(self.ids)} images within {self.threat}: robust accuracy at most {known.at_most}"
            title = f"Void: {title}" if self._failed(checks) else title
            clean = f"clean accuracy of these images {known.clean}"
            self._write_page([title, *asked, clean, *judgement.reasons, *left, *map(str.strip, checked)], exhibits)
        met = {Verdict.HOLDS, Verdict.NONE_ASKED} | ({Verdict.UNDECIDED} if self.question.accept_undecided else set())
        return 1 if known.failed or len(known.contradicted) or judgement.verdict not in met else 0

    def _write_page(self, findings: Sequence[str], exhibits: "Sequence[Exhibit]") -> None:
        from analysis.statistics import Rate

        stages = [stage for stage in self.stages if stage.name in self.known.tallies]
        runs = open_runs([self.folder.run(stage) for stage in stages])
        left = {
            run.name: Rate(self.known.tallies[stage.name].remaining, len(self.ids))
            for run, stage in zip(runs, stages, strict=True)
        }
        try:
            write_page(
                runs,
                self.subject,
                self.folder.page,
                command=self.command,
                findings=findings,
                exhibits=exhibits,
                left=left,
            )
        except WrongInput:
            raise
        except Exception as error:  # the page predicts every image of the data set: a foreign model may raise anything
            say(f"no page: {type(error).__name__}: {in_one_line(error)[:300]}")
        else:
            print(f"page in {self.folder.page}")


class _Live:
    """Follows a stage: the bound so far, and whether the budget is spent.

    A shard tells how many images it broke, not which: where those may be known to be broken or misclassified already,
    by another stage, the larger of the two numbers of broken ones is what is sure.
    """

    def __init__(self, evaluation: Evaluation, stage: Stage, ids: np.ndarray) -> None:
        from analysis.robustness import Standing

        self._evaluation, known = evaluation, evaluation.known
        by_others = (known.standing == Standing.BROKEN) & (known.broken_by != stage.name)
        again = stage.name in evaluation.complete  # rows that failed
        self._all_new = not again and not np.isin(ids, known.ids[by_others]).any()
        self._wrong, self._broken = known.count(Standing.WRONG), known.count(Standing.BROKEN)
        tally = known.tallies.get(stage.name)
        self._successes_before, self._successes = tally.successes if tally else 0, 0
        self._queries, self._counts = evaluation.queries, stage.role.counts
        self.ended = ""

    def __call__(self, summary: ShardSummary | None) -> str | None:
        from analysis.statistics import Rate, percent

        if summary is not None:
            if self._all_new:
                self._wrong += summary.rows - summary.all.searched - summary.all.failed
            self._successes += summary.all.successes
            self._queries += summary.queries
        evaluation = self._evaluation
        self.ended = evaluation.budget.spent(self._queries, evaluation.seconds)
        if self.ended:
            return None
        if not self._counts:
            return f"{self._successes} broken"
        if self._all_new:
            broken = self._broken + self._successes
        else:
            broken = max(self._broken, self._successes_before + self._successes)
        count = len(evaluation.ids)
        left = Rate(count - self._wrong - broken, count)
        return f"robust accuracy ≤ {percent(left.high)} ({left.hits} of {count}), {self._queries} queries"


def _line(stage: str, searched: object, broken: object, success: str, left: str, queries: str = "", s: str = "") -> str:
    """A line of the table of stages, which fits a terminal of 80 columns."""
    return f"{stage:<15} {searched:>8} {broken:>6} {success:>7} {left:>24} {queries:>7} {s:>6}".rstrip()


def _low(success: "Rate") -> str:
    """A success in seven columns; of rows without an answer the least that it may be."""
    from analysis.statistics import percent

    return "≥" * bool(success.unknown) + percent(success.low)
