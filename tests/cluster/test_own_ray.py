"""A Ray of a command's own: what dies is told in a line, what it leaves is cleared away."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.own_ray import KEPT_LOGS, _sweep

NETS = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10, bias=False)
        torch.nn.init.eye_(self.linear.weight)
    def forward(self, images):
        return self.linear(images.flatten(1))
"""
WORDS = (
    "attack de --model nets:Net --data digits --limit 40 --as-given --population 100 --generations 20000 "
    "--shard-size 1 --workers 1 --out run"
)


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A temp folder of Ray's; its path is short, since a socket's name has 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def started(tmp_path: Path, ray_folder: Path) -> "subprocess.Popen[str]":
    """A search that goes on for minutes, once a part of it is written."""
    (tmp_path / "nets.py").write_text(NETS)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.main", *WORDS.split()],
        cwd=tmp_path,
        env=os.environ | {"RAY_TMPDIR": str(ray_folder), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("run/parts/part-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return process


def descendants(process: int) -> dict[int, str]:
    """The processes below one, and what each is called."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(file.read_text().rpartition(")")[2].split()[1]), []).append(int(file.parent.name))
        except OSError:
            continue
    found, waiting = {}, [process]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            waiting.append(child)
    return found


def require_gone(processes: dict[int, str]) -> None:
    deadline = time.monotonic() + 60
    while left := [name for process, name in processes.items() if Path(f"/proc/{process}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("gcs_server", "Ray's control service (GCS) was killed by SIGKILL"),
        ("raylet/raylet", "Ray's raylet was killed by SIGKILL"),
        ("ray::DashboardAgent", "agent"),
    ],
)
def test_a_part_of_ray_that_dies_ends_the_command_in_a_line(
    part: str, said: str, tmp_path: Path, ray_folder: Path
) -> None:
    process = started(tmp_path, ray_folder)
    below = descendants(process.pid)
    os.kill(next(number for number, name in below.items() if part in name.split(" --")[0]), signal.SIGKILL)
    _, told = process.communicate(timeout=300)
    last = [line for line in told.splitlines() if line.startswith("brittle: ")]
    assert process.returncode == 1
    assert len(last) == 1
    assert said in last[0]
    assert "run the same command again to go on" in last[0]
    assert "Owner Id" not in told
    require_gone(below)
    (session,) = ray_folder.glob("ray/session_2*")
    assert any((session / "logs").iterdir())  # something failed


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_a_signal_to_all_of_a_terminal_ends_everything_and_leaves_nothing(
    name: str, tmp_path: Path, ray_folder: Path
) -> None:
    process = started(tmp_path, ray_folder)
    below = descendants(process.pid)
    os.killpg(process.pid, signal.Signals[name])
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert told.splitlines()[-1].startswith("interrupted: ")
    assert "shards are done in" in told.splitlines()[-1]
    require_gone(below)
    assert list((ray_folder / "ray").glob("session_*")) == []


def test_what_a_killed_driver_left_is_cleared_away_and_nobody_elses(tmp_path: Path) -> None:
    def session(name: str, *, ours: bool = True) -> Path:
        folder = tmp_path / f"session_{name}"
        (folder / "logs").mkdir(parents=True)
        (folder / "logs" / "raylet.out").touch()
        (folder / "sockets").mkdir()
        if ours:
            (folder / ".brittle").touch()
        return folder

    foreign, *dead = session("a", ours=False), *(session(f"b{number}") for number in range(KEPT_LOGS + 2))
    alive = session("c")
    with (alive / ".brittle").open() as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        _sweep(tmp_path)
    assert (foreign / "sockets").is_dir()
    assert (alive / "sockets").is_dir()
    assert [folder.exists() for folder in dead] == [False, False] + [True] * KEPT_LOGS
    assert not any((folder / "sockets").exists() for folder in dead)
    assert all((folder / "logs" / "raylet.out").exists() for folder in dead[2:])
