"""The dispatch loop: work to actors, one call in flight an actor, tries counted for each piece of work."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cluster.pool import SearchPool
from workers.actor import Introduction, Shard, ShardSummary, SharedModel, WorkerBroken
from workers.errors import StorageError, WrongInput
from workers.places import Place
from workers.versions import versions

__all__ = ["TRIES", "Done", "Lost", "Narrowed", "Queue", "Work"]

TRIES = 3
"""Tries that may fail before a shard is searched row by row, and before a row is given up."""

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


@dataclass
class _Trial:
    """The failed tries of one piece of work.

    Attributes:
        failures: the node of each, None where the node cannot be to blame, and the reason.
        proofs: references to answers of nodes that are asked whether they live.
    """

    failures: list[tuple[str | None, str]] = field(default_factory=list)
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
        folder: where every actor leaves a probe for the driver.
        timeout: seconds after which a call is taken to hang and its actor is killed, which counts as a failed try.

    Yields:
        `Done`, `Narrowed` and `Lost` as they happen, and None every second.

    Raises:
        WrongInput: when no actor is fit for the search from the start: other versions, another device or folder.
        StorageError: when a part could not be written after several tries.
        RuntimeError: when no actor is left, or none has been there for as long as the pool's patience allows.
    """

    def __init__(
        self,
        pool: SearchPool,
        work: Iterable[Work],
        load: Callable[[Work], Shard],
        rows: Callable[[int], int],
        *,
        model: SharedModel,
        folder: Place,
        timeout: float,
    ) -> None:
        self._pool, self._fresh, self._load, self._rows = pool, iter(work), load, rows
        self._model, self._folder, self._timeout = model, folder, timeout
        self._again: deque[Work] = deque()
        self._idle: deque[Any] = deque()
        self._flights: dict[Any, _Flight] = {}
        self._benched: dict[Any, tuple[Any, Place, str]] = {}
        self._trials: dict[Work, _Trial] = {}
        self._judged: dict[Any, Work] = {}
        self._overdue: set[Any] = set()
        self._present: dict[Any, Introduction] = {}
        self._ended: set[tuple[str, int]] = set()  # processes that were told to end, by node and pid
        self._unfit: list[str] = []
        self._versions = versions()

    @property
    def at_work(self) -> int:
        """How many actors are searching."""
        return len(self._flights)

    def __iter__(self) -> Iterator[Done | Narrowed | Lost | None]:
        import ray

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
            if self._idle or self._flights or self._judged:
                manned = time.monotonic()
            else:
                self._require_hope(time.monotonic() - manned)
            references = [*self._flights, *self._benched, *self._judged]
            ready, _ = ray.wait(references, num_returns=1, timeout=TICK)
            if ready:  # all that have ended: with many actors, one call of Ray answers for several shards
                ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
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

    def _hand_out(self, more: bool) -> bool:
        """Gives work to idle actors, repeated work first; returns whether fresh work may be left."""
        while self._idle and (self._again or more):
            work = self._again.popleft() if self._again else next(self._fresh, None)
            if work is None:
                return False
            actor = self._idle.popleft()
            self._flights[actor.search.remote(self._load(work))] = _Flight(actor, work, time.monotonic())
        return more

    def _land(self, reference: Any) -> Iterator[Done | Narrowed | Lost]:
        """Takes what a call came to."""
        import ray

        actor, work, _ = self._flights.pop(reference)
        node: str | None = self._present[actor].node
        overdue = reference in self._overdue
        self._overdue.discard(reference)
        try:
            summary = ray.get(reference)
        except ray.exceptions.RayActorError:  # the process is gone; whether with its node is seen later
            reason = "its worker's process died (it crashed, was killed, or the machine ran out of memory)"
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            reason, node = " ".join(str(cause).split())[:500], None
            if isinstance(cause, WorkerBroken):
                self._end(actor)
            elif isinstance(cause, StorageError) and self._count(work) + 1 >= TRIES:
                raise StorageError(f"{work} cannot be written: {reason}") from None
        except ray.exceptions.RayError as error:  # a lost object, say: the call is over, the actor may be too
            reason = " ".join(str(error).split())[:500]
        else:
            if overdue:  # it answered while it was being killed
                self._bench(actor)
            else:
                self._idle.append(actor)
            self._trials.pop(work, None)
            yield Done(work, summary)
            return
        if overdue:
            reason, node = f"it took longer than {self._timeout:g} s (--shard-timeout)", None
        self._bench(actor)
        yield from self._failed(work, node, reason)

    def _end(self, actor: Any) -> None:
        """Kills an actor's process; Ray starts another."""
        import ray

        self._ended.add((self._present[actor].node, self._present[actor].pid))
        ray.kill(actor, no_restart=False)

    def _failed(self, work: Work, node: str | None, reason: str) -> Iterator[Narrowed | Lost]:
        """Counts a failed try; when they are too many, asks the nodes that may be to blame whether they live."""
        trial = self._trials.setdefault(work, _Trial())
        trial.failures.append((node, reason))
        if len(trial.failures) < TRIES:
            self._again.appendleft(work)
            return
        suspects = {node for node, _ in trial.failures if node}
        if not suspects:
            yield from self._give_up(work)
        for suspect in suspects:
            proof = _proof_of_life(suspect)
            trial.proofs[proof] = suspect
            self._judged[proof] = work

    def _judge(self, proof: Any) -> Iterator[Narrowed | Lost]:
        """Hears a node, or that it is dead: then what failed there does not count."""
        import ray

        work = self._judged.pop(proof)
        trial = self._trials[work]
        suspect = trial.proofs.pop(proof)
        try:
            ray.get(proof)
        except ray.exceptions.RayError:
            trial.failures = [failure for failure in trial.failures if failure[0] != suspect]
        if trial.proofs:
            return
        if len(trial.failures) < TRIES:
            self._again.appendleft(work)
        else:
            yield from self._give_up(work)

    def _give_up(self, work: Work) -> Iterator[Narrowed | Lost]:
        reason = f"{self._trials.pop(work).failures[-1][1]}, {TRIES} times of {TRIES}"
        if work.row is None:
            yield Narrowed(work.shard, reason)
            self._again.extend(Work(work.shard, row) for row in range(self._rows(work.shard)))
        else:
            yield Lost(work, reason)

    def _count(self, work: Work) -> int:
        return len(self._trials[work].failures) if work in self._trials else 0

    def _bench(self, actor: Any) -> None:
        """Asks an actor to make itself ready, over as many restarts as it takes."""
        token = secrets.token_hex(8)
        probe = self._folder / f".probe-{token}.tmp"
        self._benched[actor.ready.options(max_task_retries=-1).remote(self._model, probe, token)] = actor, probe, token

    def _meet(self, reference: Any) -> None:
        """Takes an actor that is ready, if it is fit for this search."""
        import ray

        actor, probe, token = self._benched.pop(reference)
        try:
            introduction: Introduction = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._dismiss(actor, f"a worker cannot make itself ready: {' '.join(str(error.cause).split())[:500]}")
            return
        except ray.exceptions.RayError as error:  # killed for good: it does not come back
            self._dismiss(actor, f"a worker could not be started: {' '.join(str(error).split())[:500]}")
            return
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
            raise RuntimeError(problem) if self._present else WrongInput(problem)
        if seconds > self._pool.resources.patience:
            raise RuntimeError(
                f"no worker has been there for {seconds:.0f} s (--worker-timeout); run the same command again to go on"
            )

    def _kill_overdue(self) -> None:
        late = time.monotonic() - self._timeout
        for reference, flight in self._flights.items():
            if flight.started < late and reference not in self._overdue:
                self._overdue.add(reference)
                self._end(flight.actor)


def _proof_of_life(node: str) -> Any:
    """A reference that is answered when a node lives, and fails when Ray has found it dead."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(_answer).options(scheduling_strategy=there).remote()


def _answer() -> bool:
    return True
