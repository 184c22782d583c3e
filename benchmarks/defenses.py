"""Defenses under the same attacks: accuracy, and the smallest change that fools, beside what their papers say.

    python benchmarks/defenses.py MODEL… --source MODEL [--epsilon 0.3] [--limit 500] [--beam-limit 50] [--threads 2]

Each MODEL is a folder that `brittle train` left, of a model for MNIST; its ``model.json`` says what trained it. "Clean"
is of all test digits; an image that a NULL class rejects is not right. All others are of the same random digits: the
share that is classified right and stays so, with 95 % Wilson intervals; where images can be rejected, one that is
rejected under attack counts as staying so. "FGSM, softmax" goes through the cross-entropy in float32, as the toolkits'
does, and loses its gradient where the softmax is saturated; all other attacks work on the logits. "Transfer" shows the
model what the same PGD makes of the source, a plainly trained model. "Best of all" is the share that every one of these
L∞ attacks leaves right, and APGD with the cross-entropy and the DLR loss and Square, which see what the others left.
"Five pixels" is a pixel beam, on the first --beam-limit digits. "DDN" is the median L2 length of the smallest change
found, over the digits that were right, with a 95 % bootstrap interval by image; infinite where it found none. The
seconds are those of a row, without what the source was searched for.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.statistics import Rate, median
from workers.attacks import APGD, DDN, FGSM, PGD, Attack, PixelBeam, Square
from workers.evaluation.answers import REJECTED, answers
from workers.images import Dataset
from workers.models.loading import read_model
from workers.sources import load_data

PAPERS = {
    "fgsm": "FGSM at ε = .25: 82.1 %, a maxout network (Goodfellow et al., 2015)",
    "pgd": "clean 98.8, FGSM 95.6, PGD-40 93.2 % (Madry et al., 2018, Table 1)",
    "trades": "clean 99.48, PGD-40 96.07 % (Zhang et al., 2019, Table 5)",
    "distillation": "JSMA finds .45 % (Papernot et al., 2016), L2 search 100 % (Carlini & Wagner, 2017)",
    "synthesis": "median L2 2.3, a plain CNN 1.3 (Schott et al., 2019, Table 1)",
    "rbf": "FGSM 89.2 %, a perceptron (Vidnerová & Neruda, their repository)",
}
"""What is claimed, on MNIST at ε = .3 unless it says otherwise."""

BEAM = PixelBeam(pixels=5, width=1, candidates=200)
WIDTH = 19
"""Of a column."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder of a model for MNIST")
    parser.add_argument(
        "--source", required=True, help="folder of a plainly trained model, whose images are transferred"
    )
    parser.add_argument("--epsilon", type=float, default=0.3, help="ε of FGSM and PGD")
    parser.add_argument("--limit", type=int, default=500, help="attacked test digits, drawn at random")
    parser.add_argument("--steps", type=int, default=40, help="steps of PGD")
    parser.add_argument("--restarts", type=int, default=1, help="random starts of PGD")
    parser.add_argument("--beam-limit", type=int, default=50, help="of these, digits that the pixel beam attacks")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    digits = load_data("mnist", "test")
    chosen = np.random.default_rng(0).permutation(len(digits))[: options.limit]
    part = Dataset(digits.images[chosen], digits.labels[chosen], "test", digits.name)
    pgd = {"epsilon": options.epsilon, "steps": options.steps, "restarts": options.restarts}
    moved = PGD(**pgd)(read_model(options.source).build(), part.images, part.labels).adversarial
    print(f"{platform.machine()}, torch {torch.__version__}, {len(part)} digits, ε = {options.epsilon}")
    runs = f"×{options.restarts}" if options.restarts > 1 else ""
    titles = ("clean", "FGSM, softmax", "FGSM", f"PGD-{options.steps}{runs}", "the same, margin", "transfer")
    titles = (*titles, "best of all", "five pixels", "DDN, median L2")
    print(f"{'defense':<13} {'epochs':>6} {' '.join(f'{title:>{WIDTH}}' for title in titles)} {'s':>6}  published")
    for folder in options.models:
        card = json.loads((Path(folder) / "model.json").read_text())
        name = card["training"].get("defense", "none")
        print(f"{name:<13} {len(card['epochs']):>6}", end="", flush=True)
        started = time.perf_counter()
        for cell in cells(read_model(folder).build(), digits, chosen, moved, pgd, options.beam_limit):
            print(f" {cell:>{WIDTH}}", end="", flush=True)
        print(f" {time.perf_counter() - started:>6.0f}  {PAPERS.get(name, '')}", flush=True)


