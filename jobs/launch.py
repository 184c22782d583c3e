"""One search from its options to its parts: resolve, freeze or compare, dispatch, sum up."""

import hashlib
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.completion import Completion
from cluster.metrics import SearchMetrics
from cluster.pool import Resources, SearchPool, require_room
from cluster.queue import Done, Lost, Narrowed
from cluster.session import of_its_own, open_session, require_lasting
from cluster.store import Plan, RunFolder
from jobs.frozen import require_same
from jobs.progress import progress, say
from jobs.subject import Subject, numbers
from workers.actor import Outcome, ShardSummary, SharedModel
from workers.attacks.attack import Attack
from workers.budgets import Number, in_levels
from workers.errors import Interrupted, StorageError, WrongInput
from workers.places import Place
from workers.remedies.checks import UNPROBED, Probe
from workers.results import SCHEMA_VERSION
from workers.versions import version_of, versions

if TYPE_CHECKING:
    from analysis.summary import Summary

__all__ = [
    "BLOCK",
    "Images",
    "Selection",
    "Watch",
    "Where",
    "WorkerHost",
    "launch",
    "require_fit",
    "resolve",
    "sentence",
    "shard_of_few",
]

BLOCK = 16
"""Every call of a model is padded to a multiple of so many images."""
CPU_BATCH = 64
"""The seed's CNN's fastest on a processor core; on a GPU the batch is what fits into its memory."""

SHARDS_PER_WORKER = 4
FEW_BLOCKS = 8
"""A search within a ball of at most so many blocks of images is dealt out block by block, however many workers."""

Watch = Callable[[ShardSummary | None], str | None]
"""Follows a run: called with what each finished shard came to, and with None about once a second; returns the figures
to show beside the progress, or None to end the run here, as if what is done were all of it for now."""


class Images(BaseModel):
    """Which images are attacked."""

    model_config = ConfigDict(extra="forbid")

    label: int | None = Field(None, ge=0, description="Only images of this class.")
    correct: bool = Field(False, description="Only images that the model classifies correctly.")
    ids: str = Field("", description="Only these images, as 1,2,3 (positions in the split).")
    limit: int | None = Field(None, ge=1, description="Only the first N of what the other flags leave.")
    seed: int = Field(0, ge=0, lt=2**63, description="Keys every random draw, together with image, target and attack.")
    shard_size: int | None = Field(None, ge=1, description="Images (and targets) a shard; results do not depend on it.")


class Selection(Images):
    """Which images are attacked, and towards what."""

    target: str | None = Field(
        None, description="A class, all (every other class), random or least-likely; untargeted when absent."
    )


