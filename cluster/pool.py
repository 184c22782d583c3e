"""The pool of search actors: used by one search after another, smaller or larger as the cluster is."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workers
from cluster.session import Session, wait
from workers.actor import SharedModel
from workers.errors import Failed, WrongInput, in_one_line

if TYPE_CHECKING:
    import numpy as np

    from workers.models.loading import ModelRecipe

__all__ = ["Resources", "SearchPool", "require_room"]

SAY_SECONDS = 10.0
GROW_SECONDS = 5.0
SETTLE_SECONDS = 5.0
"""How long the start waits for other actors after the first: enough for those of one machine to be there too."""


@dataclass(frozen=True)
class Resources:
    """How many actors, and what each is given.

    Attributes:
        workers: actors; None fills what is free in the cluster, whatever joins it later included.
        cpus: processors for each, which is also torch's threads.
        gpus: GPUs for each, fractions allowed; None means one where the cluster has any.
        patience: seconds that a search goes on without any worker.
    """

    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None
    patience: float = 300

    @property
    def threads(self) -> int:
        """torch's threads in an actor."""
        return max(1, int(self.cpus))


def require_room(session: Session, resources: Resources) -> None:
    """Refuses actors that a session's own machine cannot hold.

    Raises:
        WrongInput: naming the flag.
    """
    if not session.local:
        return
    gpus = _gpus(session, resources)
    if gpus > session.gpus:
        raise WrongInput(f"--gpus-per-worker {gpus:g}: this machine has {session.gpus:g} GPUs")
    if resources.cpus > session.cpus:
        raise WrongInput(f"--cpus-per-worker {resources.cpus:g}: this machine has {session.cpus:g} processors")
    room = _room(session.cpus, session.gpus, resources.cpus, gpus)
    if (resources.workers or 0) > room:
        raise WrongInput(f"--workers {resources.workers}: this machine has room for {room} of this size")


def _gpus(session: Session, resources: Resources) -> float:
    """GPUs for each actor."""
    return resources.gpus if resources.gpus is not None else float(session.gpus > 0)


def _room(cpus: float, gpus: float, cpus_each: float, gpus_each: float) -> int:
    """How many actors fit into so many processors and GPUs."""
    room = cpus // cpus_each
    return int(min(room, gpus / gpus_each) if gpus_each else room)


