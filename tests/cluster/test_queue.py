"""The queue on a real Ray: workers that die, poison shards, workers that are gone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from cluster.pool import Resources, SearchPool, start_pool
from cluster.queue import TRIES, ShardFailure, run_shards
from cluster.session import Session, open_session
from tests.conftest import random_images
from workers.actor import Shard, ShardSummary, SharedModel
from workers.attacks import FGSM
from workers.errors import WrongInput
from workers.models.loading import read_model

POISON = """
import os, pathlib, torch
class Poison(torch.nn.Module):
    '''Kills its process when it sees level 200 in the corner; dies once, whoever it is, where a file says so.'''
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 3)
    def forward(self, x):
        if (x[:, 0, 0, 0] * 255).round().eq(200).any():
            os.kill(os.getpid(), 9)
        once = pathlib.Path({once!r})
        if (x[:, 0, 0, 0] * 255).round().eq(100).any() and once.exists():
            once.unlink()
            os.kill(os.getpid(), 9)
        return self.linear(x.flatten(1))
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("code")
    (folder / "poison_model.py").write_text(POISON.format(once=str(folder / "once")))
    (folder / "once").touch()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with open_session() as opened:
            yield opened
    finally:
        os.chdir(here)


@pytest.fixture
def pool(session: Session) -> Iterator[SearchPool]:
    started = start_pool(session, Resources(workers=2))
    yield started
    started.stop()


def shard_of(index: int, corner: int, folder: Path, model: SharedModel) -> Shard:
    images = random_images((1, 4, 4), 3, index) // 2
    images[1, 0, 0, 0] = corner
    part = folder / f"part-{index}.parquet"
    return Shard(
        index,
        model,
        (FGSM(),),
        0,
        np.arange(3),
        images,
        np.zeros(3, int),
        None,
        "all",
        16,
        64,
        part,
        folder / "b" / part.name,
    )


def test_a_dead_worker_costs_its_shard_alone_a_try(pool: SearchPool, tmp_path: Path) -> None:
    model = pool.share(read_model("poison_model:Poison"))
    corners = dict.fromkeys(range(12), 0) | {5: 200, 8: 100}  # 5 always kills, 8 kills once
    loads: list[int] = []

    def load(index: int) -> Shard:
        loads.append(index)
        return shard_of(index, corners[index], tmp_path, model)

    events = [event for event in run_shards(pool, range(12), load) if event is not None]
    done = sorted(event.index for event in events if isinstance(event, ShardSummary))
    failed = [event for event in events if isinstance(event, ShardFailure)]
    assert done == [index for index in range(12) if index != 5]
    assert [event.index for event in failed] == [5]
    assert failed[0].reason
    assert loads.count(5) == TRIES
    assert loads.count(8) == 2
    assert sum(map(loads.count, set(range(12)) - {5, 8})) == 10
    assert {path.name for path in tmp_path.iterdir()} == {f"part-{index}.parquet" for index in done}


def test_a_worker_killed_from_outside_is_replaced(pool: SearchPool, tmp_path: Path) -> None:
    model = pool.share(read_model("poison_model:Poison"))
    pids = ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in pool.actors])
    killed = []

    def load(index: int) -> Shard:
        if index == 3 and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)
        return shard_of(index, 0, tmp_path, model)

    events = [event for event in run_shards(pool, range(8), load) if event is not None]
    assert sorted(event.index for event in events) == list(range(8))
    assert all(isinstance(event, ShardSummary) for event in events)


def test_without_any_worker_the_rest_fails(session: Session, tmp_path: Path) -> None:
    pool = start_pool(session, Resources(workers=1))
    model = pool.share(read_model("poison_model:Poison"))
    pool.stop()
    events = list(run_shards(pool, range(3), lambda index: shard_of(index, 0, tmp_path, model)))
    failed = [event for event in events if isinstance(event, ShardFailure)]
    assert sorted(event.index for event in failed) == [0, 1, 2]


def test_a_part_that_cannot_be_written_is_a_failure_not_a_hang(pool: SearchPool, tmp_path: Path) -> None:
    model = pool.share(read_model("poison_model:Poison"))
    events = [
        event
        for event in run_shards(pool, range(2), lambda index: shard_of(index, 0, tmp_path / "absent", model))
        if event is not None
    ]
    assert all(isinstance(event, ShardFailure) for event in events)
    assert "No such file or directory" in str(events[0])


def test_resources_that_are_not_there(session: Session) -> None:
    for wrong, says in (
        (Resources(gpus=0.5), "--gpus-per-worker"),
        (Resources(cpus=1000), "--cpus-per-worker"),
        (Resources(workers=1000), "--workers"),
    ):
        with pytest.raises(WrongInput, match=says):
            start_pool(session, wrong)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "no-such-host.invalid:6379"])
def test_no_cluster_at_the_address(address: str) -> None:
    with pytest.raises(WrongInput, match="--address"), open_session(address):
        pass
