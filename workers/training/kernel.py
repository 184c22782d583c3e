"""A kernel machine fitted by scikit-learn: a classifier that is no neural network and has gradients all the same."""

import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from workers.budgets import Number
from workers.files import exclusive
from workers.images import Dataset
from workers.models.kernel import KernelMachine
from workers.parameters import Parameters
from workers.training.checkpoints import same_training, save

__all__ = ["Kernel", "fit_kernel"]


class Kernel(Parameters):
    """Multinomial logistic regression on the features of an RBF kernel.

    The kernel is approximated by its likeness to some training images (Williams & Seeger, 2001, "Using the Nyström
    method to speed up kernel machines"), with γ = 1/(pixels · variance), scikit-learn's ``scale``.
    """

    NAME: ClassVar[str] = "kernel"

    centres: int = Field(500, ge=1, le=10_000, description="Training images that others are compared with.")
    images: int = Field(10_000, ge=2, description="Training images at most.")
    penalty: Number = Field(0.01, gt=0, description="Weight of the squared weights, 1/C.")
    seed: int = Field(42, ge=0, lt=2**31, description="Which training images are taken.")


def fit_kernel(how: Kernel, training: Dataset, classes: int, folder: Path) -> None:
    """Fits a kernel machine into a model folder; one that is there is left as it is.

    Args:
        how: the parameters.
        training: the images.
        classes: of the model; those that no image has get logits far below the others.
        folder: created when absent.

    Raises:
        WrongInput: when the folder holds another training.
    """
    channels, height, width = training.shape
    centres = min(how.centres, how.images, len(training))
    sizes = {"channels": channels, "height": height, "width": width, "classes": classes, "centres": centres}
    card: dict[str, Any] = {
        "architecture": {"name": "kernel"} | sizes,
        "training": how.model_dump(mode="json") | {"data": training.content_hash()},
        "epochs": [],
    }
    if same_training(folder, card, 1)["epochs"]:
        return
    with exclusive(folder):
        model = _fitted(how, training, sizes)
        card["epochs"] = [{"epoch": 1}]
        save(folder, card, model, [])


def _fitted(how: Kernel, training: Dataset, sizes: dict[str, int]) -> KernelMachine:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression

    taken = np.random.default_rng(how.seed).permutation(len(training))[: how.images]
    flat = training.images[taken].reshape(len(taken), -1) / 255
    gamma = 1 / (flat.shape[1] * float(flat.var()) or 1)
    kernel = Nystroem(gamma=gamma, n_components=sizes["centres"], random_state=how.seed)
    linear = LogisticRegression(C=1 / how.penalty, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a surrogate need not be the best of its kind
        linear.fit(kernel.fit_transform(flat), training.labels[taken])
    weights, bias = linear.coef_ @ kernel.normalization_, linear.intercept_
    if len(linear.classes_) == 2:  # scikit-learn keeps one row for two classes
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    model = KernelMachine(**sizes)
    with torch.no_grad():
        model.centres.copy_(torch.tensor(kernel.components_))
        model.gamma.fill_(gamma)
        model.linear.weight.zero_()
        model.linear.bias.fill_(-1e4)
        model.linear.weight[linear.classes_] = torch.tensor(weights, dtype=torch.float32)
        model.linear.bias[linear.classes_] = torch.tensor(bias, dtype=torch.float32)
    return model
