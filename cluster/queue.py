"""The dispatch loop: work to actors, one call in flight an actor, tries counted for each piece of work."""

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.pool import SearchPool
from cluster.session import wait
from workers.actor import Introduction, Shard, ShardSummary, SharedModel, WorkerBroken
from workers.attacks.attack import Attack
from workers.errors import Failed, StorageError, WrongInput, in_one_line
from workers.places import Place
from workers.versions import versions

__all__ = ["TRIES", "Done", "Lost", "Narrowed", "Queue", "Work"]

TRIES = 3
"""Tries that may fail before a shard is searched row by row, and before a row is given up."""

PROOF_SECONDS = 60.0
"""How long a node may take to answer whether it lives: Ray itself finds a dead one in half of that."""

TICK = 1.0
"""Seconds after which the loop yields None, so that its caller can show that it lives."""


class Work(NamedTuple):
    """What one call of an actor searches: a shard whole, or one of its rows."""

    shard: int
    row: int | None = None

    def __str__(self) -> str:
        return f"shard {self.shard}" if self.row is None else f"shard {self.shard}, row {self.row}"


@dataclass(frozen=True)
class Done:
    """Work whose part is written."""

    work: Work
    summary: ShardSummary


@dataclass(frozen=True)
class Narrowed:
    """A shard that failed every time: its rows are searched one by one from now on."""

    shard: int
    reason: str


@dataclass(frozen=True)
class Lost:
    """A row that failed every time it was searched alone, and how the last try ended."""

    work: Work
    reason: str


class _Failure(NamedTuple):
    """A failed try.

    Attributes:
        actor: who failed.
        node: where, None where the node cannot be to blame.
        reason: in words.
        unwritten: whether the search came to its end and its part could not be written.
    """

    actor: Any
    node: str | None
    reason: str
    unwritten: bool = False


@dataclass
class _Trial:
    """The failed tries of one piece of work, and the nodes that are asked whether they live, by reference."""

    failures: list[_Failure] = field(default_factory=list)
    proofs: dict[Any, str] = field(default_factory=dict)


class _Flight(NamedTuple):
    actor: Any
    work: Work
    started: float


