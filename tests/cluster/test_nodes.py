"""Clusters whose nodes come and go: a real Ray head with nodes of its own on this machine."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.pool import Resources, SearchPool
from cluster.queue import Done, Queue, Work
from cluster.session import open_session
from tests.chaos import FallibleCluster
from tests.conftest import random_images
from workers.actor import Shard
from workers.attacks import FGSM
from workers.models.loading import read_model
from workers.places import Place

ROOT = Path(__file__).parents[2]
SLOW_MODEL = """
import os, pathlib, time, torch
class Slow(torch.nn.Module):
    '''While there is a folder "together" here, it waits for a second process to ask it, a minute at most.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(16, 3)
    def forward(self, x):
        time.sleep({seconds})
        together, deadline = pathlib.Path({folder!r}, "together"), time.monotonic() + 60
        if together.exists():
            (together / str(os.getpid())).touch()
            while len(list(together.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(.1)
        return self.linear(x.flatten(1))
"""


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[FallibleCluster]:
    started = FallibleCluster(request.param)
    yield started
    started.stop()


@pytest.mark.parametrize("cluster", [1], indirect=True)
def test_a_shard_is_not_to_blame_for_nodes_that_are_lost(
    cluster: FallibleCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_model_a.py").write_text(SLOW_MODEL.format(seconds=2, folder=str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    loads: list[Work] = []

    with open_session(cluster.address) as session:
        pool = SearchPool(session, Resources(workers=1))
        pool.start()
        model = pool.share(read_model("slow_model_a:Slow"))

        def load(work: Work) -> Shard:
            loads.append(work)
            if len(loads) <= 3:  # the worker is on the oldest node, and finds the new one when that is gone
                cluster.add()
                threading.Timer(1, cluster.kill_node, [0]).start()
            images, part = random_images((1, 4, 4), 3, 0), Place.of(tmp_path / "part.parquet")
            few = np.zeros(3, int)
            return Shard(
                str(work), model, (FGSM(epsilon=0.1),), 0, np.arange(3), images, few, None, "all", 16, 64, part, part
            )

        queue = Queue(
            pool,
            [Work(0)],
            load,
            lambda _: 3,
            model=model,
            attacks=(FGSM(epsilon=0.1),),
            folder=Place.of(tmp_path),
            timeout=60,
        )
        events = [event for event in queue if event is not None]
        pool.stop()
    assert [type(event) for event in events] == [Done]
    assert loads == [Work(0)] * 4


def attack(folder: Path, address: str, *flags: str) -> "subprocess.Popen[str]":
    """A search of forty images, a shard each, by the command line."""
    (folder / "slow_model.py").write_text(SLOW_MODEL.format(seconds=0.1, folder=str(folder)))
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (40, 4, 4), np.uint8), labels=np.arange(40) % 3)
    command = [sys.executable, "-m", "jobs.attack", "fgsm", "--model", "slow_model:Slow", "--data", "images.npz"]
    return subprocess.Popen(
        [*command, "--shard-size", "1", "--address", address, "--out", "run", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_without_room_for_any_worker_it_ends_with_a_reason(cluster: FallibleCluster, tmp_path: Path) -> None:
    _, said = (process := attack(tmp_path, cluster.address, "--worker-timeout", "3")).communicate(timeout=120)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("brittle: no worker could start within 3 s (--worker-timeout): each needs")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("cluster", [2], indirect=True)
def test_a_search_ends_on_the_workers_that_remain_and_uses_those_that_come(
    cluster: FallibleCluster, tmp_path: Path
) -> None:
    process = attack(tmp_path, cluster.address)
    assert process.stderr is not None
    for line in process.stderr:
        if "workers on" in line or "worker on" in line:
            break
    while not (tmp_path / "run" / "run.json").exists():  # one worker looks at the model before the search begins
        assert process.poll() is None
        time.sleep(0.1)
    cluster.kill_node(0)  # for good
    (tmp_path / "together").mkdir()  # so that the worker that remains is not done before others come
    cluster.add()
    cluster.add()  # one more than there were
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    rows = pq.read_table(tmp_path / "run" / "parts")
    assert sorted(rows["image_id"].to_pylist()) == list(range(40))
    assert len({name.split("@")[0] for name in rows["worker"].to_pylist()}) >= 2
