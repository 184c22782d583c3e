"""Real data and a real model, made once a session."""

import fcntl
import hashlib
import inspect
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.pool import Resources, SearchPool
from cluster.session import Session, open_session
from workers.evaluation.dense import DenseEvaluator
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.models.loading import read_model
from workers.places import Place
from workers.sources import load_data
from workers.training.classifiers import Recipe, train
from workers.training.plain import Plain

# Ray's workers give way to all else that computes on the machine (niceness 15): tests beside them would starve them.
os.environ.setdefault("RAY_worker_niceness", "0")

WITHOUT_RAY = {
    *("analysis", "workers"),
    *("test_cluster_files.py", "test_frozen.py", "test_lease.py", "test_parts.py", "test_store.py"),
}
"""Folders and files of tests that start no Ray."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With pytest-xdist: tests of the cluster in one process, others with Ray in another, the rest beside them."""
    from xdist.scheduler import LoadScopeScheduling

    class RayApart(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            parts = Path(file).parts
            if not WITHOUT_RAY.isdisjoint(parts):
                return file
            return "cluster" if "cluster" in parts else "jobs"

    return RayApart(config, log)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of a bucket on an S3 server of this machine, which the environment leads to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                deadline = time.monotonic() + 120
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", port), timeout=1).close()
                        break
                    except OSError:
                        assert server.poll() is None
                        assert time.monotonic() < deadline
                        time.sleep(0.1)
                import s3fs

                s3fs.S3FileSystem().mkdir("brittle")
                yield "s3://brittle"
        finally:
            server.kill()


@pytest.fixture(params=["disk", "s3"])
def free_place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where nothing is yet: on a disk, and on S3."""
    if request.param == "disk":
        return Place.of(tmp_path / "run")
    return Place.of(f"{request.getfixturevalue('s3')}/{tmp_path.parent.name}-{tmp_path.name}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a filesystem needs root and the right to do so")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    return load_data("mnist", "test")


@pytest.fixture(scope="session")
def mnist_folder(request: pytest.FixtureRequest, mnist: Dataset) -> Path:
    """The seed's CNN after two epochs on the 60,000 training images, kept until what makes it changes."""
    makers = [inspect.getfile(thing) for thing in (CNN, train, Plain, Dataset)]
    version = hashlib.sha256(b"".join(Path(maker).read_bytes() for maker in makers)).hexdigest()[:12]
    folder = request.config.cache.mkdir(f"mnist-{version}")
    torch.set_num_threads(2)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the same test run may be training it
        epochs = list(train(load_data("mnist", "train"), mnist, Recipe(epochs=2), folder, on_batch=lambda *_: None))
    torch.set_num_threads(1)
    assert epochs[-1].accuracy > 0.97
    return folder


@pytest.fixture(scope="session")
def mnist_model(mnist_folder: Path) -> nn.Module:
    return read_model(str(mnist_folder)).build()


@pytest.fixture(scope="session")
def correct(mnist: Dataset, mnist_model: nn.Module) -> np.ndarray:
    """The ids of the test images that the model classifies correctly."""
    predictions = DenseEvaluator(mnist_model).logits(torch.tensor(mnist.images)).argmax(dim=1).numpy()
    return np.flatnonzero(predictions == mnist.labels)


class _KeptPool(SearchPool):
    """Stays when a command that used it ends, once what the command left in flight has ended too."""

    def fits(self, resources: Resources) -> bool:
        """Whether it is one of these, and lost no worker for good."""
        return self.resources == resources and len(self.actors) == self._made

    def stop(self) -> None:
        import ray

        asked = [actor.device.remote() for actor in self.actors]
        ray.wait(asked, num_returns=len(asked), timeout=self.resources.patience)


@pytest.fixture(scope="module")
def kept_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Ray, and its workers, for all commands that a module's tests run in this process.

    Starting them costs a command more than a small search does. The commands follow one another in the same workers
    as the searches of one `brittle run` do. A test of a command with a Ray of its own runs it in a process of its own.

    Yields:
        A folder of modules that the workers can import.
    """
    modules = tmp_path_factory.mktemp("modules")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(modules))
        opened: list[Session] = []
        pools: list[_KeptPool] = []

        @contextmanager
        def session(address: str | None = None, say: Callable[[str], None] = print) -> Iterator[Session]:
            assert address is None
            if not opened:
                with chdir(modules):  # the working directory is what Ray puts on the workers' path
                    opened.append(stack.enter_context(open_session()))
            yield opened[0]

        def pool(session: Session, resources: Resources, say: Callable[[str], None]) -> SearchPool:
            if not pools or not pools[0].fits(resources):
                pools.insert(0, _KeptPool(session, resources, say))
                for other in pools[1:]:
                    SearchPool.stop(other)
                del pools[1:]
            pools[0].say = say
            return pools[0]

        patch.setattr("jobs.launch.open_session", session)
        patch.setattr("jobs.launch.SearchPool", pool)
        yield modules


class ColourNet(nn.Module):
    """Not the seed's: three channels, non-square, batch normalisation, pooling, odd layer widths."""

    SHAPE = (3, 7, 6)
    CLASSES = 7

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 17, 3, padding=1),
            nn.BatchNorm2d(17),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(17 * 3 * 3, 50),
            nn.Tanh(),
            nn.Linear(50, self.CLASSES),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


def random_model(kind: str, seed: int) -> tuple[nn.Module, tuple[int, int, int], int]:
    """A model with random weights, the image shape it takes and its number of classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "colour":
            model: nn.Module = ColourNet()
            return model.eval(), ColourNet.SHAPE, ColourNet.CLASSES
        return CNN(1, 9, 12, 4).eval(), (1, 9, 12), 4


def random_images(shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """Random uint8 images with saturated levels among them."""
    images = np.random.default_rng(seed).integers(-60, 316, (count, *shape))
    return np.clip(images, 0, 255).astype(np.uint8)
