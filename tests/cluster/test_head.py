"""A real head with a token: ``ray job submit`` and how jobs end there, and drivers that join it."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cluster.conftest import ROOT, Head

WAIT_SECONDS = 240


@dataclass
class Submitted:
    """A job that runs: the client that follows it, and the job's results folder."""

    name: str
    client: subprocess.Popen[str]
    out: Path

    def end(self) -> tuple[int, str]:
        """The client's exit code and all that it showed, the job's own lines among it."""
        said, _ = self.client.communicate(timeout=WAIT_SECONDS)
        return self.client.returncode, said


def submit(head: Head, tree: Path, out: Path, name: str, command: str, **environment: str) -> Submitted:
    arguments = ["ray", "job", "submit", "--address", head.dashboard, "--submission-id", name, "--working-dir", "."]
    arguments += ["--", "python", "-m", "jobs.attack", *command.split(), "--out", str(out)]
    return Submitted(
        name,
        subprocess.Popen(
            arguments,
            cwd=tree,
            env=head.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ),
        out,
    )


@pytest.fixture(scope="module")
def jobs(head: Head, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Submitted]]:
    """All jobs at once; they share the head's four workers."""
    folder = tmp_path_factory.mktemp("results")
    subject = "--data images.npz --workers 1"
    commands = {
        "good": f"pgd --steps 5 --epsilon 0.1,0.3 --model mymodels:Slow --shard-size 5 {subject}",
        "wrong": "fgsm --model mymodels:absent --data images.npz",
        "fleeting": "fgsm --model mymodels:Slow --data images.npz",
        "moody": f"fgsm --model mymodels:Moody --shard-size 20 {subject}",
        "stopped": f"ifgsm --model mymodels:Slow --shard-size 1 {subject}",
    }
    started = {
        name: submit(head, tree, Path("run") if name == "fleeting" else folder / name, name, command)
        for name, command in commands.items()
    }
    yield started
    for job in started.values():
        job.client.kill()
        job.client.communicate()


def test_without_the_token_nothing_is_submitted(head: Head, tree: Path, tmp_path: Path) -> None:
    for mode in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "another"}):
        code, said = submit(head, tree, tmp_path / "out", "refused", "fgsm --help", **mode).end()
        assert code == 1
        assert "Authentication" in said
        assert "submitted successfully" not in said
    assert not (tmp_path / "out").exists()


def test_a_job_runs_the_shipped_code_to_its_end(jobs: dict[str, Submitted], head: Head) -> None:
    scrape(head.metrics, "good", ray_brittle_workers=1)  # a gauge goes with its process
    code, said = jobs["good"].end()
    assert code == 0, said
    assert "1 worker on cpu" in said
    assert "/80 rows" in said  # progress
    assert "untargeted: success" in said
    rows = pq.read_table(jobs["good"].out / "parts")
    assert len(rows) == 80
    exported = scrape(head.metrics, "good", ray_brittle_rows_total=80, ray_brittle_shard_seconds_count=8)
    assert exported["ray_brittle_queries_total"] > 0
    assert exported["ray_brittle_worker_seconds_total"] > 1
    status = rows["status"].to_pylist()
    assert exported.get("ray_brittle_successes_total", 0) == status.count("success")
    assert exported["ray_brittle_searched_total"] == status.count("success") + status.count("exhausted")


def scrape(address: str, run: str, **expected: float) -> dict[str, float]:
    """A run's samples by name, as Prometheus reads them, once they hold what is expected."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if f'run="{run}"' in line]
        assert all('attack="pgd"' in line for line in lines)
        samples = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
        if expected.items() <= samples.items():
            return samples
        assert time.monotonic() < deadline, samples
        time.sleep(0.5)


def test_wrong_input_arrives_as_failed(jobs: dict[str, Submitted]) -> None:
    code, said = jobs["wrong"].end()
    assert code == 1
    assert "mymodels has no function 'absent'" in said
    assert "exit code 2" in said
    assert not jobs["wrong"].out.exists()


def test_results_that_would_go_with_the_job_are_refused(jobs: dict[str, Submitted]) -> None:
    code, said = jobs["fleeting"].end()
    assert code == 1
    assert "--out run: lies in the job's own copy of the working directory" in said
    assert "exit code 2" in said


def test_failed_rows_arrive_as_failed(jobs: dict[str, Submitted]) -> None:
    code, said = jobs["moody"].end()
    assert code == 1
    assert "exit code 1" in said
    assert "not in the mood" in said
    rows = pq.read_table(jobs["moody"].out / "parts")
    assert rows["status"].to_pylist() == ["failed"] * 40


def test_a_stopped_job_keeps_what_it_has(jobs: dict[str, Submitted], head: Head, tree: Path) -> None:
    job = jobs["stopped"]
    deadline = time.monotonic() + WAIT_SECONDS
    while not list(job.out.glob("parts/part-*.parquet")):
        assert job.client.poll() is None, job.end()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    stop = ["ray", "job", "stop", "--address", head.dashboard, job.name]
    subprocess.run(stop, env=head.environment, check=True, capture_output=True, timeout=WAIT_SECONDS)
    _, said = job.end()
    assert "was stopped" in said
    assert "run the same command again to resume" in said
    assert 0 < len(list(job.out.glob("parts/part-*.parquet"))) < 40


JOIN = """
import sys
from cluster.session import open_session
from workers.errors import WrongInput
try:
    with open_session(sys.argv[1], lambda line: print(line, flush=True)) as session:
        import ray

        @ray.remote(num_cpus=0)
        def origins():
            import importlib
            return [importlib.import_module(name).__file__ for name in ("workers", "nets.mine")]

        print(session.local, *ray.get(origins.remote()))
