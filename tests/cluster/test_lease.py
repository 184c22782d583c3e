"""Leases: one holder, whatever happens to the one before."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import lease
from cluster.lease import Lease, leased
from workers.errors import StorageError, WrongInput
from workers.places import Place

ROOT = Path(__file__).parent.parent.parent

HOLD = """
import sys, time
from cluster.lease import Lease
from workers.places import Place
with Lease(Place.of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def folder(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A free folder on S3, and a faster heart."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 3.0)
    return Place.of(f"{s3}/{tmp_path.parent.name}-{tmp_path.name}")


def start(folder: Place) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def change(folder: Place, name: str, **process: Any) -> None:
    """Gives a lease to a process elsewhere."""
    content = json.loads((folder / name).read())
    (folder / name).write(json.dumps(content | {"process": content["process"] | process}).encode())


def test_one_holder_and_nothing_left(folder: Place) -> None:
    assert not leased(folder)
    with Lease(folder) as holder:
        assert leased(folder)
        with pytest.raises(WrongInput, match="another brittle is writing there"), Lease(folder):
            pass
        holder.confirm()
    assert not leased(folder)
    assert folder.names() == []


def test_a_killed_holder_on_this_host_is_followed_at_once(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 1e9)
    with start(folder) as process:
        assert leased(folder)
        process.kill()
    assert not leased(folder)
    with Lease(folder):
        assert folder.names() == [".lease-000002"]
    assert folder.names() == []


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"boot": "before"}, {"namespace": "another container"}])
def test_a_silent_holder_elsewhere_is_watched_then_followed(folder: Place, other: dict[str, str]) -> None:
    with start(folder) as process:
        process.kill()
    change(folder, ".lease-000001", **other)
    before = time.monotonic()
    with Lease(folder):
        assert time.monotonic() - before >= lease.PATIENCE_SECONDS
        assert folder.names() == [".lease-000002"]


FOREIGN = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"process": {}}',
    b'{"token": "x", "beat": 1, "process": {"host": "h", "node": 5}}',
]


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A free folder where the contents of leases can be tried quickly, and a faster heart."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 0.3)
    return Place.of(tmp_path)


@pytest.mark.parametrize("content", FOREIGN)
def test_a_lease_that_cannot_be_read_and_stands_still_is_followed(local: Place, content: bytes) -> None:
    (local / ".lease-000009").write(content)
    (local / ".lease-contract").write(b"no lease")
    assert not leased(local)
    with Lease(local):
        assert local.names() == [".lease-000010", ".lease-contract"]


def test_a_lease_that_cannot_be_read_and_moves_is_held(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PATIENCE_SECONDS", 60.0)
    here, ended = local / ".lease-000001", threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.02):
            here.write(b"another version's %d" % (count := count + 1))

    here.write(b"another version's")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(beat)
        try:
            with pytest.raises(WrongInput, match="another brittle is writing there"), Lease(local):
                pass
        finally:
            ended.set()


def test_a_holder_whose_lease_somebody_overwrote_stops(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 1e9)
    with Lease(local) as holder:
        (local / ".lease-000001").write(b"{")
        monkeypatch.setattr(lease, "BEAT_SECONDS", -1.0)  # whatever is confirmed is too old
        with pytest.raises(StorageError, match="another brittle took this folder over"):
            holder.confirm()


def test_a_heartbeat_that_comes_after_the_takeover_leaves_nothing(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    beating, go_on, write = threading.Event(), threading.Event(), Place.write

    def slow(place: Place, content: bytes) -> None:
        if place.name == ".lease-000001":
            beating.set()
            assert go_on.wait(60)
        write(place, content)

    monkeypatch.setattr(Place, "write", slow)
    with Lease(local) as first:
        assert beating.wait(60)
        later = local / ".lease-000002"
        assert later.create(b"a newcomer's")
        (local / ".lease-000001").remove()
        go_on.set()
        first._thread.join(60)
        with pytest.raises(StorageError, match="another brittle took this folder over"):
            first.check()
        assert local.names() == [".lease-000002"]
    assert local.names() == [".lease-000002"]


def test_a_slow_holder_that_ends_takes_its_old_lease_along(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 1e9)
    with Lease(local):
        (local / ".lease-000002").write(b"a newcomer's")
    assert local.names() == [".lease-000002"]
    (local / "other").path.mkdir()
    with Lease(local / "other"):
        (local / "other" / ".lease-000001").write(b"somebody else's")
    assert (local / "other").names() == [".lease-000001"]


def test_older_generations_do_not_matter(local: Place) -> None:
    with Lease(local):
        alive = (local / ".lease-000001").read()
    (local / ".lease-1000000").write(b"stands still")
    (local / ".lease-000001").write(alive)  # of a process that runs, and beats no more
    (local / ".lease-999999").write(b"older")
    with Lease(local):
        assert local.names() == [".lease-1000001"]


def test_clocks_do_not_matter(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(folder) as process:
        change(folder, ".lease-000001", host="elsewhere")
        for hour in (-3600, 3600):
            monkeypatch.setattr(time, "time", lambda hour=hour: 1_800_000_000.0 + hour)
            with pytest.raises(WrongInput, match="another brittle"), Lease(folder):
                pass
        process.kill()


def test_a_holder_that_was_stopped_gives_way(folder: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(folder) as slow:
        monkeypatch.setattr(lease.Lease, "_look", lambda self: None)  # its heart stands still
        content = json.loads((folder / ".lease-000001").read())
        later = folder / ".lease-000002"
        assert later.create(json.dumps(content | {"token": "another"}).encode())
        monkeypatch.undo()
        monkeypatch.setattr(lease, "BEAT_SECONDS", -1.0)  # whatever is confirmed is too old
        with pytest.raises(StorageError, match="another brittle took this folder over"):
            slow.confirm()
        with pytest.raises(StorageError, match="another brittle took this folder over"):
            slow.check()
    assert later.exists()


def test_a_stopped_process_finds_out_when_it_goes_on(folder: Place) -> None:
    program = HOLD.replace("time.sleep(120)", "[(time.sleep(.1), held.check()) for _ in range(600)]")
    program = program.replace("with Lease(Place.of(sys.argv[1])):", "with Lease(Place.of(sys.argv[1])) as held:")
    command = [sys.executable, "-c", program, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        os.kill(process.pid, signal.SIGSTOP)
        with Lease(folder):
            os.kill(process.pid, signal.SIGCONT)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1
            assert "another brittle took this folder over" in said
            assert folder.names() == [".lease-000002"]


def test_of_several_who_start_at_once_one_wins(folder: Place) -> None:
    together, here = threading.Barrier(6), folder / ".lease-000001"

    def create(number: int) -> bool:
        together.wait()
        return here.create(str(number).encode())

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(create, range(6)))
    assert [number for number, created in enumerate(won) if created] == [int(here.read())]


def test_a_bucket_that_is_not_there(s3: str) -> None:
    with pytest.raises(WrongInput, match=r"--out s3://no-such-bucket/run/.lease-000001: The specified bucket"):
        Lease(Place.of("s3://no-such-bucket/run")).__enter__()