class Where(BaseModel):
    """Where the search runs."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    workers: int | None = Field(None, ge=1, description="Search actors; as many as there is room for when absent.")
    gpus_per_worker: Number | None = Field(
        None, ge=0, description="GPUs an actor, fractions allowed; one where the cluster has GPUs, when absent."
    )
    cpus_per_worker: Number = Field(1, gt=0, description="Processors an actor, and its torch threads.")
    address: str | None = Field(None, description="Ray cluster to join; else RAY_ADDRESS, else a local Ray.")
    shard_timeout: float = Field(
        3600, gt=0, description="Seconds after which a shard is taken to hang, and its worker is started anew."
    )
    worker_timeout: float = Field(300, gt=0, description="Seconds to wait for workers while there is none at all.")


class WorkerHost:
    """Opens Ray and a pool of actors when first needed, and closes them at the end.

    Args:
        where: the session and its resources.
    """

    def __init__(self, where: Where) -> None:
        self.where = where
        self.resources = Resources(where.workers, where.cpus_per_worker, where.gpus_per_worker, where.worker_timeout)
        self._stack, self._pool = ExitStack(), None  # type: tuple[ExitStack, SearchPool | None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._stack.close()

    def pool(self) -> SearchPool:
        """The pool, started at the first call."""
        if self._pool is None:
            if own := of_its_own(self.where.address):
                require_room(own, self.resources)
            session = self._stack.enter_context(open_session(self.where.address, say))
            self._pool = SearchPool(session, self.resources, say)
            self._stack.callback(self._pool.stop)
            self._pool.start()
            count = len(self._pool.actors)
            say(f"{count} worker{'s' * (count > 1)} on {self._pool.device}")
        return self._pool


@dataclass(frozen=True)
class Resolved:
    """The rows of a search: image ids and targets, int64 ``[n]``; targets None when untargeted."""

    ids: np.ndarray
    targets: np.ndarray | None


def shard_of_few(count: int) -> int | None:
    """The shard size of a search of so many images within a ball; None, which leaves it to `launch`, for many.

    Few would be dealt out in twos and threes. Such a search puts one image of each into a call, which is padded to a
    block: a shard of a block takes no longer than a smaller one.
    """
    return BLOCK if count <= FEW_BLOCKS * BLOCK else None


def launch(
    attacks: Sequence[Attack],
    subject: Subject,
    selection: Selection,
    out: Place,
    host: WorkerHost,
    *,
    ids: np.ndarray | None = None,
    title: str | None = None,
    watch: Watch | None = None,
    retry_failed: bool = False,
    probe: Probe = UNPROBED,
) -> "list[Summary]":
    """Runs a search, at one budget or several, into a folder, or what is left of it; says what each came to.

    Args:
        attacks: the method with its parameters, one for each budget.
        subject: what is attacked.
        selection: which of its images, towards what.
        out: the run's folder.
        host: where the search runs.
        ids: int64 ``[n]``, of the images to search, in this order; in place of ``selection.ids``, where they are many.
        title: what the progress is called; the attack's name when None.
        watch: follows the run, which then leaves the last word to it; a run that it ends early is resumed by the
            same call.
        retry_failed: whether rows with status ``failed`` are searched again.
        probe: what was found out about the model, to be recorded.

    Returns:
        A summary of what is done for each budget; empty when a watched run ended with no shard done.

    Raises:
        WrongInput: for options that do not fit the subject or the run that the folder holds.
        Interrupted: when stopped; the same command resumes.
    """
    attacks = [attack.for_images(subject.dataset.shape) for attack in attacks]
    folder = require_fit(attacks, subject, selection, out)
    run = _Launch(attacks, subject, selection, ids, folder, host, title or attacks[0].NAME, watch, retry_failed, probe)
    if folder.exists:
        run.compare(folder.plan())
    resolved = None if folder.exists else resolve(subject, selection, ids)
    with folder.locked():
        plan = folder.plan() if folder.exists else None
        try:
            if plan is not None:
                run.compare(plan)
            plan = run.complete(plan, resolved)
        except (WrongInput, KeyboardInterrupt):
            if plan is None:
                folder.sweep()  # the probes of workers that were left out
                if folder.parts.names():  # it was the last sweep that was interrupted
                    raise
                folder.forget()
            raise
    import pyarrow.compute as pc

    from analysis.reservations import reservations
    from analysis.summary import SUMMARISED, clean_accuracy, summarise
    from workers.evaluation.scores import UNANSWERED

    columns = (*SUMMARISED, "target", "label", "clean_prediction")
    tables = folder.tables(plan, columns) if watch is None else folder.read(plan, columns)[1]
    summaries: list[Summary] = []
    if not tables:
        return summaries
    for attack, table, beside in zip(attacks, tables, folder.beside(plan), strict=True):
        summary = summarise(table)
        if watch is None:
            print(f"{title}: " * bool(title) + sentence(attack, selection.target, summary))
        if summary.first_error:
            say(f"the first failure: {summary.first_error}")
        for said in reservations(table, beside):
            say(said)
        summaries.append(summary)
    labels, images = (np.asarray(tables[0][name]) for name in ("label", "image_id"))
    predictions = np.asarray(pc.fill_null(tables[0]["clean_prediction"], UNANSWERED))
    subject.warn_near_chance(clean_accuracy(predictions, labels, images))
    return summaries


def require_fit(attacks: Sequence[Attack], subject: Subject, selection: Selection, out: Place) -> RunFolder:
    """Refuses a search that cannot be, before Ray starts for it.

    Returns:
        The run's folder.

    Raises:
        WrongInput: for a folder that cannot be used, or attacks that do not take these images or this goal.
    """
    RunFolder(out).require_usable()
    if out.local:
        require_lasting(out.path)
    for attack in attacks:
        attack.for_images(subject.dataset.shape).check(subject.dataset.shape, subject.classes)
        attack.check_goal(targeted=selection.target is not None)
    return RunFolder(out.resolve())  # actors on a cluster have another working directory


@dataclass(frozen=True)
class _Launch:
    """What a search is asked to be: compared with the plan that is there, or frozen into a new one, then run."""

    attacks: Sequence[Attack]
    subject: Subject
    selection: Selection
    ids: np.ndarray | None
    folder: RunFolder
    host: WorkerHost
    title: str
    watch: Watch | None
    retry_failed: bool
    probe: Probe

    @cached_property
    def wanted(self) -> dict[str, Any]:
        """What the plan of this search must say."""
        return {
            "attack": self.attacks[0].NAME,
            "parameters": Attack.parameters_of(self.attacks),
            **self.selection.model_dump(mode="json", exclude={"shard_size"}),
            **({} if self.ids is None else {"ids": _digest(self.ids)}),
            "split": self.subject.dataset.split,
            "remedies": str(self.subject.recipe.remedies),
            "model": self.subject.recipe.content_hash,
            "data": self.subject.data_hash,
            **versions(*filter(None, (self.attacks[0].PACKAGE,))),
            "schema": SCHEMA_VERSION,
            "threads": self.host.resources.threads,
        }

    def compare(self, plan: Plan, **more: Any) -> None:
        """Refuses a plan that says something else.

        Raises:
            WrongInput: naming the field.
        """
        wanted = self.wanted | more | {"shard_size": self.selection.shard_size or plan.shard_size}
        have = plan.frozen | {"shard_size": plan.shard_size}
        require_same(self.folder.place, "run", {field: have.get(field) for field in wanted}, wanted)

    def complete(self, plan: Plan | None, resolved: Resolved | None) -> Plan:
        """Searches what is left of the run, freezing its plan first when there is none; returns the plan."""
        self.folder.sweep(plan)
        left = self._left(plan) if plan else None
        if plan and left and not left.shards_left:
            return plan
        pool = self.host.pool()
        model = pool.share(self.subject.recipe)
        if plan is None:
            resolved = resolved or resolve(self.subject, self.selection, self.ids)
            some = self.subject.dataset.images[resolved.ids[:BLOCK]]
            batch = CPU_BATCH if pool.device == "cpu" else pool.fitting_batch(model, some, BLOCK)
            plan = self._plan(resolved, pool, batch)
            self.folder.create(plan)
        self.compare(plan, device=pool.device)
        try:
            self._search(plan, left or self._left(plan), pool, model)
        except StorageError:
            pool.stop()  # those that make themselves ready would leave their probes
            with suppress(StorageError):
                self.folder.sweep()
            raise
        self.folder.sweep(plan)
        return plan

    def _left(self, plan: Plan) -> Completion:
        done, images = self.folder.done(plan), self.subject.dataset
        for name in self.folder.damaged(done):
            say(f"{name} is damaged, or another run's: what it should hold is searched again")
        return Completion(self.folder, plan, self.attacks, images, done=done, retry_failed=self.retry_failed)

    def _plan(self, resolved: Resolved, pool: SearchPool, batch: int) -> Plan:
        even = -(-len(resolved.ids) // (SHARDS_PER_WORKER * len(pool.actors)))
        recipe, data = self.subject.recipe, self.subject.dataset.name
        recorded = {
            "model": str(Path(recipe.reference).resolve()) if Path(recipe.reference).exists() else recipe.reference,
            "weights": str(recipe.weights_path.resolve()) if recipe.weights_path else "",
            "mean": ",".join(map(str, recipe.mean)),
            "std": ",".join(map(str, recipe.std)),
            "data": str(Path(data).resolve()) if Path(data).exists() else data,
            "layout": self.subject.dataset.layout,
            "remedies": recipe.remedies.describe(),
            "given": recipe.given_hash,
            "probe": self.probe.describe(),
            "versions": {"python": platform.python_version()} | {name: version_of(name) for name in _PACKAGES},
            "budgets": {attack.params_hash: getattr(attack, attack.BUDGET) for attack in self.attacks if attack.BUDGET},
            "threats": {attack.params_hash: attack.ball.describe() for attack in self.attacks if attack.ball},
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        size = self.selection.shard_size or max(1, min(even, *(attack.shard_size for attack in self.attacks)))
        return Plan(
            frozen=self.wanted | {"device": pool.device, "block": BLOCK, "batch": batch},
            recorded=recorded,
            ids=resolved.ids,
            targets=resolved.targets,
            params_hashes=tuple(attack.params_hash for attack in self.attacks),
            shard_size=size,
        )

    def _search(self, plan: Plan, left: Completion, pool: SearchPool, model: SharedModel) -> None:
        total, budgets = left.rows_left, len(plan.params_hashes)
        tally = _Tally(self.attacks, [Outcome()] * budgets)
        metrics = SearchMetrics(self.attacks[0].NAME, self.folder.place.name)
        title = self.title if total == plan.rows else f"{self.title} (resumed, {plan.rows - total} rows done before)"
        try:
            with progress(total, title, "rows") as bar:
                for event in left.run(pool, model, self.host.where.shard_timeout):
                    self.folder.check_held()
                    rows, summary = 0, event.summary if isinstance(event, Done) else None
                    match event:
                        case Done(_, found):
                            rows = found.rows
                            tally.add(found)
                            metrics.shard(found)
                        case Narrowed(shard, reason):
                            say(f"shard {shard} failed, its rows are searched one by one: {reason}")
                        case Lost(work, reason):
                            rows = budgets
                            tally.lose()
                            image = plan.ids[plan.span(work.shard)][work.row]
                            say(f"image {image} ({work}) is given up: {reason}")
                    metrics.workers(len(pool.actors))
                    figures = tally.figures(len(pool.actors)) if self.watch is None else self.watch(summary)
                    if figures is None:
                        break
                    bar.advance(rows, figures)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: {plan.shards - left.shards_left} of {plan.shards} shards are done in "
                f"{self.folder.place}; run the same command again to resume"
            ) from None
        except StorageError as error:
            raise StorageError(f"{error}; run the same command again to resume") from None


@dataclass
class _Tally:
    """What the shards of this start add up to, the rows at each budget."""

    attacks: Sequence[Attack]
    outcomes: list[Outcome]
    queries: int = 0
    seconds: float = 0

    def add(self, summary: ShardSummary) -> None:
        self.outcomes = [mine.plus(more) for mine, more in zip(self.outcomes, summary.outcomes, strict=True)]
        self.queries += summary.queries
        self.seconds += summary.seconds

    def lose(self) -> None:
        """Adds a row at each budget that is given up."""
        self.outcomes = [mine.plus(Outcome(failed=1)) for mine in self.outcomes]

    def figures(self, workers: int) -> str:
        """In a few words, the success at each budget; nothing while no shard is done."""
        failed = sum(one.failed for one in self.outcomes)
        if not self.seconds:
            return f"{failed} failed" if failed else ""
        rate = f"success {self._rates()}" if any(x.searched + x.failed for x in self.outcomes) else "nothing searched"
        broken = f", {failed} failed" if failed else ""
        return f"{rate}, {short(workers * self.queries / self.seconds)} queries/s{broken}"

    def _rates(self) -> str:
        """The rate at each budget; of many, at the first and the last."""
        from analysis.statistics import Rate

        rates = [Rate(x.successes, x.searched + x.failed, unknown=x.failed).share for x in self.outcomes]
        if len(rates) == 1:
            return rates[0]
        said = [f"{rate} at {attack.budget}" for rate, attack in zip(rates, self.attacks, strict=True)]
        return ", ".join(said) if len(said) <= 3 else f"{said[0]}, …, {said[-1]}"


def sentence(attack: Attack, target: str | None, summary: "Summary") -> str:
    """A run in one line."""
    goal = "untargeted" if target is None else f"towards {target}"
    text = f"{attack.title} {goal}: success {summary.success}"
    if summary.success.hits:
        text += f", medians L0 {summary.l0:g}, L2 {summary.l2:.3g}, L∞ {in_levels(summary.linf or 0)}"
    if summary.unchanged:
        text += f"; {summary.unchanged} of {summary.searched} came back unchanged"
    others = [f"{n} {s}" for s, n in summary.counts.items() if s not in ("success", "exhausted")]
    return "; ".join([text, *others])


def _digest(ids: np.ndarray) -> str:
    """What is frozen of image ids that are many: the plan's table has them all."""
    return f"{len(ids)} images, sha256 {hashlib.sha256(ids.astype('<i8').tobytes()).hexdigest()}"