class SearchPool:
    """Actors that have been asked for; some may not run yet, or run again after a death.

    Args:
        session: where.
        resources: how many, and what each is given.
        say: called with a line for the user.

    Raises:
        WrongInput: when the session's own machine cannot hold them.
    """

    def __init__(self, session: Session, resources: Resources, say: Callable[[str], None] = lambda line: None) -> None:
        import ray

        self.session, self.resources, self.say = session, resources, say
        self.gpus = _gpus(session, resources)
        require_room(session, resources)
        room = _room(session.cpus, session.gpus, resources.cpus, self.gpus) if session.local else self._free()
        wanted = resources.workers or max(1, room)
        # A dead actor is started again by Ray; a shard is never tried again by Ray, the queue counts the tries.
        options = {"num_cpus": resources.cpus, "num_gpus": self.gpus, "max_restarts": -1, "max_task_retries": 0}
        self._remote = ray.remote(**options)(_actor_class())
        self._made, self._looked = 0, time.monotonic()
        self.actors: list[Any] = []
        self.device = ""
        """``cpu`` or ``cuda``: what the first actor that answered computes on."""
        self._create(wanted)

    def start(self) -> None:
        """Waits until an actor runs, and a little longer for those that start at the same time.

        Raises:
            WrongInput: when no node of the cluster can hold such an actor in the time that resources allow.
            Failed: when no actor can be started.
        """
        import ray

        pings = {actor.device.options(max_task_retries=-1).remote(): actor for actor in self.actors}
        begun = said = time.monotonic()
        first = None
        while pings:
            ready, _ = wait(list(pings), len(pings), 0.5)
            now = time.monotonic()
            for reference in ready:
                actor = pings.pop(reference)
                try:
                    device = ray.get(reference)
                except ray.exceptions.RayError as error:
                    self.drop(actor)
                    reason = in_one_line(error)[:500]
                    if not self.actors:
                        raise Failed(f"a worker could not be started: {reason}") from None
                    self.say(f"a worker could not be started: {reason}")
                else:
                    self.device = self.device or device
                    first = first or now
            if first and now - first > SETTLE_SECONDS:
                return
            if not first and now - begun > self.resources.patience:
                self.stop()
                raise WrongInput(
                    f"no worker could start within {self.resources.patience:g} s (--worker-timeout): each needs "
                    f"{self.resources.cpus:g} CPUs and {self.gpus:g} GPUs; the cluster has {self._having()}"
                )
            if pings and now - said > SAY_SECONDS:
                said = now
                self.say(f"waiting for workers: {len(self.actors) - len(pings)} of {len(self.actors)} answer")

    def grow(self) -> list[Any]:
        """Asks for more actors when the pool fills the cluster and there is room; returns the new ones.

        To be called when all actors run: those that wait for a place would take it first.
        """
        now = time.monotonic()
        if self.resources.workers or self.session.local or now - self._looked < GROW_SECONDS:
            return []
        self._looked = now
        return self._create(self._free())

    def drop(self, actor: Any) -> None:
        """Ends an actor for good."""
        import ray

        ray.kill(actor)
        self.actors.remove(actor)

    def replace(self, actor: Any) -> Any:
        """Ends an actor for good, and asks for another in its place."""
        self.drop(actor)
        return self._create(1)[0]

    def share(self, model: "ModelRecipe") -> SharedModel:
        """Puts a model once into the object store, for every actor to build."""
        import ray

        return SharedModel(model.content_hash, [ray.put(model)])

    def fitting_batch(self, model: SharedModel, images: "np.ndarray", block: int) -> int:
        """The batch that fits the GPU of every actor that runs now, tried on images uint8 ``[n, C, H, W]``.

        Raises:
            Failed: when the model fails on all of them.
        """
        import ray

        asked = [actor.fitting_batch.remote(model, images, block, self.gpus) for actor in self.actors]
        fitting: list[int] = []
        problem = ""
        while asked and not fitting:
            ready, asked = wait(asked, len(asked), SETTLE_SECONDS)
            for reference in ready:
                try:
                    fitting.append(ray.get(reference))
                except ray.exceptions.RayError as error:
                    problem = in_one_line(error)[:500]
        if not fitting:
            raise Failed(f"no worker can try the model: {problem}")
        return min(fitting)

    def stop(self) -> None:
        """Ends the actors, whatever they are doing, and sees them end."""

        if self.session.own and self.session.own.death():  # nobody would answer
            self.actors.clear()
            return
        last = [actor.device.remote() for actor in self.actors]  # answered, or refused, once they are gone
        for actor in list(self.actors):
            self.drop(actor)
        if last:
            wait(last, len(last), SETTLE_SECONDS)

    def _create(self, count: int) -> list[Any]:
        names = range(self._made, self._made + count)
        made = [self._remote.remote(_ROOT, self.resources.threads, f"worker-{number}") for number in names]
        self._made += len(made)
        self.actors += made
        return made

    def _free(self) -> int:
        """How many actors the cluster has room for now, beside all that runs there."""
        import ray

        free = ray.available_resources()
        return _room(free.get("CPU", 0), free.get("GPU", 0), self.resources.cpus, self.gpus)

    def _having(self) -> str:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        sizes = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
        return f"{len(nodes)} nodes: {'; '.join(sizes[:4])}{' …' if len(sizes) > 4 else ''}"


_ROOT = str(Path(workers.__file__).parent.parent)


def _actor_class() -> type:
    """`SearchActor` behind a class that is shipped by value.

    Ray puts the driver's working directory first on an actor's path. A class shipped by name would be looked
    up there, and a user's own folder called ``workers`` would be taken for ours.
    """

    class Search:
        def __init__(self, root: str, threads: int, name: str) -> None:
            if Path(root).is_dir():  # not so on another machine, where Ray puts the shipped code on the path
                sys.path.insert(0, root)
            from workers.actor import SearchActor

            self._actor = SearchActor(threads, name)

        def device(self) -> str:
            return self._actor.device

        def ready(self, *introduced: Any) -> Any:
            return self._actor.ready(*introduced)

        def fitting_batch(self, *asked: Any) -> int:
            return self._actor.fitting_batch(*asked)

        def look(self, *asked: Any) -> Any:
            return self._actor.look(*asked)

        def search(self, shard: Any) -> Any:
            return self._actor.search(shard)

    return Search
