"""Made-up attacks on made-up detectors."""

from typing import Any

import numpy as np

from analysis.detection import AttackRows, Kind


def rows(name: str = "cw", *, kind: Kind = Kind.NAIVE, score: Any, fooled: Any, **given: Any) -> AttackRows:
    """An attack on images of label 3, all attempted and within every threat unless given otherwise."""
    count = len(score)
    fooled = np.asarray(fooled, dtype=bool)
    arrays: dict[str, Any] = {
        "image_id": np.arange(count),
        "label": np.full(count, 3),
        "clean_prediction": np.full(count, 3),
        "prediction": np.where(fooled, 5, 3),
        "clean_score": np.zeros(count),
        "l0": np.ones(count, dtype=int),
        "l2": np.full(count, 0.01),
        "linf": np.full(count, 0.01),
        "attempted": np.ones(count, dtype=bool),
    } | {key: np.asarray(value) for key, value in given.items()}
    return AttackRows(name, "--steps 40", False, kind, fooled=fooled, score=np.asarray(score, dtype=float), **arrays)
