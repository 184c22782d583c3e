"""Kills drivers, workers and nodes at random while a search runs, and holds what is left against an undisturbed run.

    python -m tests.chaos --kills 200 --model MODEL --data mnist

A Ray cluster of its own, with several nodes on this machine and GPUs that exist in name only, is given the same
search again and again: whenever its driver dies it is started once more by the same command, and when a run is
complete it is checked and the next begins, until enough has been killed. Ends with exit code 1 when a row was lost,
doubled or differs.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from cyclopts import App, Parameter
from tqdm import tqdm

__all__ = ["Damage", "FallibleCluster", "app", "rampage"]

ROOT = Path(__file__).parent.parent
NODES = 3
SEARCH = ("ifgsm", "--steps", "50", "--correct", "--limit", "400", "--shard-size", "8", "--target", "random")
PATIENCE = 900.0
"""Seconds within which a run must end whatever is killed; a search that hangs is a failure."""

app = App(name="chaos", help=__doc__)


@dataclass
class Damage:
    """What was killed, and what became of the rows.

    Attributes:
        kills: by kind: driver, worker, node.
        runs: how many runs came to their end.
        rows: of all these runs.
        lost, doubled, differing: rows that were not there, there twice, or not those of the undisturbed run.
        given_up: rows with status ``failed`` that a driver left; its next start searched them again.
        problems: what else was wrong.
    """

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    given_up: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def none(self) -> bool:
        """Whether every row is there once and as it should be."""
        return self.runs > 0 and not (self.lost or self.doubled or self.differing or self.problems)

    def __str__(self) -> str:
        killed = ", ".join(f"{count} {kind}s" for kind, count in sorted(self.kills.items()))
        lines = [
            f"killed        {self.kills.total()}: {killed}",
            f"runs          {self.runs} complete, {self.rows} rows",
            f"rows lost     {self.lost}",
            f"rows doubled  {self.doubled}",
            f"rows other than in the undisturbed run  {self.differing}",
            f"rows given up meanwhile, and searched again  {self.given_up}",
        ]
        return "\n".join([*lines, *self.problems])


class FallibleCluster:
    """Ray on this machine with a head that has no room for workers, and nodes that come and go.

    Args:
        nodes: how many there are at first, each with a processor and a GPU in name.
    """

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        # A dead node is noticed in about two seconds instead of a quarter of a minute.
        config = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_timeout_ms": 1500}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": config}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add()

    def add(self) -> None:
        """Starts a node, which joins a little later."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, num_gpus=1, wait=False))

    def kill_node(self, number: int) -> None:
        """Kills a node with all that runs on it; 0 is the oldest."""
        self._cluster.remove_node(self._nodes.pop(number), allow_graceful=False)

    def kill_worker(self, chance: random.Random) -> bool:
        """Kills one search actor's process."""
        raylets = {info.process.pid for node in self._nodes for info in node.all_processes["raylet"]}
        actors = [pid for pid, parent, name in _processes() if parent in raylets and name.startswith("ray::Search")]
        if not actors:
            return False
        try:
            os.kill(chance.choice(actors), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    @property
    def nodes(self) -> int:
        """How many nodes there are besides the head."""
        return len(self._nodes)

    def stop(self) -> None:
        self._cluster.shutdown()


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process id, parent and command line of every process here."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            yield int(entry.name), parent, (entry / "cmdline").read_text()
        except (OSError, ValueError, IndexError):
            continue


@contextmanager
def _driver(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _rows(run: Path) -> pa.Table:
    """What a run came to, without what may differ, sorted by key."""
    table = pq.read_table(run / "parts").drop_columns(["seconds", "worker"])
    return table.sort_by([("image_id", "ascending"), ("target", "ascending")])


def _failed(run: Path) -> int:
    """The rows of a run that is at rest whose search failed."""
    status = [pq.read_table(part, columns=["status"])["status"] for part in run.glob("parts/part-*.parquet")]
    return sum(value == "failed" for column in status for value in column.to_pylist())


def _examine(run: Path, undisturbed: pa.Table, damage: Damage) -> None:
    found = _rows(run)
    want, have = (
        list(zip(t["image_id"].to_pylist(), t["target"].to_pylist(), strict=True)) for t in (undisturbed, found)
    )
    damage.runs += 1
    damage.rows += len(found)
    damage.lost += len(set(want) - set(have))
    damage.doubled += len(have) - len(set(have))
    if len(have) == len(want):
        damage.differing += sum(a != b for a, b in zip(undisturbed.to_pylist(), found.to_pylist(), strict=True))
    verify = subprocess.run([sys.executable, "-m", "jobs.verify", str(run)], cwd=ROOT, capture_output=True, text=True)
    if verify.returncode:
        damage.problems.append(f"brittle verify ended with {verify.returncode}: {verify.stdout}{verify.stderr}")
    left = [path.name for path in run.iterdir() if path.name not in ("run.json", "plan.parquet", "parts")]
    if left or list(run.rglob("*.tmp")):
        damage.problems.append(f"left in the run's folder: {left or 'temporary files'}")


def rampage(model: str, data: str, kills: int, seed: int, folder: Path) -> Damage:
    """Kills until enough is killed and the last run is complete.

    Args:
        model, data: what is attacked.
        kills: at least so many.
        seed: of the kills' times and kinds.
        folder: for the runs and the drivers' log.
    """
    chance, damage, cluster = random.Random(seed), Damage(), FallibleCluster(NODES)
    log = folder / "drivers.log"
    command = [sys.executable, "-m", "jobs.attack", *SEARCH, "--model", model, "--data", data, "--gpus-per-worker", "1"]
    command += ["--workers", str(NODES), "--address", cluster.address, "--retry-failed"]
    try:
        calm = folder / "undisturbed"
        with _driver([*command, "--out", str(calm)], log) as process:
            if process.wait(PATIENCE):
                raise RuntimeError(f"the undisturbed run failed: {log.read_text()[-3000:]}")
        undisturbed = _rows(calm)
        with tqdm(total=kills, desc="kills") as bar:
            while damage.kills.total() < kills and not damage.problems:
                run = folder / f"run-{damage.runs}"
                _disturb([*command, "--out", str(run)], log, cluster, chance, damage, kills, bar)
                if not damage.problems:
                    _examine(run, undisturbed, damage)
                    shutil.rmtree(run)
    finally:
        cluster.stop()
    return damage


def _disturb(
    command: list[str],
    log: Path,
    cluster: FallibleCluster,
    chance: random.Random,
    damage: Damage,
    kills: int,
    bar: Any,
) -> None:
    """Runs one search to its end, however often it has to be started, killing all the while."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with _driver(command, log) as process:
            life = time.monotonic() + chance.uniform(0, 25)
            while process.poll() is None:
                time.sleep(chance.uniform(0.1, 1.5))
                if time.monotonic() > deadline:
                    damage.problems.append(f"a run did not end within {PATIENCE:g} s: {log.read_text()[-3000:]}")
                    return
                if damage.kills.total() >= kills:  # the rest in peace
                    for _ in range(cluster.nodes, NODES):
                        cluster.add()
                    continue
                if time.monotonic() > life:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kind: str | None = "driver"
                elif chance.random() < 0.7:
                    kind = "worker" if cluster.kill_worker(chance) else None
                elif cluster.nodes < NODES:
                    cluster.add()
                    kind = None
                else:
                    cluster.kill_node(chance.randrange(cluster.nodes))
                    kind = "node"
                if kind:
                    damage.kills[kind] += 1
                    bar.update()
                    bar.set_postfix_str(", ".join(f"{count} {name}s" for name, count in damage.kills.items()))
            if process.returncode == 0:
                return
            damage.given_up += _failed(Path(command[-1]))
            if process.returncode not in (1, -signal.SIGKILL):
                damage.problems.append(f"a driver ended with {process.returncode}: {log.read_text()[-3000:]}")
                return


@app.default
def chaos(
    *,
    model: str,
    data: str = "mnist",
    kills: Annotated[int, Parameter(help="How many processes and nodes to kill at least.")] = 200,
    seed: int = 0,
) -> int:
    """
    Args:
        model: A model folder.
        data: A data set's name or path.
        seed: Of the times and kinds of the kills.
    """
    with tempfile.TemporaryDirectory(prefix="brittle-chaos-") as folder:
        damage = rampage(str(Path(model).resolve()), data, kills, seed, Path(folder))
    print(damage)
    return 0 if damage.none else 1


if __name__ == "__main__":
    sys.exit(app())
