"""Searches that failed on some images, in what an evaluation of detectors counts: the same images in every rate."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from analysis.detection import Kind, SeedNumbers, Threshold
from analysis.statistics import Rate
from jobs import detection
from jobs.detection import Attacked, Detection
from jobs.guard import Named
from jobs.threat import naive_searches
from workers.evaluation.answers import UNANSWERED
from workers.threat import Ball

IDS = np.arange(6)
LABELS = np.array([0, 1, 0, 1, 0, 1])
FAILED = [2, 5]
KEPT = [0, 1, 3, 4]
FOUND = [1, 1, 0, 0]
"""What the kept searches came to, of `KEPT`: two are turned."""


class Bright(nn.Module):
    """Class 1 for an image whose first pixel is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.least = nn.Parameter(torch.tensor(0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = images[:, 0, 0, 0] - self.least
        return torch.stack([-first, first], dim=1)


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Detection, Any]:
    """An evaluation of which every run failed on two of six images, and a guard."""
    images = np.zeros((6, 1, 2, 2), np.uint8)
    images[LABELS == 1, 0, 0, 0] = 255
    attacked = images[KEPT].copy()
    attacked[:, 0, 0, 0] = np.array(FOUND, np.uint8) * 255
    table = pa.table(
        {
            "image_id": IDS,
            "label": LABELS,
            "status": ["failed" if image in FAILED else "success" for image in IDS],
            "error": ["no answer" if image in FAILED else None for image in IDS],
            "adversarial_prediction": [1, 1, None, 0, 0, None],
        }
    )
    folder = SimpleNamespace(plan=lambda: None, tables=lambda plan, columns=None: (table,))
    monkeypatch.setattr(detection, "RunFolder", lambda place: folder)
    monkeypatch.setattr(detection, "stored_images", lambda rows: attacked)
    monkeypatch.setattr(detection, "reconstruct_images", lambda detector, pictures, noise: pictures / np.float32(255))

    def score(named: Any, detector: Any, images: Any, ids: Any, *more: Any, **others: Any) -> pa.Table:
        return pa.table({"image_id": ids, "score": np.zeros(len(ids)), "prediction": FOUND})

    monkeypatch.setattr(detection, "score", score)
    whole = object.__new__(Detection)
    whole.subject = SimpleNamespace(  # type: ignore[assignment]
        model=Bright().eval(), dataset=SimpleNamespace(images=images, labels=LABELS)
    )
    whole.folder, whole.question = SimpleNamespace(path=tmp_path), SimpleNamespace(seed=0)  # type: ignore[assignment]
    whole.threat = Ball("linf", 0.1)
    guard = SimpleNamespace(
        named=Named.of("vae-kl"),
        detector=SimpleNamespace(noise=None, repairs=False),
        thresholds={0.05: Threshold(0.05, 0.5, Rate(0, 1))},
        test=pa.table({"image_id": IDS, "score": np.zeros(6), "prediction": LABELS}),
    )
    return whole, guard


def test_the_original_numbers_are_all_of_the_same_images(one: tuple[Detection, Any]) -> None:
    whole, guard = one
    ifgsm = whole._attacked(guard, naive_searches(whole.judged)[0], whole.subject)
    assert ifgsm.name == "ifgsm"
    found = whole._seed_numbers(guard, ifgsm)
    unsure = Rate(2, 6, unknown=2)
    flagged = Rate(0, 6, unknown=2)
    assert found == SeedNumbers(unsure, unsure, Rate(6, 6), flagged, Rate(0, 6), 0.3)


def test_what_fails_on_one_detector_is_not_known_on_another(one: tuple[Detection, Any]) -> None:
    whole, guard = one
    search = naive_searches(whole.judged)[0]
    found = whole._attacked(guard, search, whole.subject)
    other = SimpleNamespace(named=Named.of("magnet"), thresholds=guard.thresholds)
    (tried,) = whole._transferred(guard, [Attacked(other, {search: found})])  # type: ignore[arg-type]
    assert tried.kind == Kind.TRANSFER
    assert sorted(tried.image_id) == IDS.tolist()
    assert sorted(tried.image_id[tried.prediction == UNANSWERED]) == FAILED
    assert tried.evasion(guard.thresholds[0.05]) == Rate(2, 6, unknown=2)