def resolve(subject: Subject, selection: Selection, ids: np.ndarray | None = None) -> Resolved:
    """The images, and targets, that a selection leaves, in its order.

    Args:
        subject: what is attacked.
        selection: which of its images, towards what.
        ids: int64 ``[n]``, in place of the selection's own.

    Raises:
        ValueError: when ids are given twice.
        WrongInput: for what does not fit the subject, or leaves nothing.
    """
    dataset = subject.dataset
    if selection.label is not None and selection.label >= subject.classes:
        raise WrongInput(f"--label: the model has classes 0 to {subject.classes - 1}, got {selection.label}")
    if ids is None:
        named = numbers(selection.ids, int, "--ids")
        stray = [image for image in named if not 0 <= image < len(dataset)]
        if stray:  # before they are 64-bit integers
            raise WrongInput(f"--ids: {dataset.name} has images 0 to {len(dataset) - 1}, got {stray[0]}")
        ids = np.array(named or range(len(dataset)), dtype=np.int64)
    elif selection.ids:
        raise ValueError("ids and selection.ids: expected one of both")
    elif len(ids) and not 0 <= ids.min() <= ids.max() < len(dataset):
        raise WrongInput(f"ids: {dataset.name} has images 0 to {len(dataset) - 1}, got {ids.min()} to {ids.max()}")
    if len(np.unique(ids)) != len(ids):
        raise WrongInput("--ids: an image is named twice")
    if selection.label is not None:
        ids = ids[dataset.labels[ids] == selection.label]
    goal = _goal(selection.target, subject.classes)
    if selection.correct:
        ids = ids[subject.correct[ids]]
    ids = ids[: selection.limit]
    if not len(ids):
        raise WrongInput("no image is left to attack: --label, --correct and --ids exclude them all")
    return _with_targets(ids, goal, subject, selection.seed)


