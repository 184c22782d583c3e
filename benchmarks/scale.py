"""What the queue costs: the driver's time a shard, its memory in the number of images, two workers beside one.

    python benchmarks/scale.py --model MODEL [--rounds 5] [--only shards]

shards: a thousand shards with nothing to search (one image each, misclassified already), through real actors, parts
and summaries; the driver's time is its processor time, Ray's threads in it included. Then what waiting for more calls
than two adds to that. memory: the same with up to a
million images through `brittle attack`, the driver's own memory looked at twenty times a second. workers: one search
by a pool of one and of two workers by turns, and by plain processes without Ray: what the machine's second processor
gives; the ratios are medians over rounds.

simulation: what a thousand workers would make of a hundred million images, from constants that the other parts
measure. Each worker searches a shard for a time that varies (lognormal, σ = 0.3), then waits until the driver has
taken its summary and handed out the next; the driver serves one at a time. Left out: nodes that fail, a results store
that is slower than the search, and Ray itself at that size, which no machine here can show.
"""

import argparse
import heapq
import json
import multiprocessing
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch

from cluster.completion import Completion
from cluster.pool import Resources, SearchPool
from cluster.queue import Done
from cluster.session import Session, open_session
from cluster.store import Plan, RunFolder
from workers.attacks import FGSM, Attack, IterativeFGSM
from workers.images import Dataset
from workers.models.loading import ModelRecipe, read_model
from workers.places import Place
from workers.sources import load_data

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison of pools")
    parser.add_argument("--only", default="", choices=["", "shards", "memory", "workers", "simulation"])
    parser.add_argument("--driver-ms", type=float, default=2.0, help="of the simulation: the driver's time a shard")
    parser.add_argument("--image-seconds", type=float, default=0.03, help="of a worker's search for an image")
    parser.add_argument("--part-bytes", type=float, default=7000, help="of a part without rows")
    parser.add_argument("--row-bytes", type=float, default=330, help="of an image in a part")
    parser.add_argument("--id-bytes", type=float, default=60, help="of the driver's memory for an image")
    options = parser.parse_args()
    print(f"{platform.machine()}, python {platform.python_version()}")
    if options.only in ("", "shards", "workers"):
        with open_session() as session:
            if options.only != "workers":
                time_shards(session, read_model(options.model))
            if options.only != "shards":
                compare_pools(session, read_model(options.model), options.rounds)
    if options.only in ("", "memory"):
        measure_memory(options.model)
    if options.only in ("", "simulation"):
        simulate(options)


def a_pool(session: Session, count: int) -> SearchPool:
    """A pool whose workers run."""
    pool = SearchPool(session, Resources(workers=count))
    pool.start()
    return pool


def searched(
    pool: SearchPool, recipe: ModelRecipe, attack: Attack, dataset: Dataset, ids: np.ndarray, size: int
) -> tuple[float, float, int]:
    """Seconds of a whole search, the driver's processor seconds, and the shards."""
    with tempfile.TemporaryDirectory() as folder:
        place = RunFolder(Place.of(folder))
        frozen = {"seed": 0, "block": 16, "batch": 64}
        plan = Plan(frozen, {}, ids, None, (attack.params_hash,), size)
        place.create(plan)
        completion = Completion(place, plan, (attack,), dataset, done=())
        model = pool.share(recipe)
        started, processor = time.perf_counter(), time.process_time()
        done = sum(isinstance(event, Done) for event in completion.run(pool, model, timeout=600))
        assert done == plan.shards
        return time.perf_counter() - started, time.process_time() - processor, done


