"""Anytime evaluation beside the full one: how much compute the bound on robust accuracy needs.

    python benchmarks/anytime.py --model MODEL [--limit 500] [--epsilon 0.1,0.2] [--workers 2] [--out FOLDER]

The full evaluation is `brittle evaluate --all-attacks`: every attack, with all its steps, on every image that the
model has right. The anytime one gives each attack the images that are left. Both run through the command line, with
the same workers. Work is counted in model evaluations plus backward passes; seconds are the workers' own, which other
work on the machine stretches. "first ce" is the usual order (AutoAttack's: APGD on cross-entropy, APGD on DLR, Square,
each on what is left), read from the full evaluation's rows: the rows of an image do not depend on the others.

The order and the sizes of the attacks were chosen on other digits (8000 to 8399).
"""

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow.parquet as pq

from analysis.statistics import Rate
from jobs.main import main as brittle
from workers.results import Status


@dataclass(frozen=True)
class Spent:
    """The work of some images in the order of the search, and what became of them.

    Attributes:
        stage: name.
        image: int64 ``[n]``.
        status: ``[n]``.
        work: int64 ``[n]``, queries and gradients.
        seconds: float64 ``[n]``.
    """

    stage: str
    image: np.ndarray
    status: np.ndarray
    work: np.ndarray
    seconds: np.ndarray

    def only(self, images: np.ndarray) -> "Spent":
        """The rows of some images."""
        kept = np.isin(self.image, images)
        return Spent(self.stage, *(column[kept] for column in (self.image, self.status, self.work, self.seconds)))


def main() -> None:
    """Prints a table for each ε."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--limit", type=int, default=500, help="the first so many test digits")
    parser.add_argument("--epsilon", default="0.1,0.2", help="L∞ budgets")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", help="folder that keeps the evaluations, to go on there; a temporary one when absent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for epsilon in options.epsilon.split(","):
            folders = []
            for name, flags in (("anytime", []), ("full", ["--all-attacks"])):
                folders.append(Path(options.out or temporary) / f"{name}-{epsilon}")
                where = ["--model", options.model, "--data", "mnist", "--out", str(folders[-1])]
                size = ["--limit", str(options.limit), "--epsilon", epsilon, "--workers", str(options.workers)]
                with contextlib.redirect_stdout(io.StringIO()):
                    if brittle(["evaluate", *where, *size, *flags]):
                        sys.exit(f"the {name} evaluation failed")
            table(epsilon, options.limit, options.workers, *map(spent, folders))


def spent(folder: Path) -> list[Spent]:
    """The rows of an evaluation's stages."""
    stages = json.loads((folder / "verdict.json").read_text())["stages"]
    columns = ["image_id", "status", "queries", "gradients", "seconds"]
    found = []
    for stage in stages:
        rows = pq.read_table(folder / stage["run"] / "parts", columns=columns)
        image, queries, gradients, seconds = (rows[name].to_numpy() for name in columns[:1] + columns[2:])
        status = np.array(rows["status"].to_pylist(), dtype=object)
        found.append(Spent(stage["name"], image, status, queries + gradients, seconds))
    return found


def table(epsilon: str, limit: int, workers: int, anytime: Sequence[Spent], full: Sequence[Spent]) -> None:
    """Prints the curve of one ε: work spent against the bound, and what the last point costs."""
    agree(anytime, full)
    work, seconds = (sum(float(getattr(stage, name).sum()) for stage in full) for name in ("work", "seconds"))
    lowest = at_most(full, limit)
    print(
        f"{platform.machine()}, {workers} workers; {limit} MNIST test digits, L∞ ε = {epsilon}\n"
        f"full: {work:,.0f} model evaluations and gradients, {seconds:.1f} s, robust accuracy at most {lowest}"
    )
    share = f"{'of full':>8}"
    print(f"{'after':<14} {'robust accuracy at most':>34} {'above full':>11} {'work':>11} {share} {'s':>8} {share}")
    for count in range(1, len(anytime) + 1):
        bound = at_most(anytime[:count], limit)
        done, took = (sum(float(getattr(x, name).sum()) for x in anytime[:count]) for name in ("work", "seconds"))
        print(
            f"{anytime[count - 1].stage:<14} {bound!s:>34} {100 * (bound.hits - lowest.hits) / limit:>8.1f} pt "
            f"{done:>11,.0f} {done / work:>8.2%} {took:>8.1f} {took / seconds:>8.2%}"
        )
    allowed = lowest.hits + limit // 100
    usual = in_turn(full, ["apgd-ce", "apgd-dlr", "square"])
    for name, stages in (("anytime", anytime), ("first ce", usual)):
        total, needed = sum(int(stage.work.sum()) for stage in stages), work_until(stages, limit, allowed)
        print(f"{name}: {total:,} in all ({total / work:.2%} of full), at most {at_most(stages, limit)};")
        shares = f"{needed / work:.2%} of full, {needed / total:.2%} of its own"
        print(f"  within one point of full after {needed:,} ({shares})")
    print()


def at_most(stages: Sequence[Spent], limit: int) -> Rate:
    """The bound on robust accuracy after some stages."""
    gone = [stage.image[np.isin(stage.status, (Status.SUCCESS, Status.ALREADY_WRONG))] for stage in stages]
    return Rate(limit - len(np.unique(np.concatenate(gone))), limit)


def work_until(stages: Sequence[Spent], limit: int, allowed: int) -> int:
    """The work after which at most so many images are left, image by image; all of it when that is never reached."""
    gone: set[int] = set()
    total = 0
    for stage in stages:
        for image, status, work in zip(stage.image.tolist(), stage.status, stage.work.tolist(), strict=True):
            total += work
            if status in (Status.SUCCESS, Status.ALREADY_WRONG):
                gone.add(image)
            if limit - len(gone) <= allowed:
                return total
    return total


def in_turn(full: Sequence[Spent], names: Sequence[str]) -> list[Spent]:
    """What some attacks would have cost one after the other, each on what those before it left."""
    by_name = {stage.stage: stage for stage in full}
    wrong = full[0].only(full[0].image[full[0].status == Status.ALREADY_WRONG])
    left = full[0].image[full[0].status != Status.ALREADY_WRONG]
    turns = [wrong]
    for name in names:
        turns.append(by_name[name].only(left))
        left = turns[-1].image[turns[-1].status != Status.SUCCESS]
    return turns


def agree(anytime: Sequence[Spent], full: Sequence[Spent]) -> None:
    """Makes sure that both evaluations found the same of every image that both searched with an attack."""
    by_name = {stage.stage: stage for stage in full}
    for stage in anytime:
        other = by_name[stage.stage].only(stage.image)
        for name in ("image", "status", "work"):
            if not np.array_equal(getattr(stage, name), getattr(other, name)):
                sys.exit(f"{stage.stage}: {name} differs between the two evaluations")


if __name__ == "__main__":
    main()
