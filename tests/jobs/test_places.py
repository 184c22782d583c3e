"""Whole runs on S3 and on a full disk: killed, resumed, merged, and two drivers at once."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.main import main
from workers.places import Place

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.usefixtures("s3", "kept_ray")  # in this order: the workers are started with the way to S3

FLAGS = ("--correct", "--limit", "120", "--target", "6", "--shard-size", "3", "--workers", "1")


def attack(model: Path, out: str, steps: int = 150) -> list[str]:
    return ["attack", "ifgsm", "--model", str(model), "--data", "mnist", "--out", out, *FLAGS, "--steps", str(steps)]


def rows(folder: str) -> list[dict[str, Any]]:
    """Every row as any reader of Parquet sees them, without what may differ."""
    import s3fs

    files = s3fs.S3FileSystem(use_listings_cache=False)
    where: dict[str, Any] = {"filesystem": files} if "://" in folder else {}
    table = pq.read_table(f"{folder.removeprefix('s3://')}/parts", **where).drop_columns(["seconds", "worker"])
    return sorted(table.to_pylist(), key=lambda row: row["image_id"])


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    pipe, command = subprocess.PIPE, [sys.executable, "-m", "jobs.main", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for_parts(out: str, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while len((Place.of(out) / "parts").names()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_on_s3_killed_resumed_and_merged(
    s3: str, mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{s3}/runs/killed"
    process = start(attack(mnist_folder, out))
    try:
        wait_for_parts(out, 2, process)
        assert main(attack(mnist_folder, out)) == 2
        assert f"--out {out}: another brittle is writing there" in capsys.readouterr().err
        assert main(["compact", out]) == 2
        assert "another brittle is writing there" in capsys.readouterr().err
        assert main(["status", out]) == 0
        assert "running" in capsys.readouterr().out
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    left = len((Place.of(out) / "parts").names())
    assert 2 <= left < 40
    assert main(["status", out]) == 0
    assert "stopped, resumable, " in capsys.readouterr().out
    assert main(["compact", out]) == 0
    assert "files are now" in capsys.readouterr().out  # the killed driver's worker may still have ended its shard
    assert main(attack(mnist_folder, out)) == 0
    assert f"results in {out}; check them with: brittle verify {out}" in capsys.readouterr().out
    assert main(["compact", out]) == 0
    assert Place.of(out).names() == ["parts", "plan.parquet", "run.json"]
    assert (Place.of(out) / "parts").names() == ["part-000000-000039.parquet"]
    assert main(["verify", out]) == 0
    assert "all 120 rows agree" in capsys.readouterr().out
    assert main(["status", out]) == 0
    assert "complete, 120 of 120 rows, 40 of 40 shards" in capsys.readouterr().out
    assert main(["report", out, "--out", str(tmp_path / "page.html")]) == 0
    calm = str(tmp_path / "calm")
    assert main(attack(mnist_folder, calm)) == 0
    assert rows(out) == rows(calm)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("s3://no-such-bucket/run", "--out s3://no-such-bucket/run"),
        ("s3://", "expected a folder"),
        ("nowhere://bucket/run", "nowhere"),
        ("memory://run", "--out memory://run: not a folder that workers and driver share"),
    ],
)
def test_places_that_cannot_hold_a_run(
    out: str, said: str, s3: str, mnist_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(attack(mnist_folder, out)) == 2
    err = capsys.readouterr().err.strip()
    assert said in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("brittle: ")


@pytest.mark.parametrize("command", ["status", "verify", "compact"])
def test_a_store_that_does_not_answer(command: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        environment = os.environ | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_MAX_ATTEMPTS": "1",
        }
        call = [sys.executable, "-W", "error", "-m", "jobs.main", command, "s3://bucket/run"]
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("brittle: s3://bucket/run/run.json: Could not connect to the endpoint")
    assert len(done.stderr.splitlines()) == 1


def test_another_s_folder_on_s3_is_left_alone(s3: str, mnist_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Place.of(f"{s3}/foreign") / "precious").write(b"1")
    assert main(attack(mnist_folder, f"{s3}/foreign")) == 2
    assert "is not a run's folder" in capsys.readouterr().err
    assert Place.of(f"{s3}/foreign").names() == ["precious"]


def test_a_disk_that_fills_up_in_the_middle(
    small_disk: Path, mnist_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = attack(mnist_folder, str(small_disk / "run"), steps=20)
    assert main(command) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("brittle: failed: ")
    assert "No space left on device" in err[-1]
    assert "run the same command again" in err[-1]
    assert all(name.startswith("part-") for name in Place.of(small_disk / "run" / "parts").names())
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert main(command) == 0
    assert main(["verify", str(small_disk / "run")]) == 0
    assert "all 120 rows agree" in capsys.readouterr().out
