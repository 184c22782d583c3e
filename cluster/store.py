"""A run's folder: the frozen plan, the parts, and who may write there."""

import contextlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.errors import StorageError, WrongInput
from workers.files import exclusive, held, require_place
from workers.places import Place
from workers.results import write_part

__all__ = ["Plan", "RunFolder"]


@dataclass(frozen=True)
class Plan:
    """What a run is, resolved once and frozen in its folder.

    Attributes:
        frozen: what a later start must agree with, field by field: attack and parameters, seed, selection of
            images, content hashes of model, data and code, device, threads, block and batch.
        recorded: what is only written down: names and paths, versions.
        ids: int64 ``[n]``, image ids in the order of the plan.
        targets: int64 ``[n]``, None when untargeted.
        params_hashes: what the results call the attack at each of its budgets; a part holds its shard's images
            once for each, a budget after the other.
        shard_size: images (and targets) a shard; shard i holds those from i·size to (i + 1)·size.
    """

    frozen: dict[str, Any]
    recorded: dict[str, Any]
    ids: np.ndarray
    targets: np.ndarray | None
    params_hashes: tuple[str, ...]
    shard_size: int

    @property
    def rows(self) -> int:
        """The rows of the whole run."""
        return len(self.ids) * len(self.params_hashes)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-len(self.ids) // self.shard_size)

    def part_rows(self, shard: int) -> int:
        """The rows of a shard's part."""
        return len(self.ids[self.span(shard)]) * len(self.params_hashes)

    def span(self, shard: int) -> slice:
        """Where a shard's images are in the plan."""
        return slice(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.ids)))


