"""Replay: what a run's rows say, checked against the model and the images."""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from workers.attacks.attack import Attack
from workers.detectors.guarded import Judged
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.scores import answered, predicted
from workers.images import Dataset
from workers.remedies.remedied import judging
from workers.results import Status, distances

__all__ = ["TOLERANCE", "first_difference", "stored_images"]

TOLERANCE = 1e-4
"""Floats may differ by this much, so that a run made on one kind of device verifies on another."""

OnRows = Callable[[int], None]


def stored_images(table: pa.Table) -> np.ndarray:
    """The adversarial images of rows that have one, uint8 ``[n, C, H, W]``."""
    shape = table["shape"][0].as_py()
    column = table["adversarial"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shape)


def first_difference(
    table: pa.Table,
    attack: Attack,
    seed: int,
    dataset: Dataset,
    model: nn.Module,
    *,
    block: int,
    batch: int,
    on_rows: OnRows,
) -> str | None:
    """Puts every stored image through the model again and compares each row with what comes out.

    Checked: split, label, attack, parameters, seed, predictions, confidences, distances, status, success and the
    attack's budget. Failed rows have no image; of them it is checked that they give a reason.

    Args:
        table: a run's rows.
        attack: with the run's parameters.
        seed: the run's.
        dataset: the run's images.
        model: the run's model.
        block, batch: the run's evaluator.
        on_rows: called with the number of rows just checked.

    Returns:
        The first row that differs, and in what; None when none does.
    """
    evaluator = DenseEvaluator(judging(model), block=block, batch=batch)
    for start in range(0, len(table), 16 * batch):
        rows = table.slice(start, 16 * batch)
        kept = rows.filter(pc.not_equal(rows["status"].cast(pa.string()), str(Status.FAILED)))
        for row in rows.filter(pc.equal(rows["status"].cast(pa.string()), str(Status.FAILED))).to_pylist():
            if row["adversarial"] is not None or row["success"] or not row["error"]:
                return f"image {row['image_id']}: status is failed, but the row holds a result"
        if len(kept):
            for difference in _differences(kept, attack, seed, dataset, evaluator):
                return difference
        on_rows(len(rows))
    return None


def _differences(
    rows: pa.Table, attack: Attack, seed: int, dataset: Dataset, evaluator: DenseEvaluator
) -> Iterator[str]:
    said = {name: rows[name].to_numpy() for name in rows.column_names if name not in ("adversarial", "shape", "error")}
    ids = said["image_id"]
    if ids.min() < 0 or ids.max() >= len(dataset):
        stray = int(ids[(ids < 0) | (ids >= len(dataset))][0])
        yield f"image {stray}: {dataset.name} has images 0 to {len(dataset) - 1}"
        return
    clean, found = dataset.images[ids], stored_images(rows)
    if clean.shape != found.shape:
        yield f"image {ids[0]}: stored images have shape {found.shape[1:]}, {dataset.name} has {clean.shape[1:]}"
        return
    clean_logits, logits = (evaluator.logits(torch.tensor(x, device=evaluator.device)).cpu() for x in (clean, found))
    known = (answered(clean_logits) & answered(logits)).numpy()
    flagged = np.zeros(len(ids), dtype=bool)
    if isinstance(evaluator.model, Judged):  # behind a detector an image is not broken while it is flagged
        clean_logits, logits, flagged = clean_logits[:, :-1], logits[:, :-1], logits[:, -1].numpy() > 0
    moved = distances(clean, found)
    label = dataset.labels[ids]
    prediction, clean_prediction = predicted(logits).numpy(), predicted(clean_logits).numpy()
    target = rows["target"].fill_null(-1).to_numpy()
    reached = np.where(target < 0, prediction != label, prediction == target) & ~flagged
    status = said["status"].astype(str)
    certified = (status == Status.CERTIFIED) & attack.CERTIFIES
    expected_status = np.where(certified, str(Status.CERTIFIED), str(Status.EXHAUSTED)).astype(object)
    expected_status[reached] = str(Status.SUCCESS)
    expected_status[target == label] = str(Status.SKIPPED)
    expected_status[clean_prediction != label] = str(Status.ALREADY_WRONG)
    recomputed = {
        "label": label,
        "source_split": np.full(len(ids), dataset.split, dtype=object),
        "attack": np.full(len(ids), attack.NAME, dtype=object),
        "params_hash": np.full(len(ids), attack.params_hash, dtype=object),
        "seed": np.full(len(ids), seed),
        "clean_prediction": clean_prediction,
        "adversarial_prediction": prediction,
        "clean_confidence": clean_logits.softmax(dim=1).amax(dim=1).numpy(),
        "adversarial_confidence": logits.softmax(dim=1).amax(dim=1).numpy(),
        **vars(moved),
        "status": expected_status,
        "success": expected_status == str(Status.SUCCESS),
    }
    bad: list[tuple[int, str]] = []
    for name, values in recomputed.items():
        if np.issubdtype(values.dtype, np.floating):
            differs = ~(np.abs(said[name] - values) <= TOLERANCE * np.maximum(1, np.abs(values)))
        else:
            differs = said[name] != values
        bad += [
            (int(row), f"{name} is {said[name][row]}, replayed {values[row]}") for row in np.flatnonzero(differs)[:1]
        ]
    bad += [
        (int(row), "the row holds a result, replayed its answers are not finite") for row in np.flatnonzero(~known)[:1]
    ]
    broken = np.flatnonzero(~attack.within(moved, clean[0].size))
    bad += [(int(row), f"the stored image is outside the budget of {attack.NAME}") for row in broken[:1]]
    for row, text in sorted(bad):
        towards = "" if target[row] < 0 else f" towards {target[row]}"
        yield f"image {ids[row]}{towards}: {text}"
