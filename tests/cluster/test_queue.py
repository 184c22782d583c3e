"""The queue on a real Ray: workers that die, hang or run out of memory, poison rows, workers that are unfit."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cluster.pool import Resources, SearchPool
from cluster.queue import TRIES, Done, Lost, Narrowed, Queue, Work
from cluster.session import Session, open_session
from tests.conftest import random_images
from workers.actor import Shard, SharedModel
from workers.attacks import FGSM
from workers.errors import WrongInput
from workers.models.loading import read_model
from workers.places import Place

ROWS = 3
ATTACKS = (FGSM(epsilon=0.1),)
KILLS, ONCE, HANGS, STARVES = 200, 100, 201, 202
"""What the model does when it sees this level in an image's corner."""

POISON = """
import os, pathlib, time, torch
class Poison(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 3)
    def forward(self, x):
        corner = (x[:, 0, 0, 0] * 255).round()
        once = pathlib.Path({once!r})
        if corner.eq(200).any():
            os.kill(os.getpid(), 9)
        if corner.eq(100).any() and once.exists():
            once.unlink()
            os.kill(os.getpid(), 9)
        if corner.eq(201).any():
            time.sleep(1000)
        if corner.eq(202).any():
            raise MemoryError("not that large")
        return self.linear(x.flatten(1))

class Foreign:
    '''An attack that cannot be read while a file says so.'''
    PACKAGE = None
    def __reduce__(self):
        return _read, ()

def _read():
    # Two workers read at once: "once" is for the one that removes the file.
    foreign = pathlib.Path({foreign!r})
    try:
        if foreign.read_text() == "once":
            foreign.unlink()
    except FileNotFoundError:
        return Foreign()
    raise ImportError("no such toolkit here")
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "poison_model.py").write_text(POISON.format(once=str(folder / "once"), foreign=str(folder / "foreign")))
    (folder / "once").touch()
    here = Path.cwd()
    os.chdir(folder)
    sys.path.append(str(folder))
    try:
        with open_session() as opened:
            yield opened
    finally:
        os.chdir(here)
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def kept(session: Session) -> Iterator[list[tuple[SearchPool, list[Any]]]]:
    """The pools that were needed, the latest last, and the workers that each began with."""
    made: list[tuple[SearchPool, list[Any]]] = []
    yield made
    for pool, _ in made:
        pool.stop()


@pytest.fixture
def pool(session: Session, kept: list[tuple[SearchPool, list[Any]]]) -> SearchPool:
    """Two workers that run: those that the test before had, unless it lost one for good."""
    if not kept or kept[-1][0].actors != kept[-1][1]:
        for spoilt, _ in kept[-1:]:
            spoilt.stop()
        fresh = SearchPool(session, Resources(workers=2))
        kept.append((fresh, list(fresh.actors)))
    pool = kept[-1][0]
    pool.say = lambda line: None
    pool.start()
    return pool


def shard_of(work: Work, corner: int, folder: Path, model: SharedModel) -> Shard:
    """A shard of three images, of which the second has a level in its corner; or one of its rows."""
    images = random_images((1, 4, 4), ROWS, work.shard) // 2
    images[1, 0, 0, 0] = corner
    rows = slice(None) if work.row is None else slice(work.row, work.row + 1)
    part = folder / f"part-{work.shard}-{work.row}.parquet"
    return Shard(
        title=str(work),
        model=model,
        attacks=ATTACKS,
        seed=0,
        ids=np.arange(ROWS)[rows],
        images=images[rows],
        labels=np.zeros(ROWS, int)[rows],
        targets=None,
        split="all",
        block=16,
        batch=64,
        part=Place.of(part),
        by_products=Place.of(folder / "b" / part.name),
    )


def a_queue(
    pool: SearchPool,
    folder: Path,
    shards: Iterable[int],
    load: Callable[[Work, SharedModel], Shard],
    attacks: Any = ATTACKS,
    timeout: float = 60,
) -> Queue:
    """A queue of shards of three images each, for the model that may be poisoned."""
    model = pool.share(read_model("poison_model:Poison"))
    return Queue(
        pool,
        map(Work, shards),
        lambda work: load(work, model),
        lambda _: ROWS,
        model=model,
        attacks=attacks,
        folder=Place.of(folder),
        timeout=timeout,
    )


class Searched:
    """A queue of shards run to its end: what happened, and what was handed out."""

    def __init__(self, pool: SearchPool, folder: Path, corners: dict[int, int], timeout: float = 60) -> None:
        self.loads: list[Work] = []

        def load(work: Work, model: SharedModel) -> Shard:
            self.loads.append(work)
            return shard_of(work, corners[work.shard], folder, model)

        queue = a_queue(pool, folder, corners, load, timeout=timeout)
        events = [event for event in queue if event is not None]
        self.done = sorted(
            ((*event.work,) for event in events if isinstance(event, Done)), key=lambda w: (w[0], w[1] or 0)
        )
        self.narrowed = [event for event in events if isinstance(event, Narrowed)]
        self.lost = [event for event in events if isinstance(event, Lost)]


def test_a_poison_shard_is_narrowed_to_its_image(pool: SearchPool, tmp_path: Path) -> None:
    corners = dict.fromkeys(range(12), 0) | {5: KILLS, 8: ONCE}
    found = Searched(pool, tmp_path, corners)
    assert found.done == sorted([(shard, None) for shard in range(12) if shard != 5] + [(5, 0), (5, 2)])
    assert [event.shard for event in found.narrowed] == [5]
    assert [event.work for event in found.lost] == [Work(5, 1)]
    assert "died" in found.lost[0].reason
    assert found.loads.count(Work(5)) == found.loads.count(Work(5, 1)) == TRIES
    assert found.loads.count(Work(8)) == 2
    innocent = [Work(shard) for shard in set(range(12)) - {5, 8}]
    assert [found.loads.count(work) for work in innocent] == [1] * 10
    written = {f"part-{shard}-{row}.parquet" for shard, row in found.done}
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == written


def test_hanging_and_starving_searches_end(pool: SearchPool, tmp_path: Path) -> None:
    found = Searched(pool, tmp_path, {0: 0, 1: HANGS, 2: STARVES, 3: 0}, timeout=4)
    assert {event.work: event.reason.split(",")[0] for event in found.lost} == {
        Work(1, 1): "it took longer than 4 s (--shard-timeout)",
        Work(2, 1): "MemoryError: not that large",
    }
    assert found.done == [(0, None), (1, 0), (1, 2), (2, 0), (2, 2), (3, None)]


def test_a_worker_killed_from_outside_is_replaced(pool: SearchPool, tmp_path: Path) -> None:
    pids = ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in pool.actors])
    killed = []

    def load(work: Work, model: SharedModel) -> Shard:
        if work.shard == 3 and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)
        return shard_of(work, 0, tmp_path, model)

    queue = a_queue(pool, tmp_path, range(8), load)
    events = [event for event in queue if event is not None]
    assert sorted(event.work.shard for event in events if isinstance(event, Done)) == list(range(8))
    assert len(events) == 8


def test_workers_that_are_gone_for_good_are_replaced(pool: SearchPool, tmp_path: Path) -> None:
    gone = list(pool.actors)
    for actor in gone:
        ray.kill(actor)
    assert Searched(pool, tmp_path, {0: 0}).done == [(0, None)]
    assert not set(gone) <= set(pool.actors)


def test_a_part_that_cannot_be_written_ends_the_search(pool: SearchPool, tmp_path: Path) -> None:
    loads: list[Work] = []

    def load(work: Work, model: SharedModel) -> Shard:
        loads.append(work)
        return shard_of(work, 0, tmp_path / "absent" / "deeper", model)

    queue = a_queue(pool, tmp_path, range(100), load)
    with pytest.raises(OSError, match=r"cannot be written: .*No such file"):
        list(queue)
    assert len(set(loads)) < 10  # it does not search a hundred shards for nothing


def test_workers_of_other_versions_are_left_out(
    pool: SearchPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.queue.versions", lambda: {"torch": "1.0"})
    with pytest.raises(WrongInput, match=r"worker-\d@.* has torch 2.*, this machine 1.0"):
        Searched(pool, tmp_path, {0: 0})
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".probe")]


@pytest.mark.parametrize("how_often", ["once", "always"])
def test_workers_that_cannot_read_the_attack(pool: SearchPool, tmp_path: Path, how_often: str) -> None:
    from poison_model import Foreign  # type: ignore[import-not-found]

    said: list[str] = []
    pool.say = said.append
    Path("foreign").write_text(how_often)
    queue = a_queue(
        pool, tmp_path, range(10), lambda work, model: shard_of(work, 0, tmp_path, model), attacks=(Foreign(),)
    )
    reason = "a worker could not make itself ready: ImportError: no such toolkit here"
    if how_often == "once":
        assert [type(event) for event in queue if event is not None] == [Done] * 10
        assert said == [f"another is started: {reason}"]
    else:
        with pytest.raises(WrongInput, match=f"no worker is fit for this search: {reason}"):
            list(queue)
        assert len(said) == TRIES + 2
    Path("foreign").unlink(missing_ok=True)


def test_a_node_that_does_not_answer_is_not_waited_for(
    pool: SearchPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = ray.remote(num_cpus=0)(lambda seconds: time.sleep(seconds))
    monkeypatch.setattr("cluster.queue._proof_of_life", lambda node: silent.remote(300))
    monkeypatch.setattr("cluster.queue.PROOF_SECONDS", 1)
    found = Searched(pool, tmp_path, {0: KILLS, 1: 0})
    assert [event.work for event in found.lost] == [Work(0, 1)]
    assert found.loads.count(Work(0)) == found.loads.count(Work(0, 1)) == TRIES


def test_resources_that_are_not_there(session: Session) -> None:
    for wrong, says in (
        (Resources(gpus=0.5), "--gpus-per-worker"),
        (Resources(cpus=1000), "--cpus-per-worker"),
        (Resources(workers=1000), "--workers"),
    ):
        with pytest.raises(WrongInput, match=says):
            SearchPool(session, wrong)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "no-such-host.invalid:6379"])
def test_no_cluster_at_the_address(address: str) -> None:
    with pytest.raises(WrongInput, match="--address"), open_session(address):
        pass