except WrongInput as error:
    print("refused:", error)
"""


def join(here: Path, address: str, environment: dict[str, str]) -> str:
    """What a driver in a folder says of a cluster."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address],
        cwd=here,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "mine.py").touch()
    return tmp_path


def test_actors_get_the_drivers_code(here: Path, head: Head) -> None:
    local, ours, theirs = join(here, head.address, head.environment).split()
    assert local == "False"
    assert ours.endswith("/workers/__init__.py")
    assert theirs.endswith("/nets/mine.py")
    assert all("/_ray_pkg_" in path for path in (ours, theirs))


def test_a_named_token_is_sent_without_being_told_to(here: Path, head: Head) -> None:
    environment = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_MODE"}
    assert join(here, head.address, environment).startswith("False")


def test_a_token_that_others_can_read_is_warned_of(here: Path, head: Head) -> None:
    copy = here / "token"
    copy.write_text(Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text())
    copy.chmod(0o644)
    first, second = join(here, head.address, head.environment | {"RAY_AUTH_TOKEN_PATH": str(copy)}).splitlines()
    assert first == f"warning: the token in {copy} can be read by others (mode 644): chmod 600 {copy}"
    assert second.startswith("False")


def test_without_the_right_token_a_driver_is_refused(here: Path, head: Head, clean_environment: dict[str, str]) -> None:
    for environment, says in (
        (clean_environment, "wants a token: set RAY_AUTH_TOKEN_PATH"),
        (clean_environment | {"RAY_AUTH_TOKEN": "another"}, "wants another token than the one given"),
        (
            clean_environment | {"RAY_AUTH_TOKEN_PATH": "/absent"},
            "RAY_AUTH_TOKEN_PATH is set but file cannot be opened",
        ),
    ):
        [line] = join(here, head.address, environment).splitlines()
        assert line.startswith(f"refused: --address {head.address}: ")
        assert says in line


AGE = """
import sys
from ray._raylet import GcsClient
import json
client = GcsClient(address=sys.argv[1])
key = b"CLUSTER_METADATA"
held = client.internal_kv_get(key, b"cluster")
client.internal_kv_put(key, json.dumps(json.loads(held) | {"python_version": sys.argv[2]}).encode(), True, b"cluster")
print(json.loads(held)["python_version"])
"""


def test_a_head_of_another_python_is_refused(here: Path, head: Head) -> None:
    def age(version: str) -> str:
        command = [sys.executable, "-c", AGE, head.address, version]
        return subprocess.run(command, env=head.environment, check=True, capture_output=True, text=True).stdout.strip()

    before = age("3.8.0")
    try:
        [line] = join(here, head.address, head.environment).splitlines()
    finally:
        age(before)
    assert line.startswith(f"refused: --address {head.address}: ")
    assert "Python: 3.8.0" in line
    assert before in line


def test_a_command_joins_with_the_users_model(here: Path, head: Head) -> None:
    model = "import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Sequential(torch.nn.Flatten(), "
    (here / "nets" / "mine.py").write_text(model + "torch.nn.Linear(64, 10))\n")
    command = [sys.executable, "-m", "jobs.main", "attack", "fgsm", "--model", "nets.mine:net", "--data", "digits"]
    command += ["--limit", "20", "--workers", "1", "--out", "run", "--address", head.address]
    environment = head.environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 0, done.stderr
    assert set(pq.read_table(here / "run" / "parts")["status"].to_pylist()) <= {"success", "exhausted", "already_wrong"}
