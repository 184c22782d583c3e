"""The dispatch loop: shards to actors, one in flight an actor, tries counted for each shard."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cluster.pool import SearchPool
from workers.actor import Shard, ShardSummary

__all__ = ["TRIES", "ShardFailure", "run_shards"]

TRIES = 3
"""Deaths of its worker after which a shard is given up."""

TICK = 1.0
"""Seconds after which the loop yields None, so that its caller can show that it lives."""


@dataclass(frozen=True)
class ShardFailure:
    """A shard whose worker died every time, and what Ray said of the last death."""

    index: int
    reason: str


def run_shards(
    pool: SearchPool, indices: Iterable[int], load: Callable[[int], Shard]
) -> Iterator[ShardSummary | ShardFailure | None]:
    """Runs shards on a pool until each is done or given up; yields as they end, and None every second.

    An actor is given its next shard only when it has answered for the last one, so the death of an actor
    costs a try to one shard alone. Ray starts the actor again; it is benched until it answers a ping.

    Args:
        pool: the actors.
        indices: the shards to run.
        load: makes a shard's work from its index, called when the shard is handed out.
    """
    import ray

    waiting = deque(indices)
    tries: Counter[int] = Counter()
    idle = list(pool.actors)
    searching: dict[Any, tuple[Any, int]] = {}
    benched: dict[Any, Any] = {}
    while waiting or searching:
        if not (idle or searching or benched):
            yield from (ShardFailure(index, "no worker is left") for index in waiting)
            return
        while waiting and idle:
            actor, index = idle.pop(), waiting.popleft()
            searching[actor.search.remote(load(index))] = (actor, index)
        ready, _ = ray.wait([*searching, *benched], num_returns=1, timeout=TICK)
        if not ready:
            yield None
        for reference in ready:
            if reference in benched:
                actor = benched.pop(reference)
                try:
                    ray.get(reference)
                    idle.append(actor)
                except ray.exceptions.RayError:
                    pass  # the ping was retried over restarts: this actor does not come back
                continue
            actor, index = searching.pop(reference)
            try:
                summary = ray.get(reference)
            except ray.exceptions.RayActorError as death:
                benched[_ping(actor)] = actor
                tries[index] += 1
                if tries[index] < TRIES:
                    waiting.appendleft(index)
                else:
                    yield ShardFailure(index, " ".join(str(death).split())[:300])
            except ray.exceptions.RayTaskError as error:  # the actor lives, but could not build the model or write
                idle.append(actor)
                yield ShardFailure(index, " ".join(str(error.cause).split())[:300])
            except ray.exceptions.RayError as error:  # a lost object, say: the call is over, the actor may be too
                benched[_ping(actor)] = actor
                yield ShardFailure(index, " ".join(str(error).split())[:300])
            else:
                idle.append(actor)
                yield summary


def _ping(actor: Any) -> Any:
    return actor.ping.options(max_task_retries=-1).remote()
