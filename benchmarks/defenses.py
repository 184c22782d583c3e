"""Defenses under the same attacks: accuracy, and the smallest change that fools, beside what their papers say.

    python benchmarks/defenses.py MODEL… --source MODEL [--epsilon 0.3] [--limit 500] [--restarts 1] [--threads 2]

Each MODEL is a folder that `brittle train` left, of a model for MNIST; its ``model.json`` says what trained it. "Clean"
is of all test digits; an image that a NULL class rejects is not right. All others are of the same random digits: the
share that is classified right and stays so, with 95 % Wilson intervals; where images can be rejected, one that is
rejected under attack counts as staying so. "FGSM, softmax" goes through the cross-entropy in float32, as the toolkits'
does, and loses its gradient where the softmax is saturated; all other attacks work on the logits. "Transfer" shows the
model what the same PGD makes of the source, a plainly trained model. "DDN" is the median
L2 length of the smallest change found, over the digits that were right.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.statistics import Rate
from workers.attacks import DDN, FGSM, PGD, Attack
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
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    digits = load_data("mnist", "test")
    chosen = np.random.default_rng(0).permutation(len(digits))[: options.limit]
    runs = f"×{options.restarts}" if options.restarts > 1 else ""
    print(f"{platform.machine()}, torch {torch.__version__}, {len(chosen)} digits, ε = {options.epsilon}")
    print(
        f"{'defense':<13} {'epochs':>6} {'clean':>7} {'FGSM, softmax':>20} {'FGSM':>20} "
        f"{f'PGD-{options.steps}{runs}':>20} {'the same, margin':>20} {'transfer':>20} {'DDN':>6}"
    )
    part = Dataset(digits.images[chosen], digits.labels[chosen], "test", digits.name)
    pgd = {"epsilon": options.epsilon, "steps": options.steps, "restarts": options.restarts}
    moved = PGD(**pgd)(read_model(options.source).build(), part.images, part.labels).adversarial
    for folder in options.models:
        card = json.loads((Path(folder) / "model.json").read_text())
        name = card["training"].get("defense", "none")
        model = read_model(folder).build()
        right = answers(model, digits.images) == digits.labels
        figures = [standing(through_softmax(model, part, options.epsilon) & right[chosen])]
        for attack in (FGSM(epsilon=options.epsilon), PGD(**pgd), PGD(**pgd, loss="margin")):
            figures.append(standing(~fooled(attack, model, part) & right[chosen]))
        figures.append(standing(is_unfooled(model, moved, part.labels) & right[chosen]))
        print(
            f"{name:<13} {len(card['epochs']):>6} {right.mean():>7.2%} {' '.join(f'{one:>20}' for one in figures)} "
            f"{smallest(model, part, right[chosen]):>6.2f}  {PAPERS.get(name, '')}",
            flush=True,
        )


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


def fooled(attack: Attack, model: nn.Module, part: Dataset) -> np.ndarray:
    """bool ``[n]``: which images an attack turns."""
    return attack(model, part.images, part.labels).success


def smallest(model: nn.Module, part: Dataset, right: np.ndarray) -> float:
    """The median L2 length of DDN's changes over images that were right; infinite where it finds none for half."""
    result = DDN()(model, part.images, part.labels)
    return float(np.median(np.where(result.success, result.distances.l2, np.inf)[right]))


if __name__ == "__main__":
    main()
