"""Detectors beside their papers' figures for MNIST: attacks that know nothing of them, at the papers' false-alarm rate.

    python benchmarks/detectors.py --model MODEL --networks FOLDER [--limit 200] [--threads 2] [--only magnet]

Test images are split at random: the threshold is set on one half (calibration), the false alarms are counted on all
of the other and its first correctly classified images are attacked. The papers' classifiers, attacks' codes and
images are others, so that a figure is to be met and not to be hit. A detector's networks are trained into FOLDER,
and taken from it when they are there. Rates carry 95 % Wilson intervals, too narrow where several attacks are put
together, as they share their images.

caught: flagged, of the successful attempts. held: flagged, or classified correctly by `predict`, of all attempts.
kept: not flagged and classified correctly by `predict`, of clean images.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch
from torch import nn

from analysis.statistics import Rate
from jobs.guard import load_networks
from workers.attacks import DDN, FGSM, PGD, Attack, IterativeFGSM
from workers.detectors.controls import MaxSoftmax, MedianFilter, RandomScore
from workers.detectors.detector import Detector, DetectorRecipe
from workers.detectors.disagreement import RBFDisagreement, SynthesisDisagreement
from workers.detectors.feature_squeezing import FeatureSqueezing
from workers.detectors.magnet import MagNet
from workers.detectors.scoring import Scored, fresh_noise, score_images
from workers.evaluation.dense import DenseEvaluator
from workers.images import Dataset
from workers.models.loading import read_model
from workers.sources import load_data


@dataclass(frozen=True)
class Judged:
    """What a detector makes of images: scores, its threshold, whether `predict` is right, and which are successes."""

    scores: np.ndarray
    threshold: float
    right: np.ndarray
    success: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """bool ``[n]``."""
        return self.scores > self.threshold


def held(judged: Judged) -> Rate:
    """Of all attempts: flagged, or classified correctly as repaired."""
    return Rate(int((judged.flagged | judged.right).sum()), len(judged.right))


def kept(judged: Judged) -> Rate:
    """Of all images: not flagged, and classified correctly as repaired."""
    return Rate(int((~judged.flagged & judged.right).sum()), len(judged.right))


def caught(judged: Judged) -> Rate:
    """Of the successful attempts: flagged."""
    return Rate(int((judged.flagged & judged.success).sum()), int(judged.success.sum()))


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        recipe: the detector.
        attacks: put together into one rate; none for clean images.
        false_alarms: the rate of clean images above the threshold, as in the paper.
        measure: what the paper's figure is a rate of.
        paper: its figure and the attack it is for; empty where none is quoted.
    """

    recipe: DetectorRecipe
    attacks: tuple[Attack, ...]
    false_alarms: float
    measure: Callable[[Judged], Rate]
    paper: str = ""


MINIMAL, ITERATED, ONE_STEP, BALL = (
    DDN(steps=100),
    IterativeFGSM(steps=500),
    FGSM(epsilon=0.3),
    PGD(epsilon=0.3, steps=20),
)

CASES = [
    Case(MagNet(), (), 0.001, kept, "99.1 %, clean images"),
    Case(MagNet(), (MINIMAL,), 0.001, held, "99.5 %, Carlini L2"),
    Case(MagNet(), (ITERATED,), 0.001, held),
    Case(MagNet(), (ONE_STEP,), 0.001, held),
    Case(MagNet(), (BALL,), 0.001, held),
    Case(FeatureSqueezing(), (ONE_STEP, BALL, MINIMAL), 0.04, caught, "98.2 %, all of its attacks"),
    *(Case(FeatureSqueezing(), (attack,), 0.04, caught) for attack in (ONE_STEP, BALL, MINIMAL)),
    *(
        Case(recipe, (attack,), 0.04, caught)
        for recipe in (
            RBFDisagreement(),
            SynthesisDisagreement(),
            MaxSoftmax(),
            MedianFilter(),
            RandomScore(),
        )
        for attack in (BALL, MINIMAL)
    ),
]
"""The table. ε 0.3 is where feature squeezing's paper has its L∞ attacks on MNIST; DDN stands for Carlini & Wagner's
L2 attack without confidence."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--networks", required=True, type=Path, help="folder of the detectors' trained networks")
    parser.add_argument("--limit", type=int, default=200, help="correctly classified test digits that are attacked")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the draws and the attacks")
    parser.add_argument("--only", default="", help="detectors whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = read_model(options.model).build()
    training, digits = load_data("mnist", "train"), load_data("mnist", "test")
    predicted = DenseEvaluator(model).logits(torch.tensor(digits.images)).argmax(dim=1).numpy()
    calibration, others = np.split(np.random.default_rng(options.seed).permutation(len(digits)), 2)
    attacked = others[predicted[others] == digits.labels[others]][: options.limit]
    print(
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {len(attacked)} digits attacked"
    )
    print(f"{'detector':<22} {'attack':<14} {'paper':<27} {'':<7} {'ours':<42} {'at':>5}  false alarms")
    detectors: dict[DetectorRecipe, Detector] = {}
    found: dict[Attack, tuple[np.ndarray, np.ndarray]] = {}
    for case in CASES:
        if options.only not in case.recipe.NAME:
            continue
        if case.recipe not in detectors:
            detectors[case.recipe] = ready(case.recipe, model, training, options.networks, options.seed)
        detector = detectors[case.recipe]

        def answers(ids: np.ndarray, images: np.ndarray, purpose: str, detector: Detector = detector) -> Scored:
            return score_images(detector, images, fresh_noise(detector, ids, seed=options.seed, purpose=purpose))

        calibrating = answers(calibration, digits.images[calibration], "calibration").scores
        threshold = float(np.quantile(calibrating, 1 - case.false_alarms, method="higher"))
        scores, classes = answers(others, digits.images[others], "test")
        judged = Judged(scores, threshold, classes == digits.labels[others], np.zeros(len(others), dtype=bool))
        alarms = Rate(int(judged.flagged.sum()), len(others))
        if case.attacks:
            for attack in case.attacks:
                if attack not in found:
                    result = attack(model, digits.images[attacked], digits.labels[attacked], seed=options.seed)
                    found[attack] = result.adversarial, result.success
            images, success = (np.concatenate(parts) for parts in zip(*(found[a] for a in case.attacks), strict=True))
            scores, classes = answers(np.tile(attacked, len(case.attacks)), images, "attacked")
            right = classes == np.tile(digits.labels[attacked], len(case.attacks))
            judged = Judged(scores, threshold, right, success)
        print(
            f"{case.recipe.NAME:<22} {'+'.join(attack.NAME for attack in case.attacks) or 'clean':<14} {case.paper:<27}"
            f" {case.measure.__name__:<7} {case.measure(judged)!s:<42} {case.false_alarms:>5.1%}  {alarms}",
            flush=True,
        )


def ready(recipe: DetectorRecipe, model: nn.Module, training: Dataset, folder: Path, seed: int) -> Detector:
    """The detector with its networks trained, or read from the folder, and fitted."""
    detector = recipe.build(model, training.shape)
    load_networks(recipe, detector, training, folder)
    detector.eval().requires_grad_(False)
    images, labels = torch.tensor(training.images), torch.tensor(training.labels)
    detector.fit(images, labels, seed=seed, on_step=lambda *_: None)
    return detector


if __name__ == "__main__":
    main()
