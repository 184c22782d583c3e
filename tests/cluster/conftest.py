"""A real Ray head with token authentication, and a tree as a user would ship it."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
STOP_SECONDS = 5


@dataclass(frozen=True)
class Head:
    """A head: its addresses, and the environment of a client with its token."""

    address: str
    dashboard: str
    metrics: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def clean_environment() -> dict[str, str]:
    """This process's, without anything that other tests told Ray, and with this Python's programs first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def head(clean_environment: dict[str, str]) -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = clean_environment | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with contextlib.ExitStack() as held:
        ports = [held.enter_context(socket.create_server(("", 0))).getsockname()[1] for _ in range(9)]
    names = ("port", "dashboard-port", "metrics-export-port", "ray-client-server-port", "node-manager-port")
    names += ("object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    flags = [f"--{name}={port}" for name, port in zip((*names, "runtime-env-agent-port"), ports, strict=True)]
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", f"--temp-dir={folder}", *flags]
    log = (folder / "head.log").open("w")
    started = subprocess.Popen(
        [*command, "--dashboard-host=127.0.0.1"],
        env=environment | {"RAY_metrics_report_interval_ms": "1000"},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (said := (folder / "head.log").read_text()):
            assert started.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        local = [f"127.0.0.1:{port}" for port in ports]
        yield Head(local[0], f"http://{local[1]}", f"http://{local[2]}/metrics", environment)
    finally:
        started.terminate()
        _end_all_of(folder)
        started.wait()
        log.close()
        shutil.rmtree(folder)


def _end_all_of(folder: Path) -> None:
    """Waits until no process that was started for a temporary folder is left, and kills those that stay."""
    deadline = time.monotonic() + STOP_SECONDS
    while left := _processes_of(folder):
        if time.monotonic() > deadline:
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


def _processes_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


MODELS = """
import time
import torch
from layers import Linear

class Slow(Linear):
    def forward(self, images):
        time.sleep(.1)
        return super().forward(images)

class Moody(Linear):
    '''Takes the zeros that the driver tries it on, and nothing else.'''
    def forward(self, images):
        if len(images) > 2:
            raise ValueError('not in the mood')
        return super().forward(images)
"""

LAYERS = """
import torch
import workers
assert '_ray_pkg_' in {file}, {file}  # {why}

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(64, 10)
    def forward(self, images):
        return self.linear(images.flatten(1))
"""


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """brittle's own tree with a user's models and images in it, and with much that should stay at home.

    The user's modules refuse to be imported where brittle is not the shipped one.
    """
    folder = tmp_path_factory.mktemp("tree")
    for package in ("analysis", "cluster", "jobs", "workers", "tests", "benchmarks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "README.md", "constraints.txt", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "mymodels.py").write_text(MODELS)
    (folder / "layers.py").write_text(LAYERS.format(file="workers.__file__", why="the shipped brittle"))
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", images=rng.integers(0, 256, (40, 8, 8), np.uint8), labels=np.arange(40) % 10)
    junk = (".venv/lib/python3.11/site-packages/torch.py", ".git/objects/pack", "experiment/jsma/parts/part.parquet")
    junk += ("runs/pgd/run.json", "__pycache__/mymodels.pyc", "workers/__pycache__/actor.pyc", "build/lib/x.py")
    junk += (
        ".mypy_cache/x.json",
        ".pytest_cache/x",
        ".ruff_cache/x",
        "model/epoch-001.optimizer",
        "brittle.egg-info/x",
    )
    for name in junk:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(rng.bytes(100_000))
    return folder
