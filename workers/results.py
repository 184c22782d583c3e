"""What a search returns, the one Arrow schema it is kept in, and the file it is written to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.places import Place

if TYPE_CHECKING:
    from workers.attacks.attack import Attack

__all__ = [
    "SCHEMA_VERSION",
    "SEARCHED",
    "Distances",
    "SearchResult",
    "Status",
    "by_products_table",
    "distances",
    "schema",
    "write_part",
]

SCHEMA_VERSION = "1"


class Status(StrEnum):
    """How the search for one image ended.

    ``success``: the stored image reaches the goal. ``exhausted``: the budget or the admissible changes
    ended first. ``certified``: no change in the stated space succeeds. ``already_wrong``: the clean image
    is misclassified, nothing was searched. ``skipped``: the target is the image's own label. ``failed``:
    the search broke, or met changes that the model gave no answer to; ``error`` says how.
    """

    SUCCESS = "success"
    EXHAUSTED = "exhausted"
    CERTIFIED = "certified"
    ALREADY_WRONG = "already_wrong"
    SKIPPED = "skipped"
    FAILED = "failed"


SEARCHED = (Status.SUCCESS, Status.EXHAUSTED, Status.CERTIFIED)
"""How a search that came to an end may have ended."""


@dataclass(frozen=True)
class Distances:
    """How far images moved, each ``[n]``; l1, l2 and linf on pixels in [0, 1].

    ``l0`` counts pixels (positions where any channel differs), ``l0_features`` single channel values.
    """

    l0: np.ndarray
    l0_features: np.ndarray
    l1: np.ndarray
    l2: np.ndarray
    linf: np.ndarray


def distances(clean: np.ndarray, adversarial: np.ndarray) -> Distances:
    """Distances between uint8 images ``[n, C, H, W]``, exact in integers before the one division."""
    change = adversarial.astype(np.int64) - clean.astype(np.int64)
    flat = np.abs(change).reshape(len(change), -1)
    return Distances(
        l0=change.any(axis=1).reshape(len(change), -1).sum(axis=1),
        l0_features=(flat != 0).sum(axis=1),
        l1=flat.sum(axis=1) / 255,
        l2=np.sqrt((flat**2).sum(axis=1)) / 255,
        linf=flat.max(axis=1) / 255,
    )


@dataclass(frozen=True)
class SearchResult:
    """One row an image and target, all arrays of length n.

    Attributes:
        image_id: int64, the image's position in its split.
        source_split: the split's name.
        label: int64, the true class.
        attack: the attack's name.
        params_hash: identifies the attack's parameters.
        target: int64, the target class, −1 when untargeted (null in the table).
        seed: the search's seed.
        status: `Status` values.
        clean_prediction, adversarial_prediction: int64, the predicted classes; −2 for an image without an answer.
        clean_confidence, adversarial_confidence: float32, the softmax probability of that prediction.
        distances: how far the stored image is from the clean one.
        queries: int64, images the search put through the model, gradients' forward passes included; the
            clean prediction and the final score are not counted.
        gradients: int64, backward passes.
        generations: int64, iterations of the method.
        seconds: float64, this image's equal share of its batch's wall time.
        worker: who searched.
        adversarial: uint8 ``[n, C, H, W]``, the image that was scored; after a search without success
            the best or the last that it had.
        error: why a search broke, None elsewhere.
        by_products: arrays ``[n, …]`` by name that the attack leaves beside the rows; zeros where not searched.
    """

    image_id: np.ndarray
    source_split: str
    label: np.ndarray
    attack: str
    params_hash: str
    target: np.ndarray
    seed: int
    status: np.ndarray
    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
    clean_confidence: np.ndarray
    adversarial_confidence: np.ndarray
    distances: Distances
    queries: np.ndarray
    gradients: np.ndarray
    generations: np.ndarray
    seconds: np.ndarray
    worker: str
    adversarial: np.ndarray
    error: Sequence[str | None]
    by_products: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def failed(
        cls,
        attack: "Attack",
        ids: np.ndarray,
        labels: np.ndarray,
        targets: np.ndarray | None,
        *,
        split: str,
        seed: int,
        worker: str,
        shape: tuple[int, ...],
        reason: str,
    ) -> "SearchResult":
        """Rows of images whose search broke: status ``failed``, the reason, and nothing found."""
        count = len(ids)
        nothing, images = np.zeros(count, dtype=np.int64), np.zeros((count, *shape), dtype=np.uint8)
        return cls(
            image_id=ids,
            source_split=split,
            label=labels,
            attack=attack.NAME,
            params_hash=attack.params_hash,
            target=np.full(count, -1) if targets is None else targets,
            seed=seed,
            status=np.full(count, Status.FAILED, dtype=object),
            clean_prediction=nothing,
            adversarial_prediction=nothing,
            clean_confidence=nothing,
            adversarial_confidence=nothing,
            distances=distances(images, images),
            queries=nothing,
            gradients=nothing,
            generations=nothing,
            seconds=nothing.astype(np.float64),
            worker=worker,
            adversarial=images,
            error=[reason] * count,
        )

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def success(self) -> np.ndarray:
        """bool ``[n]``: the status is ``success``."""
        return self.status == Status.SUCCESS

    def to_table(self) -> pa.Table:
        """The rows in the schema of results; a failed row has nulls for all that was not found."""
        count = len(self)
        failed = self.status == Status.FAILED
        shape = self.adversarial.shape[1:]
        features = int(np.prod(shape))
        pixels = pa.array(self.adversarial.reshape(-1))
        images = pa.FixedSizeListArray.from_arrays(pixels, features, mask=pa.array(failed))
        columns: dict[str, Any] = {
            "image_id": self.image_id,
            "source_split": [self.source_split] * count,
            "label": self.label,
            "attack": [self.attack] * count,
            "params_hash": [self.params_hash] * count,
            "target": pa.array(self.target, pa.int32(), mask=self.target < 0),
            "seed": [self.seed] * count,
            "status": [str(status) for status in self.status],
            "success": self.success,
        }
        found = {
            "clean_prediction": self.clean_prediction,
            "adversarial_prediction": self.adversarial_prediction,
            "clean_confidence": self.clean_confidence,
            "adversarial_confidence": self.adversarial_confidence,
            **vars(self.distances),
        }
        kinds = {field.name: field.type for field in schema(shape)}
        columns |= {name: pa.array(np.asarray(v), mask=failed).cast(kinds[name]) for name, v in found.items()}
        columns |= {
            "queries": self.queries,
            "gradients": self.gradients,
            "generations": self.generations,
            "seconds": self.seconds,
            "worker": [self.worker] * count,
            "adversarial": images,
            "shape": [list(shape)] * count,
            "error": pa.array(self.error, pa.string()),
        }
        return pa.table(columns, schema=schema(shape))


def by_products_table(result: SearchResult) -> pa.Table | None:
    """What an attack left beside its rows, by the same key, arrays flattened; None when it left nothing.

    Some by-products are left only where there is something to say: tables of other shards or budgets may lack them.
    """
    if not result.by_products:
        return None
    rows = result.to_table().select(["image_id", "target", "params_hash"])
    for name, values in result.by_products.items():
        flat = pa.array(values.reshape(-1))
        column = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
        rows = rows.append_column(name, column)
    return rows


def schema(shape: Sequence[int]) -> pa.Schema:
    """The schema of results for images of ``(C, H, W)``; (image_id, target, params_hash) is its key."""
    fields = [
        ("image_id", pa.int64(), False),
        ("source_split", pa.string(), False),
        ("label", pa.int32(), False),
        ("attack", pa.string(), False),
        ("params_hash", pa.string(), False),
        ("target", pa.int32(), True),
        ("seed", pa.int64(), False),
        ("status", pa.dictionary(pa.int8(), pa.string()), False),
        ("success", pa.bool_(), False),
        ("clean_prediction", pa.int32(), True),
        ("adversarial_prediction", pa.int32(), True),
        ("clean_confidence", pa.float32(), True),
        ("adversarial_confidence", pa.float32(), True),
        ("l0", pa.int32(), True),
        ("l0_features", pa.int32(), True),
        ("l1", pa.float32(), True),
        ("l2", pa.float32(), True),
        ("linf", pa.float32(), True),
        ("queries", pa.int64(), False),
        ("gradients", pa.int64(), False),
        ("generations", pa.int32(), False),
        ("seconds", pa.float64(), False),
        ("worker", pa.string(), False),
        ("adversarial", pa.list_(pa.uint8(), int(np.prod(shape))), True),
        ("shape", pa.list_(pa.int32(), 3), False),
        ("error", pa.string(), True),
    ]
    metadata = {"brittle.schema_version": SCHEMA_VERSION}
    return pa.schema([pa.field(name, kind, nullable=null) for name, kind, null in fields], metadata=metadata)


def write_part(table: pa.Table, place: Place, *, row_group_size: int | None = None) -> None:
    """Writes a table as one Parquet file that is either whole or absent.

    The same rows go to the same place whoever writes them, so a part that is written twice is one part.

    Raises:
        StorageError: naming the place and the reason; nothing is left then.
    """
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    place.write(buffer.getvalue().to_pybytes())
