"""JSMA's three maps: success and cost by source and target, speed beside torchattacks, and peak memory.

    python benchmarks/jsma.py --model MODEL [--digits 100]

Every correctly classified digit is moved towards all nine other classes, θ = 1, γ = .145 (Papernot et al.'s).
The rates include whatever else the machine does. torchattacks, where it is installed, has the first of the digits
and all their targets, and the maps are timed on the same between its rounds. Peak memory is that of a process of
its own.
"""

import argparse
import itertools
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from analysis.matrix import source_target_matrix
from analysis.statistics import Rate
from workers.attacks import JSMA
from workers.evaluation.dense import DenseEvaluator
from workers.images import Dataset
from workers.models.loading import read_model
from workers.sources import load_data

MAPS = ("prediction", "classes", "pair")
GAMMA = 0.145
CLASSES = 10
DIGITS_AT_ONCE = 28


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model for MNIST")
    parser.add_argument("--digits", type=int, default=100, help="correctly classified test digits")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's")
    parser.add_argument("--peer-digits", type=int, default=12, help="of these, for torchattacks")
    parser.add_argument("--rounds", type=int, default=2, help="of the comparison with torchattacks")
    parser.add_argument("--memory", action="store_true", help="only the peak memory, in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(f"{peak_of_a_large_image():.2f}")
        return
    if options.model is None:
        parser.error("--model is needed")
    model = read_model(options.model).build()
    test = load_data("mnist", "test")
    right = DenseEvaluator(model).logits(torch.tensor(test.images)).argmax(dim=1).numpy() == test.labels
    ids = np.flatnonzero(right)[: options.digits]

    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}; θ = 1, γ = {GAMMA}")
    print(f"{len(ids)} digits × {CLASSES - 1} targets; the share of pixels is the mean over the successes")
    print(f"{'map':<20} {'success':<42} {'pixels':>7} {'steps':>6} {'images·targets/s':>17}")
    tables = {}
    for name, weighted in itertools.product(MAPS, (False, True)):
        table, seconds = towards_all(JSMA(map=name, gamma=GAMMA, weighted=weighted), model, test, ids)
        if weighted:
            name = f"{name}, weighted"
        else:
            tables[name] = table
        success = table["success"].to_numpy()
        rate = Rate(int(success.sum()), len(success))
        pixels = table["l0"].to_numpy()[success].mean() / test.images[0].size
        steps = table["generations"].to_numpy().mean()
        print(f"{name:<20} {rate!s:<42} {pixels:>7.2%} {steps:>6.1f} {len(table) / seconds:>17.1f}")
    print(f"{'Papernot':<20} {'97 %, another network':<42} {'4.02%':>7}")
    print("all of a digit's targets count as independent in the interval\n")
    for name, table in tables.items():
        print_matrix(name, table)
    print_peers(model, test, ids[: options.peer_digits], options.rounds)
    command = [sys.executable, __file__, "--memory", "--threads", str(options.threads)]
    peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    print(f"peak memory, pair map, one 3×224×224 image towards nine targets, five steps: {peak} GB resident")


def towards_all(attack: JSMA, model: nn.Module, test: Dataset, ids: np.ndarray) -> tuple[pa.Table, float]:
    """The rows of every digit towards every other class, and the seconds they took."""
    parts, started = [], time.perf_counter()
    for start in range(0, len(ids), DIGITS_AT_ONCE):
        repeated = np.repeat(ids[start : start + DIGITS_AT_ONCE], CLASSES - 1)
        labels = test.labels[repeated]
        targets = (labels + 1 + np.arange(len(repeated)) % (CLASSES - 1)) % CLASSES
        parts.append(attack(model, test.images[repeated], labels, targets=targets, ids=repeated).to_table())
    return pa.concat_tables(parts), time.perf_counter() - started


def print_matrix(name: str, table: pa.Table) -> None:
    """Success and share of pixels by source (down) and target (across), in per cent."""
    matrix = source_target_matrix(table, CLASSES)
    print(f"{name}: success %, from (down) to (across){'':<18} share of pixels %")
    header = "    " + "".join(f"{target:>5}" for target in range(CLASSES))
    print(f"{header}   {header}")
    for source in range(CLASSES):
        shown = [
            "".join(f"{'–' if np.isnan(value) else format(100 * value, style):>5}" for value in part[source])
            for part, style in ((matrix.rates, ".0f"), (matrix.features, ".1f"))
        ]
        print(f"{source:>4}{shown[0]}   {source:>4}{shown[1]}")
    print()


def print_peers(model: nn.Module, test: Dataset, ids: np.ndarray, rounds: int) -> None:
    """Images·targets a second of each map beside torchattacks, the same digits and targets, turn by turn."""
    try:
        import torchattacks
    except ImportError:
        print("torchattacks is not installed: no comparison")
        return
    repeated = np.repeat(ids, CLASSES - 1)
    labels = test.labels[repeated]
    targets = (labels + np.tile(np.arange(1, CLASSES), len(ids))) % CLASSES
    images = torch.tensor(test.images[repeated]).float() / 255
    peer = torchattacks.JSMA(model, theta=1.0, gamma=GAMMA)
    peer.set_mode_targeted_by_label(quiet=True)
    rates: dict[str, list[float]] = {name: [] for name in (*MAPS, "torchattacks")}
    outcome: dict[str, tuple[float, float]] = {}
    for _ in range(rounds):
        for name in MAPS:
            started = time.perf_counter()
            result = JSMA(map=name, gamma=GAMMA)(model, test.images[repeated], labels, targets=targets)
            rates[name].append(len(repeated) / (time.perf_counter() - started))
            outcome[name] = result.success.mean(), result.distances.l0[result.success].mean() / images[0].numel()
        started = time.perf_counter()
        found = peer(images, torch.tensor(targets))
        rates["torchattacks"].append(len(repeated) / (time.perf_counter() - started))
        reached = model(found).argmax(dim=1).numpy() == targets
        changed = (found != images).flatten(1).sum(dim=1).numpy()[reached].mean() / images[0].numel()
        outcome["torchattacks"] = reached.mean(), changed
    print(f"{len(ids)} digits × {CLASSES - 1} targets, medians of {rounds} rounds, each timed one after the other")
    print(f"{'':<14} {'images·targets/s':>17} {'ratio':>7} {'success':>8} {'pixels':>7}")
    for name, (success, pixels) in outcome.items():
        ratio = statistics.median(mine / its for mine, its in zip(rates[name], rates["torchattacks"], strict=True))
        rate = statistics.median(rates[name])
        print(f"{name:<14} {rate:>17.1f} {ratio:>6.1f}× {success:>8.1%} {pixels:>7.2%}")
    print()


def peak_of_a_large_image() -> float:
    """Gigabytes that this process has had resident after the pair map on a 3×224×224 image, all targets."""
    torch.manual_seed(0)
    layers: list[Any] = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32 * 49, CLASSES)).eval()
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224), dtype=np.uint8)
    label = DenseEvaluator(model).logits(torch.tensor(image)).argmax(dim=1).numpy()
    count = CLASSES - 1
    targets = (label[0] + 1 + np.arange(count)) % CLASSES
    attack = JSMA(map="pair", max_steps=5)
    result = attack(model, image.repeat(count, axis=0), label.repeat(count), targets=targets)
    assert result.generations.max() > 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
