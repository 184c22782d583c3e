"""`brittle evaluate` beside AutoAttack: robust accuracy, work and wall seconds on the same digits.

    python benchmarks/autoattack.py MODEL… [--limit 1000] [--epsilon 0.3] [--workers 2] [--steps 10,100] [--out FOLDER]

Each MODEL is a folder of a model for MNIST; needs requirements-toolkits.txt. For each it prints the model's accuracy
and a line for

- ``evaluate``: `brittle evaluate` with its own attacks, in a process of its own;
- ``queue``: `brittle attack torchattacks:AutoAttack`, torchattacks' AutoAttack an image at a time on brittle's queue,
  with the same workers, in a process of its own;
- ``batches, N``: the same four attacks (APGD, targeted APGD, targeted FAB, Square with 5,000 queries), each on what
  those before it left, called in this process as torchattacks means it: batches of 256, a thread for each worker, its
  attacks by gradient with N steps. Its AutoAttack has 10; that of Croce & Hein (2020) has 100.

"Robust" is the share of the digits that are classified right and stay so, with its 95 % Wilson interval; success is
judged on 8-bit images within ⌊255ε⌋ levels for all. "+a −b": a digits that the line breaks and ``evaluate`` does not, b
the other way round. Queries and gradients are images forward and derivatives back, an attack's own checks included.
Wall seconds of the first two are of the whole command, Python and Ray started and stopped; those of the batches are of
the attacks alone. The ratio is theirs over those of ``evaluate``, in the same run.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from analysis.statistics import Rate
from workers.evaluation.dense import DenseEvaluator
from workers.models.loading import read_model
from workers.sources import load_data
from workers.threat import Ball

BATCH = 256


@dataclass(frozen=True)
class Outcome:
    """What became of the digits, and what it cost.

    Attributes:
        stands: bool ``[n]``, whether each digit is classified right and was not broken.
        queries, gradients: over all digits.
        seconds: wall time.
    """

    stands: np.ndarray
    queries: int
    gradients: int
    seconds: float


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder of a model for MNIST")
    parser.add_argument("--limit", type=int, default=1000, help="the first so many test digits")
    parser.add_argument("--epsilon", type=float, default=0.3, help="L∞ budget")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--steps", default="10,100", help="steps of AutoAttack in batches; empty for none")
    parser.add_argument("--out", help="folder that keeps evaluations and runs; a temporary one when absent")
    options = parser.parse_args()
    torch.set_num_threads(options.workers)
    steps = [int(part) for part in options.steps.split(",") if part]
    budget = f"{options.limit} MNIST test digits, L∞ ε = {options.epsilon:g}"
    print(f"{platform.machine()}, {options.workers} workers, torch {torch.__version__}; {budget}")
    with tempfile.TemporaryDirectory() as temporary:
        for number, model in enumerate(options.models):
            folder = Path(options.out or temporary).resolve() / f"{number}-{Path(model).name}"
            compare(model, folder, options.limit, options.epsilon, options.workers, steps)


def compare(model: str, folder: Path, limit: int, epsilon: float, count: int, steps: Sequence[int]) -> None:
    """Prints the lines of a model."""
    digits = load_data("mnist", "test")
    images, labels = digits.images[:limit], digits.labels[:limit]
    network = read_model(model).build().eval()
    right = DenseEvaluator(network).logits(torch.tensor(images)).argmax(dim=1).numpy() == labels
    print(f"\n{model}: {Rate(int(right.sum()), limit)} are classified right")
    print(
        f"{'':<14} {'robust':>36} {'+a −b':>9} {'queries':>11} {'gradients':>11} {'together':>11} {'wall s':>9}"
        f" {'ratio':>7}"
    )
    where = ["--model", str(Path(model).resolve()), "--data", "mnist", "--limit", str(limit), "--workers", str(count)]
    ours = evaluated([*where, "--norm", "linf", "--epsilon", str(epsilon)], folder / "evaluate", limit)
    line("evaluate", ours, ours)
    line("queue", queued([*where, "--norm", "Linf", "--eps", str(epsilon)], folder / "queue", limit), ours)
    for number in steps:
        line(f"batches, {number}", in_batches(network, images, labels, right, epsilon, number), ours)


def line(name: str, outcome: Outcome, ours: Outcome) -> None:
    """Prints one outcome beside that of ``evaluate``."""
    more, fewer = (ours.stands & ~outcome.stands).sum(), (outcome.stands & ~ours.stands).sum()
    print(
        f"{name:<14} {Rate(int(outcome.stands.sum()), len(outcome.stands))!s:>36} {f'+{more} −{fewer}':>9}"
        f" {outcome.queries:>11,} {outcome.gradients:>11,} {outcome.queries + outcome.gradients:>11,}"
        f" {outcome.seconds:>9.1f} {outcome.seconds / ours.seconds:>6.2f}×",
        flush=True,
    )


def evaluated(flags: Sequence[str], out: Path, limit: int) -> Outcome:
    """`brittle evaluate` as a command."""
    return outcome(out / "images.parquet", ("robust", "certified"), limit, command("evaluate", *flags, out=out))


def queued(flags: Sequence[str], out: Path, limit: int) -> Outcome:
    """`brittle attack torchattacks:AutoAttack` as a command."""
    return outcome(out / "parts", ("exhausted",), limit, command("attack", "torchattacks:AutoAttack", *flags, out=out))


def command(*arguments: str, out: Path) -> float:
    """Runs a command of brittle into a new folder; returns its wall seconds, start and end of Python included."""
    if out.exists():
        sys.exit(f"{out} is there already: its seconds are not of one run; name another --out")
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.main", *arguments, "--out", str(out)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(f"brittle {arguments[0]} ended with {ran.returncode}:\n{ran.stdout}")
    return time.perf_counter() - started


def outcome(table: Path, standing: Sequence[str], limit: int, seconds: float) -> Outcome:
    """Reads a table of one row for each of the first digits."""
    rows = pq.read_table(table, columns=["image_id", "status", "queries", "gradients"]).sort_by("image_id")
    if rows["image_id"].to_pylist() != list(range(limit)):
        sys.exit(f"{table}: expected a row for each of the first {limit} digits")
    status = np.array(rows["status"].to_pylist())
    if (status == "failed").any():
        sys.exit(f"{table}: the search of some digits failed")
    queries, gradients = (int(rows[name].to_numpy().sum()) for name in ("queries", "gradients"))
    return Outcome(np.isin(status, standing), queries, gradients, seconds)


class Counted(nn.Module):
    """A model that counts images forward in ``queries`` and derivatives back in ``gradients``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.queries, self.gradients = model.requires_grad_(False), 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.queries += len(images)
        logits: Tensor = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self._passed_back)
        return logits

    def _passed_back(self, gradient: Tensor) -> None:
        self.gradients += len(gradient)