def time_shards(session: Session, recipe: ModelRecipe) -> None:
    """The driver's time for shards of one image that is misclassified already."""
    dataset = load_data("mnist", "test")
    nothing = Dataset(dataset.images, (dataset.labels + 1) % 10, dataset.split, dataset.name)
    print(f"\n{'workers':>7} {'shards':>7} {'seconds':>8} {'driver ms a shard':>18}")
    for count in (1, 2):
        pool = a_pool(session, count)
        searched(pool, recipe, FGSM(epsilon=0.01), nothing, np.arange(20), 1)  # the model is built, the code is warm
        seconds, processor, shards = searched(pool, recipe, FGSM(epsilon=0.01), nothing, np.arange(1000), 1)
        print(f"{count:>7} {shards:>7} {seconds:>8.2f} {1000 * processor / shards:>18.2f}")
        pool.stop()
    print("waiting for one of", end="")
    for count in (2, 100, 1000):
        print(f" {count} calls {1000 * time_waiting(count):.2f} ms,", end="")
    print(" processor time of the driver")


def time_waiting(count: int) -> float:
    """The driver's processor seconds for seeing one of many calls end, as the queue does it."""
    import asyncio

    import ray

    class Sleeper:
        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    sleeper = ray.remote(num_cpus=0, max_concurrency=2 * count)(Sleeper).remote()
    others = [sleeper.sleep.remote(600) for _ in range(count - 1)]
    ended = [sleeper.sleep.remote(0) for _ in range(100)]
    ray.get(ended)
    started = time.process_time()
    for one in ended:
        references = [*others, one]
        ray.wait(references, num_returns=1, timeout=1)
        ray.wait(references, num_returns=len(references), timeout=0)
    seconds = (time.process_time() - started) / len(ended)
    ray.kill(sleeper)
    return seconds


SEARCH = IterativeFGSM(steps=100, step_size=1e-4)  # so small a step that no search ends early
IMAGES, SHARD = 960, 32


def compare_pools(session: Session, recipe: ModelRecipe, rounds: int) -> None:
    """A search by one worker and by two; and by plain processes, for what the machine's second processor gives."""
    dataset, ids = load_data("mnist", "test"), np.arange(IMAGES)
    times: dict[str, list[float]] = {name: [] for name in ("queue 1", "queue 2", "plain 1", "plain 2")}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as plain:
        halves = [(recipe, ids[::2]), (recipe, ids[1::2])]
        list(plain.map(_plain, *zip(*[(recipe, ids[:SHARD])] * 2, strict=True)))  # both are up, with the model built
        for _ in range(rounds):
            for count in (1, 2):
                pool = a_pool(session, count)
                searched(pool, recipe, SEARCH, dataset, ids[:16], 8)
                times[f"queue {count}"].append(searched(pool, recipe, SEARCH, dataset, ids, SHARD)[0])
                pool.stop()
            for count, work in ((1, [(recipe, ids)]), (2, halves)):
                started = time.perf_counter()
                list(plain.map(_plain, *zip(*work, strict=True)))
                times[f"plain {count}"].append(time.perf_counter() - started)
    print()
    for name in ("queue", "plain"):
        one, two = times[f"{name} 1"], times[f"{name} 2"]
        ratios = [first / second for first, second in zip(one, two, strict=True)]
        shown = ", ".join(f"{first:.1f}/{second:.1f}" for first, second in zip(one, two, strict=True))
        what = "the queue, one worker and two" if name == "queue" else "plain processes, one and two"
        print(f"{what}: {statistics.median(ratios):.2f}× (seconds of each round: {shown})")


def _plain(recipe: ModelRecipe, ids: np.ndarray) -> int:
    """The same search in this process, without Ray; how many images it had."""
    torch.set_num_threads(1)
    dataset = load_data("mnist", "test")
    model = recipe.build()
    for start in range(0, len(ids), SHARD):
        some = ids[start : start + SHARD]
        SEARCH(model, dataset.images[some], dataset.labels[some], ids=some)
    return len(ids)


