"""The margin of a wrong class against a loop over logits."""

import numpy as np
import pytest
import torch

from tests.conftest import random_images, random_model
from workers.evaluation.answers import answers, margins
from workers.evaluation.dense import DenseEvaluator


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_margins_equal_a_loop(kind: str) -> None:
    model, shape, classes = random_model(kind, 95)
    images = random_images(shape, 30, 96)
    labels = np.random.default_rng(97).integers(0, classes, 30)
    labels[:15] = answers(model, images)[:15]
    found = margins(model, images, labels)
    logits = DenseEvaluator(model).logits(torch.tensor(images)).numpy()
    for row, label, margin in zip(logits, labels, found, strict=True):
        assert margin == pytest.approx(max(np.delete(row, label)) - row[label], abs=1e-5)
    assert ((found > 0) == (answers(model, images) != labels)).all()
    assert len(margins(model, images[:0], labels[:0])) == 0
