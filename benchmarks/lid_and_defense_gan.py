"""LID and Defense-GAN on MNIST under attacks that do not know them, beside their papers' figures.

    python benchmarks/lid_and_defense_gan.py --model MODEL --gan FOLDER [--images 200]

LID: AUROC of successful adversarials among the correctly classified test images they were made of; as in the paper with
a regression on the attack's own training images, and with the default one. Defense-GAN: accuracy of the classifier on
attacked test images and on their projections, and AUROC of the distance. FOLDER holds the GAN; it is trained there when
absent, about a quarter of an hour on two cores.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from analysis.statistics import Rate
from jobs.guard import trained
from workers.attacks import DDN, FGSM, JSMA, IterativeFGSM
from workers.detectors.defense_gan import DefenseGAN
from workers.detectors.detector import Detector, DetectorRecipe
from workers.detectors.lid import LID
from workers.detectors.scoring import score_images
from workers.images import Dataset
from workers.models.loading import read_model
from workers.sources import load_data

ATTACKS = {
    "fgsm": FGSM(epsilon=0.3),
    "ifgsm": IterativeFGSM(steps=100, step_size=0.005),
    "jsma": JSMA(gamma=0.145),
    "ddn": DDN(steps=50),
}
PAPER_LID = {"fgsm": "96.89", "ifgsm": "99.60", "jsma": "92.24", "ddn": "99.24 (C&W)"}
OWN = {"jsma": "ddn"}
"""What stands for an attack that LID's fit does not make."""
PAPER_GAN = {"none": "99.2", "fgsm": "98.8", "ddn": "98.9 (C&W)"}
DESCENTS = ((DefenseGAN().steps, DefenseGAN().restarts), (200, 10))


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model for MNIST")
    parser.add_argument("--gan", type=Path, required=True, help="folder of the GAN")
    parser.add_argument("--gan-epochs", type=int, default=DefenseGAN().epochs, help="that it is trained for")
    parser.add_argument("--images", type=int, default=200, help="test images, drawn at random")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = read_model(options.model).build().requires_grad_(False)
    training, test = load_data("mnist", "train"), load_data("mnist", "test")
    ids = np.random.default_rng(0).permutation(len(test))[: options.images]
    images, labels = test.images[ids], test.labels[ids]
    shown = {"none": images}
    fooled = {}
    for name, attack in ATTACKS.items():
        targets = (labels + 1 + ids % 9) % 10 if name == "jsma" else None
        result = attack(model, images, labels, targets=targets, ids=ids)
        shown[name], fooled[name] = result.adversarial, result.success
    print_lid(model, training, shown, fooled)
    print_gan(model, training, shown, fooled, labels, options.gan, options.gan_epochs)


def fitted(recipe: DetectorRecipe, model: nn.Module, training: Dataset) -> Detector:
    """The detector, its networks untrained."""
    detector = recipe.build(model, training.shape)
    images, labels = torch.tensor(training.images), torch.tensor(training.labels)
    detector.fit(images, labels, seed=0, on_step=lambda *_: None)
    return detector.requires_grad_(False)


def auroc(clean: np.ndarray, attacked: np.ndarray, fooled: np.ndarray) -> str:
    """In per cent, of the successes against the same images clean."""
    truth = np.repeat([0, 1], fooled.sum())
    return f"{100 * roc_auc_score(truth, np.concatenate([clean[fooled], attacked[fooled]])):.2f}"


def print_lid(model: nn.Module, training: Dataset, shown: dict[str, np.ndarray], fooled: dict[str, np.ndarray]) -> None:
    """AUROC by attack."""
    print(f"LID, {len(shown['none'])} images\n{'attack':<8}{'success':>9}{'own':>8}{'default':>9}  paper")
    default = fitted(LID(), model, training)
    for name, success in fooled.items():
        own = fitted(LID(attack=OWN.get(name, name)), model, training)
        by_own, by_default = (
            auroc(*(score_images(detector, shown[kind], None).scores for kind in ("none", name)), success)
            for detector in (own, default)
        )
        print(f"{name:<8}{success.mean():>9.1%}{by_own:>8}{by_default:>9}  {PAPER_LID[name]}")


def print_gan(
    model: nn.Module,
    training: Dataset,
    shown: dict[str, np.ndarray],
    fooled: dict[str, np.ndarray],
    labels: np.ndarray,
    folder: Path,
    epochs: int,
) -> None:
    """Accuracy by attack and length of the descent."""
    network = DefenseGAN(epochs=epochs).networks()["gan"]
    weights = trained(network, training, folder)
    with torch.no_grad():
        plain = {
            name: model(torch.tensor(images).float() / 255).argmax(dim=1).numpy() for name, images in shown.items()
        }
    print(f"\nDefense-GAN, {epochs} epochs, {len(labels)} images")
    print(f"{'L':>4}{'R':>4} {'attack':<7}{'without':>9} {'AUROC':>7} {'images/s':>9}  with (paper)")
    clean = np.empty(0)
    for (steps, restarts), name in itertools.product(DESCENTS, PAPER_GAN):
        detector = fitted(DefenseGAN(steps=steps, restarts=restarts), model, training)
        detector.get_submodule("gan").load_state_dict(weights)
        started = time.perf_counter()
        scores, classes = score_images(detector, shown[name], None)
        rate = len(labels) / (time.perf_counter() - started)
        clean = scores if name == "none" else clean
        found = "" if name == "none" else auroc(clean, scores, fooled[name])
        right = Rate(int((classes == labels).sum()), len(labels))
        without = (plain[name] == labels).mean()
        print(f"{steps:>4}{restarts:>4} {name:<7}{without:>9.1%} {found:>7} {rate:>9.1f}  {right} ({PAPER_GAN[name]})")


if __name__ == "__main__":
    main()