def measure_memory(model: str) -> None:
    """The driver's memory at the end of runs over more and more images."""
    print(f"\n{'images':>10} {'shards':>7} {'seconds':>8} {'own memory, MB':>15} {'with mapped files, MB':>22}")
    before = 0.0
    for count in (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tiny_model.py").write_text(
                "import torch\n\n\ndef net():\n    torch.manual_seed(0)\n"
                "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
            )
            rng = np.random.default_rng(0)
            images = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
            write_idx(Path(folder) / "t10k-images-idx3-ubyte", images)
            write_idx(Path(folder) / "t10k-labels-idx1-ubyte", rng.integers(0, 10, count).astype(np.uint8))
            command = [sys.executable, "-m", "jobs.attack", "fgsm", "--model", "tiny_model:net", "--data", "."]
            own, peak, seconds = watched([*command, "--out", "run", "--workers", "2", "--shard-size", "1000"], folder)
            shards = len(list((Path(folder) / "run" / "parts").glob("*.parquet")))
            assert json.loads((Path(folder) / "run" / "run.json").read_text())["images"] == count
            grown = f"   {1e6 * (own - before) / (count * 0.9):.0f} bytes an image more" if before else ""
            print(f"{count:>10,} {shards:>7} {seconds:>8.1f} {own:>15.0f} {peak:>22.0f}{grown}", flush=True)
            before = own


def simulate(constants: argparse.Namespace) -> None:
    """A thousand workers and a hundred million images, by shard size."""
    driver, image, memory = constants.driver_ms / 1000, constants.image_seconds, constants.id_bytes
    crew, images = 1000, 100_000_000
    print(
        f"\n{crew:,} workers, {images:,} images of 784 bytes; {1000 * driver:g} ms of the driver a shard, "
        f"{image:g} s a worker an image\ndriver's memory for ids and rows {images * memory / 1e9:.1f} GB, "
        f"without any waiting {images * image / crew / 3600:.2f} h"
    )
    print(
        f"{'shard':>6} {'part files':>11} {'part, kB':>9} {'all, GB':>8} {'hours':>7} {'workers busy':>13} "
        f"{'driver busy':>12} {'MB/s out':>9}"
    )
    for size in (4, 16, 64, 256, 1024, 4096):
        shards, part = -(-images // size), constants.part_bytes + size * constants.row_bytes
        seconds = _makespan(crew, min(shards, 2_000_000), size * image, driver) * max(1, shards / 2_000_000)
        print(
            f"{size:>6} {shards:>11,} {part / 1e3:>9.1f} {shards * part / 1e9:>8.0f} {seconds / 3600:>7.2f} "
            f"{images * image / crew / seconds:>13.1%} {shards * driver / seconds:>12.1%} "
            f"{images * 784 / 1e6 / seconds:>9.1f}"
        )


def _makespan(crew: int, shards: int, mean: float, driver: float) -> float:
    """Seconds until the last of the shards is done, each worker served in the order in which it is free."""
    rng, free = np.random.default_rng(0), 0.0
    times = mean * rng.lognormal(-(0.3**2) / 2, 0.3, shards)
    waiting = [0.0] * crew  # when each worker asks for its next shard
    for took in times.tolist():
        free = max(free, waiting[0]) + driver
        heapq.heapreplace(waiting, free + took)
    return max(waiting)


def write_idx(path: Path, array: np.ndarray) -> None:
    """An IDX file of unsigned bytes."""
    with path.open("wb") as file:
        file.write(b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape))
        array.tofile(file)


def watched(command: list[str], folder: str) -> tuple[float, float, float]:
    """The most anonymous and the most resident memory (MB) of a process, and its seconds."""
    started, own, peak = time.perf_counter(), 0.0, 0.0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, **quiet) as process:  # type: ignore[call-overload]
        while process.poll() is None:
            try:
                status = dict(
                    line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                )
                own = max(own, int(status["RssAnon"].split()[0]) / 1000)
                peak = max(peak, int(status["VmHWM"].split()[0]) / 1000)
            except (OSError, KeyError):
                pass  # it has just ended
            time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(process.stderr.read().decode())
    return own, peak, time.perf_counter() - started


if __name__ == "__main__":
    main()