def in_batches(
    network: nn.Module, images: np.ndarray, labels: np.ndarray, right: np.ndarray, epsilon: float, steps: int
) -> Outcome:
    """AutoAttack's four attacks from torchattacks, in batches, on the digits that are classified right."""
    warnings.simplefilter("ignore")  # about torchattacks' own code
    import torchattacks

    model, ball = Counted(network).eval(), Ball("linf", epsilon)
    budget: dict[str, Any] = {"norm": "Linf", "eps": epsilon, "seed": 0}
    attack = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, steps=steps, **budget),
            torchattacks.APGDT(model, steps=steps, n_classes=10, **budget),
            torchattacks.FAB(model, steps=steps, n_classes=10, multi_targeted=True, **budget),
            torchattacks.Square(model, n_queries=5000, **budget),
        ]
    )
    stands = right.copy()
    started = time.perf_counter()
    for rows in np.split(ids := np.flatnonzero(right), range(BATCH, len(ids), BATCH)):
        clean, truth = torch.tensor(images[rows]).float(), torch.tensor(labels[rows]).long()
        levels = attack(clean / 255, truth).detach() * 255
        found = ball.rounded(ball.project(levels, clean), clean)
        stands[rows] = DenseEvaluator(network).logits(found).argmax(dim=1).eq(truth).numpy()
    return Outcome(stands, model.queries, model.gradients, time.perf_counter() - started)


if __name__ == "__main__":
    main()