def _goal(target: str | None, classes: int) -> str | int | None:
    if target is None or target in ("all", "random", "least-likely"):
        return target
    try:
        number = int(target)
    except ValueError:
        raise WrongInput(f"--target: expected a class, all, random or least-likely, got {target}") from None
    if not 0 <= number < classes:
        raise WrongInput(f"--target: the model has classes 0 to {classes - 1}, got {number}")
    return number


def _with_targets(ids: np.ndarray, goal: str | int | None, subject: Subject, seed: int) -> Resolved:
    labels, classes = subject.dataset.labels[ids], subject.classes
    if goal is None:
        return Resolved(ids, None)
    if goal == "all":
        offsets = np.tile(np.arange(1, classes), len(ids))
        return Resolved(ids.repeat(classes - 1), (labels.repeat(classes - 1) + offsets) % classes)
    if goal == "least-likely":
        return Resolved(ids, subject.extremes[1][ids])
    if goal == "random":  # keyed by image, so that a target does not depend on which others are attacked
        offsets = np.array([np.random.default_rng([seed, image]).integers(1, classes) for image in ids.tolist()])
        return Resolved(ids, (labels + offsets) % classes)
    return Resolved(ids, np.full(len(ids), goal))


_PACKAGES = ("brittle", "torch", "numpy", "ray", "pyarrow")


def short(number: float) -> str:
    """A count in at most six characters, as far as that goes."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.99995 * unit:
            return f"{number / unit:.1f}{name}"
    return f"{number:.0f}"
