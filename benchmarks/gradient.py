"""Gradient attacks and Square beside foolbox and torchattacks: the same model, images, ε and steps, in one process.

    python benchmarks/gradient.py --model MODEL [--limit 256] [--threads 2] [--rounds 3] [--only pgd]

Success counts what each side hands back: brittle's 8-bit images, the peers' floats; behind it stands the peers'
success when their images are rounded to 8 bits. Rates are wall time with everything that a call does, brittle's clean
predictions, rounding and distances included, and one prediction of the peers' result. The ratio is the median over
rounds in which both run one after the other. A peer that is not installed is told as absent.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from workers.attacks import APGD, DDN, FGSM, PGD, Attack, Square
from workers.evaluation.dense import DenseEvaluator
from workers.models.loading import read_model
from workers.sources import load_data

Peer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the table: an attack, and the same one of a peer, None where that is not installed."""

    name: str
    attack: Attack
    peer: Peer | None


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--limit", type=int, default=256, help="correctly classified test digits")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each side")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    model = read_model(options.model).build()
    digits = load_data("mnist", "test")
    predicted = DenseEvaluator(model).logits(torch.tensor(digits.images)).argmax(dim=1).numpy()
    chosen = np.flatnonzero(predicted == digits.labels)[: options.limit]
    images, labels = digits.images[chosen], digits.labels[chosen]

    print(f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {len(images)} digits")
    print(
        f"{'attack':<26} {'success (95 %)':>22} {'peer':>22} {'8-bit':>7} {'median L2':>10} {'peer':>7}"
        f" {'images/s':>9} {'peer':>7} {'ratio':>7}"
    )
    for row in rows(model):
        if options.only in row.name:
            print(line(row, model, images, labels, options.rounds), flush=True)


def rows(model: nn.Module) -> list[Row]:
    """The table's lines: L∞ budgets of whole levels, so that rounding costs nobody any."""
    foolbox, torchattacks = foolbox_peers(model), torchattacks_peers(model)
    table = [Row("fgsm 25/255", FGSM(epsilon=25 / 255), foolbox("FGSM", 25 / 255))]
    for levels in (2, 25, 51):
        epsilon = levels / 255
        peer = foolbox("LinfProjectedGradientDescentAttack", epsilon, steps=20, rel_stepsize=2.5 / 20)
        table.append(Row(f"pgd linf {levels}/255, 20", PGD(epsilon=epsilon, steps=20), peer))
    for epsilon in (1.0, 2.0):
        peer = foolbox("L2ProjectedGradientDescentAttack", epsilon, steps=20, rel_stepsize=2.5 / 20)
        table.append(Row(f"pgd l2 {epsilon}, 20", PGD(epsilon=epsilon, norm="l2", steps=20), peer))
    for loss in ("ce", "dlr"):
        for levels in (25, 51):
            peer = torchattacks("APGD", eps=levels / 255, steps=20, loss=loss)
            table.append(
                Row(f"apgd linf {levels}/255, 20, {loss}", APGD(epsilon=levels / 255, steps=20, loss=loss), peer)
            )
    peer = torchattacks("APGD", norm="L2", eps=1.0, steps=20)
    table.append(Row("apgd l2 1.0, 20, ce", APGD(epsilon=1.0, norm="l2", steps=20), peer))
    for steps in (50, 100):
        table.append(Row(f"ddn {steps}", DDN(steps=steps), foolbox("DDNAttack", None, steps=steps)))
    for norm, epsilon, name in (("linf", 25 / 255, "25/255"), ("linf", 51 / 255, "51/255"), ("l2", 2.0, "2.0")):
        peer = torchattacks("Square", norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, n_queries=1000)
        table.append(Row(f"square {norm} {name}, 1000", Square(epsilon=epsilon, norm=norm, max_queries=1000), peer))
    return table


def foolbox_peers(model: nn.Module) -> Callable[..., Peer | None]:
    """Makes calls of foolbox's attacks by class name and ε; they give None where foolbox is absent."""
    try:
        import foolbox
    except ImportError as error:
        print(f"foolbox is absent ({error})")
        return lambda *_, **__: None
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")

    def peer(name: str, epsilon: float | None, **parameters: Any) -> Peer:
        attack = getattr(foolbox.attacks, name)(**parameters)
        return lambda images, labels: attack(wrapped, images, labels, epsilons=epsilon)[1]

    return peer


def torchattacks_peers(model: nn.Module) -> Callable[..., Peer | None]:
    """Makes calls of torchattacks' attacks by class name; they give None where torchattacks is absent."""
    try:
        import torchattacks
    except ImportError as error:
        print(f"torchattacks is absent ({error})")
        return lambda *_, **__: None

    def peer(name: str, **parameters: Any) -> Peer:
        attack = getattr(torchattacks, name)(model, **parameters)
        return lambda images, labels: attack(images, labels)

    return peer


def line(row: Row, model: nn.Module, images: np.ndarray, labels: np.ndarray, rounds: int) -> str:
    """Runs both sides and formats what came of it."""
    clean, truth = torch.tensor(images).float().div(255), torch.tensor(labels)

    def fooled(adversarial: Tensor) -> np.ndarray:
        with torch.no_grad():
            return (model(adversarial).argmax(dim=1) != truth).numpy()

    row.attack(model, images[:16], labels[:16])  # what is imported and built at the first call
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        ours = row.attack(model, images, labels)
        between = time.perf_counter()
        if row.peer:
            theirs = row.peer(clean, truth).detach()
            success = fooled(theirs)
        times.append((between - started, time.perf_counter() - between))
    own, other = (len(images) / statistics.median(part) for part in zip(*times, strict=True))
    text = f"{row.name:<26} {rate(ours.success)} "
    moved = np.median(ours.distances.l2[ours.success]) if ours.success.any() else np.nan
    if not row.peer:
        return text + f"{'absent':>22} {'':>7} {moved:>10.3f} {'':>7} {own:>9.0f}"
    rounded = fooled(theirs.mul(255).round().div(255))
    theirs_moved = (theirs - clean).flatten(1).norm(dim=1).numpy()[success]
    other_moved = np.median(theirs_moved) if success.any() else np.nan
    ratio = statistics.median(theirs_time / our_time for our_time, theirs_time in times)
    return text + (
        f"{rate(success)} {rounded.mean():>7.1%} {moved:>10.3f} {other_moved:>7.3f}"
        f" {own:>9.0f} {other:>7.0f} {ratio:>6.2f}×"
    )


def rate(success: np.ndarray) -> str:
    """A share with its Wilson interval."""
    interval = binomtest(int(success.sum()), len(success)).proportion_ci(method="wilson")
    return f"{success.mean():>7.1%} ({interval.low:.1%}–{interval.high:.1%})".rjust(22)


if __name__ == "__main__":
    main()
