"""``brittle evaluate``: robust accuracy within a threat, bounded at any time, by attacks in order of cost."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from cluster.store import RunFolder
from jobs.examples import examples
from jobs.exits import Interrupted
from jobs.frozen import FrozenFolder
from jobs.launch import Images, Selection, Where, WorkerHost, launch, resolve, shard_of_few
from jobs.progress import say
from jobs.recorded import open_run
from jobs.report import write_page
from jobs.subject import Subject, SubjectOptions, load_subject
from jobs.threat import Stage, Threat, fitting
from workers.actor import ShardSummary
from workers.errors import WrongInput, in_one_line
from workers.files import write_whole
from workers.places import Place
from workers.results import write_part
from workers.versions import versions

if TYPE_CHECKING:
    from analysis.robustness import Judgement, Robustness, StageRows

__all__ = ["app"]

app = App(
    name="evaluate",
    help="""Bound the robust accuracy of a model within a threat, by attacks from cheap to dear.

    Each attack searches the images that those before it did not break, so the bound falls fast and can be read at any
    time. Ended by a budget, a crash or Ctrl-C, the same command goes on, with a larger budget if you like.
    """,
    help_epilogue=examples(
        "brittle evaluate --model MODEL --data mnist --limit 1000 --norm linf --epsilon 0.1 --out E",
        "brittle evaluate --model MODEL --data mnist --limit 1000 --epsilon 0.1 --max-seconds 60 --out E",
        "brittle evaluate --model MODEL --data mnist --limit 200 --pixels 1 --require 0.9 --out E",
        "brittle evaluate --model MODEL --data mnist --limit 1000 --norm linf --epsilon 0.1 --retry-failed --out E",
    ),
)


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

    require: float | None = Field(
        None, ge=0, le=1, description="Lowest acceptable robust accuracy; exit code 1 unless it is certified to hold."
    )
    accept_undecided: bool = Field(False, description="Exit code 1 only when the model is shown to fall below that.")
    all_attacks: bool = Field(False, description="Search broken images too, so that every attack has met every image.")


@app.default
def evaluate(
    *,
    subject: Annotated[SubjectOptions, Parameter(name="*", group=Group("Model and images"))],
    out: Annotated[str, Parameter(group=Group("Model and images"))],
    threat: Annotated[Threat | None, Parameter(name="*", group=Group("Threat"))] = None,
    images: Annotated[Images | None, Parameter(name="*", group=Group("Which images"))] = None,
    question: Annotated[Question | None, Parameter(name="*", group=Group("What is asked"))] = None,
    budget: Annotated[Budget | None, Parameter(name="*", group=Group("Budget"))] = None,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
    retry_failed: Annotated[bool, Parameter(negative="", group=Group("Model and images"))] = False,
) -> int:
    """
    Args:
        out: Folder for the verdict, the table of images, the page and the runs; an evaluation there is resumed.
        retry_failed: Search the images of that evaluation again whose search failed, in the stages where it did.
    """
    threat, images, question = threat or Threat(), images or Images(), question or Question()
    stages = threat.stages()
    if question.accept_undecided and question.require is None:
        raise WrongInput("--accept-undecided: goes with --require")
    place = Place.of(out)
    if not place.local:
        raise WrongInput(f"--out {out}: an evaluation's folder lies on a disk; a single attack's may lie elsewhere")
    folder = EvaluationFolder(place.path)
    folder.require_usable()
    host = WorkerHost(where or Where())
    loaded = load_subject(subject)
    fit, unfit = fitting(stages, loaded)
    asked = {
        **threat.describe(),
        **images.model_dump(mode="json"),
        "all_attacks": question.all_attacks,
        "split": loaded.dataset.split,
        "model": loaded.recipe.content_hash,
        "data": loaded.data_hash,
        **versions(),
        "threads": host.resources.threads,
        "attacks": {stage.name: stage.attack.params_hash for stage in fit},
    }
    if folder.exists:
        folder.compare(asked)
    ids = resolve(loaded, Selection(**images.model_dump())).ids
    with folder.locked():
        if fresh := not folder.exists:
            folder.create(asked)
        else:
            folder.compare(asked)
        evaluation = _Evaluation(
            loaded, threat, images, question, budget or Budget(), folder, host, fit, unfit, ids, retry_failed
        )
        try:
            with host:
                evaluation.run()
        except WrongInput:
            if fresh and not evaluation.rows:
                folder.forget()
            raise
        return evaluation.conclude()


class EvaluationFolder(FrozenFolder):
    """An evaluation: ``evaluation.json``, ``runs/NAME``, ``images.parquet``, ``verdict.json``, ``page.html``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "evaluation")

    def forget(self) -> None:
        super().forget()
        with suppress(OSError):  # absent, or somebody has put something there meanwhile
            (self.path / "runs").rmdir()

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
class _Evaluation:
    """An evaluation while it runs.

    Attributes:
        rows: of each stage that has any, by its name.
        complete: names of the stages that have all of theirs, failed ones among them.
        ended: why no more stages are run; empty while they are.
    """

    subject: Subject
    threat: Threat
    images: Images
    question: Question
    budget: Budget
    folder: EvaluationFolder
    host: WorkerHost
    stages: Sequence[Stage]
    unfit: dict[str, str]
    ids: np.ndarray
    retry_failed: bool
    rows: "dict[str, StageRows]" = field(default_factory=dict)
    complete: set[str] = field(default_factory=set)
    ended: str = ""
    introduced: bool = False
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
                self.ended = self._spent() if len(self._left()) else "no image is left to search"
            if not self.ended:
                self._search(stage)
            self._print(stage)
            if self.ended:
                break
        self.folder.write(self.verdict(), self.known)

    def introduce(self) -> None:
        """Says once what is evaluated; not before a start that is refused, which has one line to say."""
        if self.introduced:
            return
        self.introduced = True
        say(f"robust accuracy within {self.threat} on {len(self.ids)} images of {self.subject.dataset.name}")
        for name, reason in self.unfit.items():
            say(f"{name}: {reason}")
        print(
            f"{'stage':<16} {'searched':>8} {'broken':>7} {'robust accuracy at most':>36} "
            f"{'queries':>10} {'gradients':>10} {'seconds':>8}",
            flush=True,
        )

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
            ids, size = folder.plan().ids if folder.exists else self._left(), self.images.shard_size
            if not folder.exists:
                size = size or (shard_of_few(len(ids)) if self.threat.pixels is None else None)
            selection = Selection(seed=self.images.seed, shard_size=size)
        live = _Live(self, stage, self.ids if ids is None else ids)
        try:
            launch(
                (stage.attack,),
                self.subject,
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

    def _left(self) -> np.ndarray:
        """Ids of the images that a stage which is started now would search."""
        return self.known.left(broken_too=self.question.all_attacks)

    def _spent(self) -> str:
        """Which budget is spent, in words; empty when there is some left."""
        return self.budget.spent(int(self.known.queries.sum()), self.seconds)

    @property
    def not_run(self) -> dict[str, str]:
        """Why each stage that is not complete is not, by name."""
        waiting = [stage.name for stage in self.stages if stage.name not in self.complete]
        return self.unfit | dict.fromkeys(waiting, self.ended or "not finished yet")

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
        if stage.name in self.rows and self.rows[stage.name].rows.equals(table):
            return False
        self.rows[stage.name], self._known = StageRows(stage.name, stage.certifies, table), None
        return True

    def _print(self, stage: Stage) -> None:
        from analysis.statistics import Rate

        if (tally := self.known.tallies.get(stage.name)) is None:
            return
        self.introduce()
        print(
            f"{stage.name:<16} {tally.searched:>8} {tally.broken:>7} {Rate(tally.remaining, len(self.ids))!s:>36} "
            f"{tally.queries:>10} {tally.gradients:>10} {tally.seconds:>8.1f}",
            flush=True,
        )

    def verdict(self) -> dict[str, Any]:
        """What ``verdict.json`` holds."""
        from analysis.robustness import bound
        from analysis.statistics import Rate

        known, judgement = self.known, self._judgement()
        certifying = any(stage.certifies and stage.name in known.tallies for stage in self.stages)
        return {
            "verdict": str(judgement.verdict),
            "reasons": judgement.reasons,
            "require": self.question.require,
            "threat": self.threat.describe(),
            "robust_accuracy": {"bound": "upper"} | bound(known.at_most),
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
                    "run": str(self.folder.run(stage).path.relative_to(self.folder.path)),
                    "complete": stage.name in self.complete,
                    **vars(known.tallies[stage.name]),
                }
                for stage in self.stages
                if stage.name in known.tallies
            ],
            "not_run": self.not_run,
            "budget": self.budget.model_dump(mode="json"),
            "spent": {
                "queries": int(known.queries.sum()),
                "gradients": int(known.gradients.sum()),
                "worker_seconds": float(known.seconds.sum()),
                "seconds": self.seconds,
            },
        }

    def _judgement(self) -> "Judgement":
        from analysis.robustness import judge

        known = self.known
        judgement = judge(known.at_most, known.at_least, self.question.require)
        more = []
        if self.images.correct:
            more.append("only correctly classified images were taken: robust accuracy is a share of these")
        if self.rejected is not None:
            more.append(
                f"{int(self.rejected.sum())} of {len(self.ids)} clean images are rejected by the model itself and "
                "count as misclassified; an attack must fool it without being rejected"
            )
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
        unfinished = [stage.name for stage in self.stages if stage.name not in self.complete]
        if unfinished and len(known.left()):
            more.append(f"not run to their end: {', '.join(unfinished)}")
        return judgement.because(*more)

    def conclude(self) -> int:
        """Says the verdict, writes the page, and returns the exit code."""
        from analysis.robustness import Verdict

        self.introduce()
        known, judgement, out = self.known, self._judgement(), self.folder.path
        print(f"clean accuracy {known.clean}")
        for reason in judgement.reasons:
            print(reason)
        if known.failed:
            say("the same command with --retry-failed searches again what failed")
        left = [f"{name}: {reason}" for name, reason in self.not_run.items()]
        asked = [] if self.question.require is None else [f"verdict: {judgement.verdict}"]
        for line in [*left, *asked]:
            print(line)
        print(f"verdict in {out / 'verdict.json'}, images in {out / 'images.parquet'}")
        if self.rows:
            title = f"{len(self.ids)} images within {self.threat}: robust accuracy at most {known.at_most}"
            self._write_page(
                [title, *asked, f"clean accuracy of these images {known.clean}", *judgement.reasons, *left]
            )
        met = {Verdict.HOLDS, Verdict.NONE_ASKED} | ({Verdict.UNDECIDED} if self.question.accept_undecided else set())
        return 1 if known.failed or len(known.contradicted) or judgement.verdict not in met else 0

    def _write_page(self, findings: Sequence[str]) -> None:
        runs = [open_run(self.folder.run(stage)) for stage in self.stages if stage.name in self.known.tallies]
        try:
            write_page(runs, self.subject, self.folder.page, findings=findings)
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

    def __init__(self, evaluation: _Evaluation, stage: Stage, ids: np.ndarray) -> None:
        from analysis.robustness import Standing

        self._evaluation, known = evaluation, evaluation.known
        by_others = (known.standing == Standing.BROKEN) & (known.broken_by != stage.name)
        again = stage.name in evaluation.complete  # rows that failed
        self._all_new = not again and not np.isin(ids, known.ids[by_others]).any()
        self._wrong, self._broken = known.count(Standing.WRONG), known.count(Standing.BROKEN)
        tally = known.tallies.get(stage.name)
        self._successes_before, self._successes = tally.successes if tally else 0, 0
        self._queries = int(known.queries.sum())
        self.ended = ""

    def __call__(self, summary: ShardSummary | None) -> str | None:
        from analysis.statistics import Rate

        if summary is not None:
            if self._all_new:
                self._wrong += summary.rows - summary.searched - summary.failed
            self._successes += summary.successes
            self._queries += summary.queries
        evaluation = self._evaluation
        self.ended = evaluation.budget.spent(self._queries, evaluation.seconds)
        if self.ended:
            return None
        if self._all_new:
            broken = self._broken + self._successes
        else:
            broken = max(self._broken, self._successes_before + self._successes)
        count = len(evaluation.ids)
        return f"robust accuracy ≤ {Rate(count - self._wrong - broken, count)}, {self._queries} queries"


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