class RunFolder:
    """A run's files: ``run.json``, ``plan.parquet``, ``parts/part-*.parquet``, for some attacks ``by-products/``.

    Args:
        place: the folder, on a disk or by a URI; it need not exist yet.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.parts = place / "parts"

    @property
    def exists(self) -> bool:
        """Whether a plan is frozen here."""
        return (self.place / "run.json").is_file()

    def require_usable(self) -> None:
        """Refuses a path that holds something else.

        Raises:
            WrongInput: when it is a file, or a folder with other things in it.
        """
        ours = {"plan.parquet", "parts", ".lock"}
        if self.place.local:
            if self.place.path.exists() and not self.place.path.is_dir():
                raise WrongInput(f"--out {self.place}: exists and is not a folder")
            require_place(self.place.path)
        try:
            if not self.exists and set(self.place.names()) - ours:
                raise WrongInput(f"--out {self.place}: exists and is not a run's folder")
        except StorageError as error:
            raise WrongInput(f"--out {error}") from None

    def create(self, plan: Plan) -> None:
        """Freezes a plan; ``run.json`` is written last, so that a plan is whole or absent."""
        columns: dict[str, Any] = {"image_id": plan.ids}
        columns["target"] = pa.nulls(len(plan.ids), pa.int32()) if plan.targets is None else plan.targets
        schema = pa.schema([pa.field("image_id", pa.int64()), pa.field("target", pa.int32())])
        write_part(pa.table(columns, schema=schema), self.place / "plan.parquet")
        content = {
            "frozen": plan.frozen,
            "recorded": plan.recorded,
            "params_hashes": plan.params_hashes,
            "shard_size": plan.shard_size,
            "images": len(plan.ids),
        }
        (self.place / "run.json").write((json.dumps(content, indent=1) + "\n").encode())

    def forget(self, made: Sequence[Path]) -> None:
        """Takes back what a refused start froze, and the folders that it made; only for the holder of the lock."""
        for name in ("run.json", "plan.parquet"):
            (self.place / name).remove()
        if not self.place.local:
            return
        (self.place / ".lock").remove()
        for folder in (self.parts.path, *made):
            with contextlib.suppress(OSError):  # absent, or somebody has put something there meanwhile
                folder.rmdir()

    def plan(self) -> Plan:
        """Reads the frozen plan.

        Raises:
            WrongInput: when there is none, or it is broken.
        """
        if not self.exists:
            raise WrongInput(f"{self.place}: not a run's folder (it has no run.json)")
        try:
            content = json.loads((self.place / "run.json").read())
            with (self.place / "plan.parquet").open() as file:
                table = pq.read_table(file)
            ids, targets = table["image_id"].to_numpy(), table["target"]
            plan = Plan(
                content["frozen"],
                content["recorded"],
                ids,
                None if targets.null_count else targets.to_numpy().astype(np.int64),
                tuple(content["params_hashes"]),
                content["shard_size"],
            )
            if plan.shard_size < 1:
                raise ValueError(f"run.json has shard_size {plan.shard_size}")
            if len(ids) != content["images"]:
                raise ValueError(f"run.json says {content['images']} images, plan.parquet has {len(ids)}")
        except KeyError as error:
            raise WrongInput(
                f"{self.place}: its plan cannot be read: it lacks {error}, as one of another version of brittle would"
            ) from None
        except (OSError, ValueError, TypeError, pa.ArrowException) as error:
            raise WrongInput(f"{self.place}: its plan cannot be read: {str(error).splitlines()[0]}") from None
        return plan

    def locked(self) -> AbstractContextManager[None]:
        """Holds the folder for one driver; the lock ends with the process, even one killed with -9.

        Raises:
            WrongInput: when another driver holds it.
        """
        return exclusive(self.place.path)

    def busy(self) -> bool:
        """Whether a driver is at work here now."""
        return held(self.place.path)

    def sweep(self) -> None:
        """Removes the temporary files of processes that were killed; only for the holder of the lock."""
        for folder in (self.place, self.parts, self.place / "by-products", self.place / "singles"):
            for name in folder.names():
                if name.startswith(".") and name.endswith(".tmp"):
                    with contextlib.suppress(StorageError):
                        (folder / name).remove()
        if self.place.local:
            with contextlib.suppress(OSError):  # absent, or in use
                (self.place / "singles").path.rmdir()

    def part(self, shard: int) -> Place:
        """The file of a shard's rows."""
        return self.parts / f"part-{shard:06d}.parquet"

    def by_products(self, shard: int) -> Place:
        """The file of what an attack leaves beside a shard's rows, by the same key; few attacks leave any."""
        return self.place / "by-products" / f"part-{shard:06d}.parquet"

    def done(self, plan: Plan) -> list[int]:
        """The shards whose part is there with a valid footer and exactly the shard's rows."""
        return [shard for shard in range(plan.shards) if self.has(plan, shard)]

    def tables(self, plan: Plan) -> list[pa.Table]:
        """For each budget the rows of the shards that are done, in the order of the plan.

        Raises:
            WrongInput: when none is.
        """
        done = self.done(plan)
        if not done:
            raise WrongInput(f"{self.place}: has no results yet")
        parts: list[list[pa.Table]] = [[] for _ in plan.params_hashes]
        for shard in done:
            with self.part(shard).open() as file:
                part, images = pq.read_table(file), len(plan.ids[plan.span(shard)])
            for budget, rows in enumerate(parts):
                rows.append(part.slice(budget * images, images))
        return [pa.concat_tables(rows) for rows in parts]

    def has(self, plan: Plan, shard: int) -> bool:
        """Whether a shard is done."""
        span, budgets = plan.span(shard), len(plan.params_hashes)
        try:
            with self.part(shard).open() as file:
                keys = pq.read_table(file, columns=["image_id", "target"])
        except FileNotFoundError:
            return False
        except (StorageError, pa.ArrowException):
            return False
        if not np.array_equal(keys["image_id"].to_numpy(), np.tile(plan.ids[span], budgets)):
            return False
        if plan.targets is None:
            return bool(keys["target"].null_count == len(keys))
        targets = np.tile(plan.targets[span], budgets)
        return not keys["target"].null_count and np.array_equal(keys["target"].to_numpy(), targets)
