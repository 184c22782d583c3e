"""The pool of search actors: created once, used by one search after another."""

import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workers
from cluster.session import Session
from workers.actor import SharedModel
from workers.errors import WrongInput

if TYPE_CHECKING:
    from workers.models.loading import ModelRecipe

__all__ = ["Resources", "SearchPool", "start_pool"]

WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Resources:
    """How many actors, and what each is given.

    Attributes:
        workers: actors; None fills the cluster.
        cpus: processors for each, which is also torch's threads.
        gpus: GPUs for each, fractions allowed; None means one where the cluster has any.
    """

    workers: int | None = None
    cpus: float = 1
    gpus: float | None = None

    @property
    def threads(self) -> int:
        """torch's threads in an actor."""
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class SearchPool:
    """Actors that answer, all on the same kind of device.

    Attributes:
        actors: handles of `SearchActor`.
        device: ``cpu`` or ``cuda``.
        gpus: of each actor.
    """

    actors: tuple[Any, ...]
    device: str
    gpus: float

    def share(self, model: "ModelRecipe") -> SharedModel:
        """Puts a model once into the object store, for every actor to build."""
        import ray

        return SharedModel(model.content_hash, [ray.put(model)])

    def fitting_batch(self, model: SharedModel, shape: tuple[int, int, int], block: int) -> int:
        """The batch that fits every actor's GPU."""
        import ray

        return int(min(ray.get([a.fitting_batch.remote(model, shape, block, self.gpus) for a in self.actors])))

    def probe(self, folder: Path) -> None:
        """Makes sure that what each actor writes into a folder is what the driver reads there.

        Raises:
            WrongInput: when the folder is not one that driver and actors share.
        """
        import ray

        for number, actor in enumerate(self.actors):
            path, token = folder / f".probe-{number}.tmp", secrets.token_hex(8)
            try:
                ray.get(actor.probe.remote(path, token))
                seen = path.read_text()
            except (OSError, ray.exceptions.RayTaskError) as error:
                raise WrongInput(
                    f"--out {folder.parent}: not a folder that workers and driver share: {error}"
                ) from None
            if seen != token:
                raise WrongInput(f"--out {folder.parent}: a worker writes to a folder of another machine")
            path.unlink()

    def stop(self) -> None:
        """Ends the actors, whatever they are doing."""
        import ray

        for actor in self.actors:
            ray.kill(actor)


def start_pool(session: Session, resources: Resources, say: Callable[[str], None] = lambda line: None) -> SearchPool:
    """Starts the actors and waits until each answers.

    Args:
        session: where.
        resources: how many, and what each is given.
        say: called with a line now and then while some do not answer yet.

    Raises:
        WrongInput: when the session's own machine cannot hold one actor, or actors land on unlike devices.
    """
    import ray

    gpus = resources.gpus if resources.gpus is not None else float(session.gpus > 0)
    if session.local and gpus > session.gpus:
        raise WrongInput(f"--gpus-per-worker {gpus:g}: this machine has {session.gpus:g} GPUs")
    if session.local and resources.cpus > session.cpus:
        raise WrongInput(f"--cpus-per-worker {resources.cpus:g}: this machine has {session.cpus:g} processors")
    room = session.cpus // resources.cpus if resources.cpus else session.cpus
    if gpus:
        room = min(room, session.gpus / gpus)
    room = max(1, int(room))
    workers = resources.workers or room
    if session.local and workers > room:
        raise WrongInput(f"--workers {workers}: this machine has room for {room} of this size")
    # A dead actor is started again by Ray; a shard is never tried again by Ray, the queue counts the tries.
    options = {"num_cpus": resources.cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
    remote = ray.remote(**options)(_actor_class())
    actors = tuple(remote.remote(_ROOT, resources.threads, f"worker-{number}") for number in range(workers))
    devices = _wait_for(actors, say)
    if len(devices) > 1:
        raise WrongInput("the workers have unlike devices (cpu and cuda); results would differ between them")
    return SearchPool(actors, devices.pop(), gpus)


def _wait_for(actors: Sequence[Any], say: Callable[[str], None]) -> set[str]:
    """The devices of all actors, once all have answered."""
    import ray

    pings = [actor.ping.remote() for actor in actors]
    while True:
        ready, missing = ray.wait(pings, num_returns=len(pings), timeout=WAIT_SECONDS)
        if not missing:
            break
        say(f"waiting for workers: {len(ready)} of {len(pings)} answer")
    try:
        return set(ray.get(pings))
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"a worker could not be started: {' '.join(str(error).split())[:500]}") from None


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

        def ping(self) -> str:
            return self._actor.ping()

        def probe(self, path: Path, token: str) -> None:
            self._actor.probe(path, token)

        def fitting_batch(self, shared: Any, shape: tuple[int, int, int], block: int, share: float) -> int:
            return self._actor.fitting_batch(shared, shape, block, share)

        def search(self, shard: Any) -> Any:
            return self._actor.search(shard)

    return Search
