"""Clean images beside what a search made of them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from analysis.exhibits import row_key
from analysis.replay import stored_images
from analysis.summary import searched_rows
from workers.images import Dataset

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """Some images of a run, at most one row each.

    Attributes:
        run: its name, which no other run beside it has.
        title: the attack and its goal.
        keys: the `row_key` of each row.
        image: int64 ``[n]``, ids.
        clean, adversarial: uint8 ``[n, C, H, W]``.
        label, target, prediction: int64 ``[n]``; the target is −1 where the search was untargeted, the prediction the
            model's of the adversarial image.
        success: bool ``[n]``.
        left_out: images whose search changed nothing, of which there is nothing to see.
    """

    run: str
    title: str
    keys: tuple[str, ...]
    image: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    label: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    success: np.ndarray
    left_out: int

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def drawn(cls, run: str, title: str, table: pa.Table, dataset: Dataset, *, limit: int, seed: int) -> "Pairs":
        """Draws images of a run at random, and of each that was searched to an end one row.

        Successes and failures get half of the places each, and what one leaves free goes to the other, so that there
        are failures to look at where they are few.

        Args:
            run: its name, which no other run beside it has.
            title: the attack and its goal.
            table: the run's rows, of all budgets.
            dataset: of the run.
            limit: images at most.
            seed: of the draw.
        """
        rows = searched_rows(table)
        if not len(rows):
            return cls._of(run, title, rows, np.empty(0, dtype=np.int64), dataset, 0)
        order = np.random.default_rng(seed).permutation(len(rows))
        _, first = np.unique(rows["image_id"].to_numpy()[order], return_index=True)
        one = order[np.sort(first)]  # of each image a random row, in random order
        changed = rows["l0_features"].to_numpy()[one] > 0
        success = rows["success"].to_numpy(zero_copy_only=False)[one[changed]]
        won, lost = one[changed][success], one[changed][~success]
        most = max(limit - len(lost), limit - limit // 2)
        won = won[:most]
        chosen = np.sort(np.concatenate([won, lost[: limit - len(won)]]))
        return cls._of(run, title, rows, chosen, dataset, int((~changed).sum()))

    @classmethod
    def _of(cls, run: str, title: str, rows: pa.Table, chosen: np.ndarray, dataset: Dataset, left_out: int) -> "Pairs":
        rows = rows.take(pa.array(chosen))
        image = rows["image_id"].to_numpy()
        named = rows.select(["image_id", "target", "params_hash"]).to_pylist()
        return cls(
            run=run,
            title=title,
            keys=tuple(row_key(run, row) for row in named),
            image=image,
            clean=dataset.images[image],
            adversarial=stored_images(rows) if len(rows) else dataset.images[image],
            label=rows["label"].to_numpy().astype(np.int64),
            target=rows["target"].fill_null(-1).to_numpy().astype(np.int64),
            prediction=rows["adversarial_prediction"].to_numpy().astype(np.int64),
            success=rows["success"].to_numpy(zero_copy_only=False),
            left_out=left_out,
        )