class Queue:
    """Runs work on a pool until all of it is done or given up; iterate over it for what happens.

    An actor is given its next shard only when it has answered for the last one, so the death of an actor costs
    a try to one shard alone. Ray starts the actor again; it is benched until it has built the model and shown
    that it writes where the driver reads. A failed try counts unless its node has died too: then the machine
    was lost, and the shard had no part in it. Actors that never come back are not waited for.

    Args:
        pool: the actors; they need not run yet, and the pool may grow meanwhile.
        work: what to run, read as actors become free.
        load: makes a call's work, when it is handed out.
        rows: how many rows a shard has.
        model: what every actor builds before its first shard.
        attacks: what every actor must be able to read.
        folder: where every actor leaves a probe for the driver.
        timeout: seconds after which a call is taken to hang and its actor is killed, which counts as a failed try.

    Yields:
        `Done`, `Narrowed` and `Lost` as they happen, and None every second.

    Raises:
        WrongInput: when no actor is fit for the search from the start: other versions, another device or folder.
        StorageError: when a part could not be written, several times, or no part by all actors as often.
        Failed: when no actor is left, or none has been there for as long as the pool's patience allows.
    """

    def __init__(
        self,
        pool: SearchPool,
        work: Iterable[Work],
        load: Callable[[Work], Shard],
        rows: Callable[[int], int],
        *,
        model: SharedModel,
        attacks: Sequence[Attack],
        folder: Place,
        timeout: float,
    ) -> None:
        self._pool, self._fresh, self._load, self._rows = pool, iter(work), load, rows
        self._model, self._attacks, self._folder, self._timeout = model, tuple(attacks), folder, timeout
        self._packages = tuple(sorted({attack.PACKAGE for attack in attacks if attack.PACKAGE}))
        self._again: deque[Work] = deque()
        self._idle: deque[Any] = deque()
        self._flights: dict[Any, _Flight] = {}
        self._benched: dict[Any, tuple[Any, Place, str]] = {}
        self._trials: dict[Work, _Trial] = {}
        self._judged: dict[Any, tuple[Work, float]] = {}
        self._misses: Counter[Any] = Counter()
        self._overdue: set[Any] = set()
        self._present: dict[Any, Introduction] = {}
        self._ended: set[tuple[str, int]] = set()  # processes that were told to end, by node and pid
        self._stillborn = 0
        self._unwritten = 0  # parts in a row, whatever work they are of
        self._unfit: list[str] = []
        self._versions = versions(*self._packages)

    def __iter__(self) -> Iterator[Done | Narrowed | Lost | None]:

        for actor in self._pool.actors:
            self._bench(actor)
        manned = looked = time.monotonic()
        more = True
        while True:
            for actor in [] if self._benched else self._pool.grow():
                self._bench(actor)
            more = self._hand_out(more)
            if not (more or self._again or self._flights or self._judged):
                return
            if self._idle or self._flights:
                manned = time.monotonic()
            else:
                self._require_hope(time.monotonic() - manned)
            if not (references := [*self._flights, *self._benched, *self._judged]):
                time.sleep(TICK)
                yield None
                continue
            ready, _ = wait(references, 1, TICK)
            if ready:  # all that have ended: with many actors, one call of Ray answers for several shards
                ready, _ = wait(references, len(references), 0)
            else:
                yield None
            for reference in ready:
                if reference in self._benched:
                    self._meet(reference)
                elif reference in self._judged:
                    yield from self._judge(reference)
                else:
                    yield from self._land(reference)
            if time.monotonic() - looked > TICK:
                looked = time.monotonic()
                self._kill_overdue()
                yield from self._judge_silent()

    def _hand_out(self, more: bool) -> bool:
        """Gives work to idle actors, repeated work first; returns whether fresh work may be left."""
        for actor in list(self._idle):
            work = self._repeated_for(actor)
            if work is None and more and (work := next(self._fresh, None)) is None:
                more = False
            if work is not None:
                self._idle.remove(actor)
                self._flights[actor.search.remote(self._load(work))] = _Flight(actor, work, time.monotonic())
        return more

    def _repeated_for(self, actor: Any) -> Work | None:
        """Work to repeat, if there is any that this actor was not the last to fail at, or nobody else is there."""
        alone = not self._flights and len(self._idle) == 1
        for position, work in enumerate(self._again):
            if alone or work not in self._trials or self._trials[work].failures[-1].actor is not actor:
                del self._again[position]
                return work
        return None

    def _land(self, reference: Any) -> Iterator[Done | Narrowed | Lost]:
        """Takes what a call came to."""
        import ray

        actor, work, _ = self._flights.pop(reference)
        node: str | None = self._present[actor].node
        unwritten = False
        overdue = reference in self._overdue
        self._overdue.discard(reference)
        try:
            summary = ray.get(reference)
        except ray.exceptions.RayActorError:  # the process is gone; whether with its node is seen later
            self._pool.session.require_alive()
            reason = "its worker's process died (it crashed, was killed, or the machine ran out of memory)"
        except ray.exceptions.RayTaskError as error:
            cause, node = error.cause, None
            reason, unwritten = _last_line(cause), isinstance(cause, StorageError)
            if isinstance(cause, WorkerBroken):
                self._end(actor)
            elif not unwritten:
                self._misses[actor] += 1
        except ray.exceptions.RayError as error:  # a lost object, say: the call is over, the actor may be too
            reason = in_one_line(error)[:500]
        else:
            if overdue:  # it answered while it was being killed
                self._bench(actor)
            else:
                self._idle.append(actor)
            self._trials.pop(work, None)
            del self._misses[actor]
            self._unwritten = 0
            yield Done(work, summary)
            return
        self._pool.session.keep_logs()
        if overdue:
            reason, node = f"it took longer than {self._timeout:g} s (--shard-timeout)", None
        if self._misses[actor] >= TRIES and len(self._pool.actors) > 1:
            self._dismiss(actor, f"{self._present[actor].name} fails at whatever it is given: {reason}")
        else:
            self._pool.say(f"{self._present[actor].name} failed at {work}, which is tried again: {reason}")
            self._bench(actor)
        yield from self._failed(work, _Failure(actor, node, reason, unwritten))

    def _end(self, actor: Any) -> None:
        """Kills an actor's process; Ray starts another."""
        import ray

        self._ended.add((self._present[actor].node, self._present[actor].pid))
        ray.kill(actor, no_restart=False)

    def _failed(self, work: Work, failure: _Failure) -> Iterator[Narrowed | Lost]:
        """Counts a failed try; when they are too many, asks the nodes that may be to blame whether they live."""
        trial = self._trials.setdefault(work, _Trial())
        trial.failures.append(failure)
        self._unwritten += failure.unwritten
        # While one actor is slow, another would fail at one fresh shard after the other.
        everywhere = self._unwritten >= TRIES * len(self._pool.actors) > 0
        if everywhere or sum(failure.unwritten for failure in trial.failures) >= TRIES:
            what = f"{self._unwritten} parts in a row" if everywhere else str(work)
            raise StorageError(f"{what} cannot be written: {failure.reason}")
        if len(trial.failures) < TRIES:
            self._again.appendleft(work)
            return
        suspects = {failure.node for failure in trial.failures if failure.node}
        if not suspects:
            yield from self._give_up(work)
        for suspect in suspects:
            proof = _proof_of_life(suspect)
            trial.proofs[proof] = suspect
            self._judged[proof] = work, time.monotonic()

    def _judge(self, proof: Any) -> Iterator[Narrowed | Lost]:
        """Hears of a node, or gives up hearing of it; when Ray holds it for dead, what failed there does not count."""
        import ray

        work, _ = self._judged.pop(proof)
        trial = self._trials[work]
        suspect = trial.proofs.pop(proof)
        if not any(node["NodeID"] == suspect and node["Alive"] for node in ray.nodes()):
            trial.failures = [failure for failure in trial.failures if failure.node != suspect]
        if trial.proofs:
            return
        if len(trial.failures) < TRIES:
            self._again.appendleft(work)
        else:
            yield from self._give_up(work)

    def _give_up(self, work: Work) -> Iterator[Narrowed | Lost]:
        reason = f"{self._trials.pop(work).failures[-1].reason}, {TRIES} times of {TRIES}"
        if work.row is None:
            yield Narrowed(work.shard, reason)
            self._again.extend(Work(work.shard, row) for row in range(self._rows(work.shard)))
        else:
            yield Lost(work, reason)

    def _judge_silent(self) -> Iterator[Narrowed | Lost]:
        """A node that has neither answered nor been found dead for a while is taken to live."""
        late = time.monotonic() - PROOF_SECONDS
        for proof in [proof for proof, (_, asked) in self._judged.items() if asked < late]:
            yield from self._judge(proof)

    def _bench(self, actor: Any) -> None:
        """Asks an actor to make itself ready, over as many restarts as it takes."""
        token = secrets.token_hex(8)
        probe = self._folder / f".probe-{token}.tmp"
        ready = actor.ready.options(max_task_retries=-1)
        reference = ready.remote(self._model, self._attacks, self._packages, probe, token)
        self._benched[reference] = actor, probe, token

    def _meet(self, reference: Any) -> None:
        """Takes an actor that is ready, if it is fit for this search."""
        import ray

        actor, probe, token = self._benched.pop(reference)
        try:
            introduction: Introduction = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._pool.session.require_alive()
            self._pool.session.keep_logs()
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            reason = f"a worker could not make itself ready: {_last_line(cause)}"
            self._stillborn += 1
            if self._stillborn > TRIES:
                self._dismiss(actor, reason)
            else:  # its node may have been at fault, or its files not there yet
                self._pool.say(f"another is started: {reason}")
                self._bench(self._pool.replace(actor))
            return
        self._stillborn = 0
        if (introduction.node, introduction.pid) in self._ended:  # its last words
            self._bench(actor)
        elif problem := self._problem(introduction, probe, token):
            self._dismiss(actor, f"{introduction.name}: {problem}")
        else:
            self._present[actor] = introduction
            self._idle.append(actor)

    def _problem(self, introduction: Introduction, probe: Place, token: str) -> str | None:
        """Why what this worker writes would not belong to the run; None when nothing stands against it."""
        if introduction.device != self._pool.device:
            return f"computes on {introduction.device}, the others on {self._pool.device}; results would differ"
        for name, want in self._versions.items():
            if (have := introduction.versions.get(name)) != want:
                return f"has {name} {str(have)[:12]}, this machine {want[:12]}; results would differ"
        try:
            seen = probe.read()
            probe.remove()
        except OSError:
            seen = b""
        if seen != token.encode():
            return f"--out {self._folder.parent}: not a folder that workers and driver share"
        return None

    def _dismiss(self, actor: Any, reason: str) -> None:
        self._pool.drop(actor)
        self._unfit.append(reason)
        self._pool.say(f"left out: {reason}")

    def _require_hope(self, seconds: float) -> None:
        """Ends a search that nobody works at.

        Args:
            seconds: since an actor was last there.
        """
        if self._unfit and not self._pool.actors:
            problem = f"no worker is fit for this search: {self._unfit[-1]}"
            raise Failed(problem) if self._present else WrongInput(problem)
        if seconds > self._pool.resources.patience:
            raise Failed(
                f"no worker has been there for {seconds:.0f} s (--worker-timeout); run the same command again to go on"
            )

    def _kill_overdue(self) -> None:
        late = time.monotonic() - self._timeout
        for reference, flight in self._flights.items():
            if flight.started < late and reference not in self._overdue:
                self._overdue.add(reference)
                self._end(flight.actor)


def _last_line(error: BaseException) -> str:
    """What an error says; of one with a traceback in it, as Ray's are, the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[-1].split())[:500]


def _proof_of_life(node: str) -> Any:
    """A reference that is answered when a node lives, and fails when Ray has found it dead."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(_answer).options(scheduling_strategy=there).remote()


def _answer() -> bool:
    return True
