"""What a model says to who sees nothing of it but its answer."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from workers.detectors.guarded import Judged
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.scores import UNANSWERED, answered, predicted
from workers.remedies.remedied import judging

__all__ = ["REJECTED", "UNANSWERED", "answers", "margins"]

REJECTED = -1
"""The answer of a guarded classifier to an image that it flags, and of a model with a NULL class to what it rejects."""

CHUNK = 1024


def answers(
    model: nn.Module, images: np.ndarray, on_images: Callable[[int], object] = lambda count: None
) -> np.ndarray:
    """The class that a model gives each image.

    Args:
        model: in ``eval()`` mode.
        images: uint8 ``[n, C, H, W]``.
        on_images: called with the number of images just answered.

    Returns:
        int64 ``[n]``; `REJECTED` where the model rejects, `UNANSWERED` where its numbers are not finite.
    """
    whole = judging(model)
    guarded, evaluator = isinstance(whole, Judged), DenseEvaluator(whole)
    found = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(images), CHUNK):
        logits = evaluator.logits(torch.tensor(images[start : start + CHUNK], device=evaluator.device)).cpu()
        classes = predicted(logits[:, :-1] if guarded else logits).numpy()
        if guarded:
            flagged, known = logits[:, -1].numpy() > 0, answered(logits[:, -1:]).numpy()
            classes = np.where(flagged, REJECTED, np.where(known, classes, UNANSWERED))
        found.append(classes)
        on_images(len(classes))
    return np.concatenate(found)


def margins(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How far each image is on the wrong side: the highest logit of another class less that of the label.

    Args:
        model: in ``eval()`` mode; of a guarded classifier the classifier's own logits count.
        images: uint8 ``[n, C, H, W]``.
        labels: int64 ``[n]``.

    Returns:
        float32 ``[n]``; above 0 where the image is misclassified, NaN where its logits are not finite.
    """
    whole = judging(model)
    guarded, evaluator = isinstance(whole, Judged), DenseEvaluator(whole)
    found = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(images), CHUNK):
        logits = evaluator.logits(torch.tensor(images[start : start + CHUNK], device=evaluator.device)).cpu()
        logits = logits[:, :-1] if guarded else logits
        label = torch.tensor(labels[start : start + CHUNK])[:, None]
        others = logits.scatter(1, label, -torch.inf).amax(dim=1)
        found.append((others - logits.gather(1, label)[:, 0]).where(answered(logits), torch.nan).numpy())
    return np.concatenate(found)