def cells(
    model: nn.Module, digits: Dataset, chosen: np.ndarray, moved: np.ndarray, pgd: dict[str, float], beam_limit: int
) -> Iterator[str]:
    """A model's figures, as they come.

    Args:
        model: what is attacked.
        digits: all test digits.
        chosen: int64 ``[n]``, those that are attacked.
        moved: uint8 ``[n, C, H, W]``, what PGD makes of them on the source.
        pgd: PGD's parameters.
        beam_limit: how many of the chosen the pixel beam attacks.
    """
    part = Dataset(digits.images[chosen], digits.labels[chosen], "test", digits.name)
    epsilon = pgd["epsilon"]
    clean = answers(model, digits.images) == digits.labels
    yield standing(clean)
    right = clean[chosen]
    left = right.copy()
    for found in (
        through_softmax(model, part, epsilon),
        *(~fooled(attack, model, part) for attack in (FGSM(epsilon=epsilon), PGD(**pgd), PGD(**pgd, loss="margin"))),
        is_unfooled(model, moved, part.labels),
    ):
        yield standing(found & right)
        left &= found
    for attack in (APGD(epsilon=epsilon), APGD(epsilon=epsilon, loss="dlr"), Square(epsilon=epsilon)):
        rows = np.flatnonzero(left)
        left[rows] = ~fooled(attack, model, part, rows)
    yield standing(left)
    rows = np.arange(min(beam_limit, len(part)))
    yield standing(~fooled(BEAM, model, part, rows) & right[rows])
    result = DDN()(model, part.images, part.labels)
    yield smallest(np.where(result.success, result.distances.l2, np.inf)[right])


def standing(still_right: np.ndarray) -> str:
    """A share of images with its interval."""
    low, high = Rate(int(still_right.sum()), len(still_right)).interval or (0.0, 1.0)
    return f"{still_right.mean():.1%} ({100 * low:.1f}–{100 * high:.1f})"


def is_unfooled(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool ``[n]``: which images are classified as labelled, or rejected."""
    found = answers(model, images)
    return (found == labels) | (found == REJECTED)


def through_softmax(model: nn.Module, part: Dataset, epsilon: float) -> np.ndarray:
    """bool ``[n]``: which images FGSM does not fool when its gradient comes through the cross-entropy in float32."""
    images = torch.tensor(part.images).float().div(255).requires_grad_(True)
    labels = torch.tensor(part.labels)
    (gradient,) = torch.autograd.grad(cross_entropy(model(images), labels, reduction="sum"), images)
    levels = torch.tensor(part.images).short() + int(255 * epsilon + 1e-9) * gradient.sign().short()
    moved = levels.clamp(0, 255).to(torch.uint8)
    return is_unfooled(model, moved.numpy(), part.labels)


def fooled(attack: Attack, model: nn.Module, part: Dataset, rows: np.ndarray | None = None) -> np.ndarray:
    """bool ``[n]``: which images an attack turns; of some rows only, int64 ``[n]``, where those are named."""
    rows = np.arange(len(part)) if rows is None else rows
    if not len(rows):
        return np.zeros(0, dtype=bool)
    return attack(model, part.images[rows], part.labels[rows], ids=rows).success


def smallest(lengths: np.ndarray) -> str:
    """The median of lengths with its interval."""
    if not len(lengths):
        return "–"
    found = median(lengths)
    middle, low, high = (f"{length:.2f}".replace("inf", "∞") for length in (found.value, *found.interval))
    return f"{middle} ({low}–{high})"


if __name__ == "__main__":
    main()
