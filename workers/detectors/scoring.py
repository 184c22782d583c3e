"""Scores of many images: the same bits for an image whatever it is scored with."""

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.detectors.detector import Detector
from workers.evaluation.calls import filled_call
from workers.evaluation.scores import predicted

__all__ = ["Scored", "fresh_noise", "reconstruct_images", "score_images"]

BATCH = 64
"""Every call is of so many images, the last one filled up by its own images."""


class Scored(NamedTuple):
    """Suspicion float32 ``[n]``, and the class int64 ``[n]`` that the pair of classifier and detector answers.

    The class is `UNANSWERED` where the pair's logits are not finite.
    """

    scores: np.ndarray
    predictions: np.ndarray


def fresh_noise(detector: Detector, ids: np.ndarray, *, seed: int, purpose: str) -> np.ndarray | None:
    """Draws for a random detector, float32 ``[n, *noise]``, keyed by image and purpose; None where it takes none.

    Args:
        detector: what is to score.
        ids: int64 ``[n]``, at least 0.
        seed: of the evaluation.
        purpose: what is scored, for draws that no search has seen.
    """
    if detector.noise is None:
        return None
    key = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8])
    streams = (np.random.default_rng([seed, int(image), key]) for image in ids)
    return np.stack([stream.standard_normal(detector.noise, dtype=np.float32) for stream in streams])


def score_images(
    detector: Detector,
    images: np.ndarray,
    noise: np.ndarray | None,
    *,
    on_images: Callable[[int], None] = lambda count: None,
) -> Scored:
    """Scores and classifies images; one draw each for a random detector.

    Args:
        detector: fitted.
        images: uint8 ``[n, C, H, W]``.
        noise: of `fresh_noise`.
        on_images: called with how many were just scored.
    """
    scores, predictions = [], []
    with torch.no_grad():
        for inputs, drawn, count in _batches(images, noise):
            scores.append(detector.score(inputs, drawn)[:count].float().numpy())
            predictions.append(predicted(detector.predict(inputs, drawn)[:count]).numpy())
            on_images(count)
    return Scored(np.concatenate(scores), np.concatenate(predictions))


def reconstruct_images(detector: Detector, images: np.ndarray, noise: np.ndarray | None) -> np.ndarray | None:
    """Reconstructions float32 ``[n, C, H, W]`` in [0, 1]; None where the detector has none; arguments as above."""
    found = []
    with torch.no_grad():
        for inputs, drawn, count in _batches(images, noise):
            again = detector.reconstruct(inputs, drawn)
            if again is None:
                return None
            found.append(again[:count].numpy())
    return np.concatenate(found)


def _batches(images: np.ndarray, noise: np.ndarray | None) -> Iterator[tuple[Tensor, Tensor | None, int]]:
    """`BATCH` images in [0, 1] and their draws at a time, the last ones filled up, and how many are to be counted."""
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        inputs = filled_call(torch.tensor(images[part]), BATCH)
        yield inputs, None if noise is None else filled_call(torch.tensor(noise[part]), BATCH), len(images[part])
