"""What few-pixel searches find with the same number of queries, on the same correctly classified MNIST digits.

    python benchmarks/rivals.py --model MODEL [--figure FILE.svg] [--rows FOLDER]

Every search runs once for each k with the largest budget; its success at smaller ones is read from its rows. A
search by generations can only answer at the end of one, so its curve begins there. Intervals are Wilson's at 95 %,
of paired differences the bootstrap's by image. Candidates a second are of the whole search, drawing included.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from analysis.curves import paired_difference, success_by_queries
from workers.attacks import CMAES, Attack, CornerSearch, DifferentialEvolution, PixelBeam, RandomPixels, SparseRS
from workers.evaluation.dense import DenseEvaluator
from workers.images import Dataset
from workers.models.loading import read_model
from workers.sources import load_data

BUDGET = 10_000
BUDGETS = (100, 1_000, 3_000, BUDGET)
PIXELS = (1, 3, 5)


def searches(pixels: int) -> dict[str, Attack]:
    """The searches by the name that the table gives them, each with at most `BUDGET` queries an image."""
    de = {"pixels": pixels, "population": 400, "generations": BUDGET // 400 - 1}
    limited = {"pixels": pixels, "max_queries": BUDGET}
    return {
        "random-pixels": RandomPixels(**limited),
        "de, probability": DifferentialEvolution(**de),
        "de, margin": DifferentialEvolution(**de, fitness="margin"),
        "cma-es": CMAES(**limited),
        "corner-search": CornerSearch(**limited),
        "sparse-rs": SparseRS(**limited),
        "pixel-beam": PixelBeam(**limited),
    }


def main() -> None:
    """Prints the table, and draws the figure if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--limit", type=int, default=200, help="how many digits, spread over the test set")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch and of the kernel")
    parser.add_argument("--figure", type=Path, help="draw the curves into this file")
    parser.add_argument("--rows", type=Path, help="keep the rows in this folder; those already there are not searched")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, data = read_model(options.model).build(), load_data("mnist", "test")
    ids = correct(model, data, options.limit)
    found: dict[tuple[str, int], pa.Table] = {}
    print(f"{len(ids)} digits, at most {BUDGET:,} queries each, {options.threads} threads, torch {torch.__version__}")
    print(f"{'':24}success within … queries\n{'search':16} {'k':>2}", end="")
    print("".join(f"{budget:>8,}" for budget in BUDGETS), f"{'interval':>16} {'queries':>8} {'candidates/s':>13}")
    for pixels in PIXELS:
        for name, attack in searches(pixels).items():
            rows, seconds = searched(attack, model, data, ids, options.rows)
            found[name, pixels] = rows
            curve = success_by_queries(rows, BUDGETS)
            queries = np.asarray(rows["queries"])
            low, high = curve[-1].interval or (np.nan, np.nan)
            shares = "".join(f"{rate.hits / rate.total:>8.1%}" for rate in curve)
            print(f"{name:16} {pixels:>2}{shares} {f'{low:.1%} to {high:.1%}':>16}", end=" ")
            print(f"{queries.mean():>8,.0f} {queries.sum() / seconds:>13,.0f}", flush=True)
    print(f"\npixel-beam minus …, {BUDGET:,} queries, same digits")
    for (name, pixels), rows in found.items():
        if name != "pixel-beam":
            difference = paired_difference(found["pixel-beam", pixels], rows, queries=BUDGET)
            print(f"{name:16} {pixels:>2} {difference}")
    if options.figure is not None:
        draw(found, options.figure)


def correct(model: nn.Module, data: Dataset, limit: int) -> np.ndarray:
    """Ids of so many digits that the model classifies correctly, evenly spread over those."""
    predictions = DenseEvaluator(model).logits(torch.tensor(data.images)).argmax(dim=1).numpy()
    ids = np.flatnonzero(predictions == data.labels)
    return ids[np.linspace(0, len(ids) - 1, min(limit, len(ids))).astype(int)]


def searched(
    attack: Attack, model: nn.Module, data: Dataset, ids: np.ndarray, folder: Path | None
) -> tuple[pa.Table, float]:
    """The rows of a search, in the shards that it asks for, and the seconds that it took."""
    kept = None if folder is None else folder / f"{attack.NAME}-{attack.params_hash}-{len(ids)}.parquet"
    if kept is not None and kept.exists():
        rows = pq.read_table(kept)
        return rows, float(np.asarray(rows["seconds"]).sum())
    attack(model, data.images[ids[:1]], data.labels[ids[:1]], ids=ids[:1])  # compiles the kernel, reads the model
    tables = []
    started = time.perf_counter()
    for start in range(0, len(ids), attack.shard_size):
        part = ids[start : start + attack.shard_size]
        tables.append(attack(model, data.images[part], data.labels[part], ids=part).to_table())
    seconds = time.perf_counter() - started
    rows = pa.concat_tables(tables)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, kept)
    return rows, seconds


def draw(found: dict[tuple[str, int], pa.Table], path: Path) -> None:
    """Draws the curves, one panel a number of pixels, with the interval at the end of each."""
    from matplotlib.figure import Figure

    budgets = np.unique(np.geomspace(1, BUDGET, 400).astype(int)).tolist()
    names = list(dict.fromkeys(name for name, _ in found))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(PIXELS), sharey=True)
    for panel, pixels in zip(panels, PIXELS, strict=True):
        for number, name in enumerate(names):
            rates = success_by_queries(found[name, pixels], budgets)
            values = [100 * rate.hits / rate.total for rate in rates]
            (line,) = panel.step(budgets, values, where="post", label=name, linewidth=1.6)
            low, high = (100 * bound for bound in rates[-1].interval or (np.nan, np.nan))
            panel.plot([BUDGET * 1.12 ** (number + 1)] * 2, [low, high], color=line.get_color(), linewidth=3, alpha=0.6)
        panel.set(xscale="log", xlim=(1, BUDGET * 1.12 ** (len(names) + 2)), xlabel="queries an image")
        panel.set_title(f"k = {pixels}")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="success, %", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
