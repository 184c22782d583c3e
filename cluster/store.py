"""A run's folder: the frozen plan, the parts, and who may write there."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.lease import Lease, leased
from cluster.parts import (
    TARGET_BYTES,
    PartFile,
    ShardRows,
    compact,
    innermost_first,
    part_files,
    part_name,
    read_ahead,
    settle,
    uncompressed_bytes,
)
from workers.errors import StorageError, WrongInput
from workers.files import exclusive, held, require_place
from workers.parquet import read_footer, read_table
from workers.places import Place
from workers.results import Status, write_part

__all__ = ["Plan", "RunFolder", "failed_rows"]

_PLAN = pa.schema([pa.field("image_id", pa.int64()), pa.field("target", pa.int32())])
_BEGUN = re.compile(r"parts|plan\.parquet|\.lock|\.lease-\d{6,}|\.(plan\.parquet|run\.json)\.[0-9a-f]{12}\.tmp")
_PROBE = re.compile(r"\.(\.)?probe-[0-9a-f]{16}\.tmp(\.[0-9a-f]{12}\.tmp)?")  # also half written


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

    def images(self, shard: int) -> int:
        """The images (and targets) of a shard."""
        span = self.span(shard)
        return span.stop - span.start

    def part_rows(self, shard: int) -> int:
        """The rows of a shard's part."""
        return self.images(shard) * len(self.params_hashes)

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
        self._lease: Lease | None = None

    @property
    def exists(self) -> bool:
        """Whether a plan is frozen here."""
        return (self.place / "run.json").is_file()

    def require_usable(self) -> None:
        """Refuses a path that holds something else.

        Raises:
            WrongInput: when it is a file, or a folder with other things in it than a start leaves that was killed
                before the plan was frozen.
        """
        if self.place.local:
            if self.place.path.exists() and not self.place.path.is_dir():
                raise WrongInput(f"--out {self.place}: exists and is not a folder")
            require_place(self.place.path)
        try:
            if not self._barely_begun() and not self.exists:
                raise WrongInput(f"--out {self.place}: exists and is not a run's folder")
        except StorageError as error:
            raise WrongInput(f"--out {error}") from None

    def _barely_begun(self) -> bool:
        """Whether nothing is here but what a start leaves that has not frozen its plan: ours to write over."""
        names = self.place.names()
        if not all(_BEGUN.fullmatch(name) for name in names):
            return False
        try:
            if "parts" in names and not all(_PROBE.fullmatch(name) for name in self.parts.names()):
                return False
            return bool(read_footer(self.place / "plan.parquet").schema.to_arrow_schema().equals(_PLAN))
        except FileNotFoundError:
            return True
        except StorageError:
            raise
        except (OSError, pa.ArrowException):
            return False

    def create(self, plan: Plan) -> None:
        """Freezes a plan; ``run.json`` is written last, so that a plan is whole or absent.

        Raises:
            StorageError: when it cannot be written; nothing is left then.
        """
        self._confirm()
        columns: dict[str, Any] = {"image_id": plan.ids}
        columns["target"] = pa.nulls(len(plan.ids), pa.int32()) if plan.targets is None else plan.targets
        content = {
            "frozen": plan.frozen,
            "recorded": plan.recorded,
            "params_hashes": plan.params_hashes,
            "shard_size": plan.shard_size,
            "images": len(plan.ids),
        }
        try:
            write_part(pa.table(columns, schema=_PLAN), self.place / "plan.parquet")
            (self.place / "run.json").write((json.dumps(content, indent=1) + "\n").encode())
        except StorageError:
            with contextlib.suppress(StorageError):
                (self.place / "plan.parquet").remove()
            raise

    def forget(self) -> None:
        """Takes back what a refused start froze; only for the holder of the lock, which takes the folder back."""
        for name in ("run.json", "plan.parquet"):
            (self.place / name).remove()
        if self.place.local:
            with contextlib.suppress(OSError):  # absent, or somebody has put something there meanwhile
                self.parts.path.rmdir()

    def plan(self) -> Plan:
        """Reads the frozen plan.

        Raises:
            WrongInput: when there is none, it is broken, or the folder cannot be reached.
        """
        try:
            if not self.exists:
                raise WrongInput(f"{self.place}: not a run's folder (it has no run.json)")
        except StorageError as error:
            raise WrongInput(str(error)) from None
        try:
            content = json.loads((self.place / "run.json").read())
            if not isinstance(content, dict):
                raise ValueError("expected an object")
            table = read_table(self.place / "plan.parquet")
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
                f"{self.place}: its plan cannot be read (run.json): it lacks {error}, as that of another version of "
                "brittle would"
            ) from None
        except (OSError, ValueError, TypeError, pa.ArrowException) as error:
            raise WrongInput(
                f"{self.place}: its plan cannot be read (run.json, plan.parquet): {str(error).splitlines()[0]}"
            ) from None
        return plan

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one driver.

        On a disk by a lock that ends with the process, even one killed with -9; elsewhere by a `Lease`, which a
        process on the same host may take over at once after a kill, and others after some seconds.

        Raises:
            WrongInput: when another driver holds it, or it cannot be written to.
        """
        if self.place.local:
            with exclusive(self.place.path):
                yield
            return
        with Lease(self.place) as self._lease:
            try:
                yield
            finally:
                self._lease = None

    def check_held(self) -> None:
        """For a driver's loop: costs nothing.

        Raises:
            StorageError: when another driver has taken the folder over; only where it is held by a lease.
        """
        if self._lease is not None:
            self._lease.check()

    def busy(self) -> bool:
        """Whether a driver is at work here now."""
        return held(self.place.path) if self.place.local else leased(self.place)

    def sweep(self, plan: Plan | None = None) -> None:
        """Clears up after drivers and workers that were killed; only for the holder of the lock.

        Removes temporary files and, where the plan is known, leaves each shard in one file: it ends a compaction
        that was cut short.

        Raises:
            StorageError: when the folder cannot be written to, or another driver has taken it over.
        """
        for folder in (self.place, self.parts, self.place / "by-products", self.place / "singles"):
            for name in folder.names():
                if name.startswith(".") and name.endswith(".tmp"):
                    with contextlib.suppress(StorageError):
                        (folder / name).remove()
        if self.place.local:
            with contextlib.suppress(OSError):  # absent, or in use
                (self.place / "singles").path.rmdir()
        if plan is not None:
            for folder, valid in self._tables(plan):
                settle(folder, valid, self._confirm)

    def part(self, shard: int) -> Place:
        """Where a shard's rows are written."""
        return self.parts / part_name(shard)

    def by_products(self, shard: int) -> Place:
        """Where a worker writes what an attack leaves beside a shard's rows, by the same key; few leave any."""
        return self.place / "by-products" / part_name(shard)

    def done(self, plan: Plan) -> list[int]:
        """The shards whose rows are there, in a part with a valid footer; footers and keys are read for it."""
        return sorted(shard for shards, _ in self._held(plan, ()) for shard in shards)

    def shard_rows(self, plan: Plan) -> tuple[ShardRows, ShardRows]:
        """By-products and rows (a budget after the other) shard by shard, None of one that left none or is not done."""
        by_products, parts = self._tables(plan)
        return ShardRows(*by_products), ShardRows(*parts)

    def beside(self, plan: Plan) -> list[pa.Table | None]:
        """For each budget what the attack left beside the rows, by the same key; None where it left nothing."""
        nothing: list[pa.Table | None] = [None] * len(plan.params_hashes)
        if not (self.place / "by-products").names():  # else each shard's is asked for, of which there are none
            return nothing
        rows, _ = self.shard_rows(plan)
        found = [table for shard in range(plan.shards) if (table := rows.of(shard)) is not None]
        if not found:
            return nothing
        whole = pa.concat_tables(found, promote_options="default")
        return [whole.filter(pc.equal(whole["params_hash"], name)) for name in plan.params_hashes]

    def failed(self, plan: Plan) -> dict[int, set[int]]:
        """The rows with status ``failed`` at any budget, by the shard that they are in."""
        found: dict[int, set[int]] = {}
        for shards, table in self._held(plan, ("status",)):
            start = 0
            for shard in shards:
                count = plan.part_rows(shard)
                if rows := failed_rows(table.slice(start, count), plan.images(shard)):
                    found[shard] = rows
                start += count
        return found

    def damaged(self, done: Sequence[int]) -> list[str]:
        """The files among the parts whose shards are not `done`: they cannot be read, or hold other rows."""
        whole = set(done)
        return [file.place.name for file in part_files(self.parts) if not whole.issuperset(file.shards)]

    def tables(self, plan: Plan, columns: Sequence[str] | None = None) -> list[pa.Table]:
        """The tables of `read`.

        Raises:
            WrongInput: when no shard is done.
        """
        done, tables = self.read(plan, columns)
        if not done:
            raise WrongInput(f"{self.place}: has no results yet")
        return tables

    def read(self, plan: Plan, columns: Sequence[str] | None = None) -> tuple[list[int], list[pa.Table]]:
        """The shards that are done and, for each budget, their rows in the order of the plan; each part is read once.

        Args:
            plan: the run's.
            columns: what to read of each row; all when None, which takes the images along.

        Returns:
            No tables when no shard is done.
        """
        collected = [_Rows() for _ in plan.params_hashes]
        firsts: list[int] = []
        done: list[int] = []
        for shards, tables in self._pieces(plan, columns):
            firsts.append(shards[0])
            done += shards
            for rows, table in zip(collected, tables, strict=True):
                rows.add(table, small=columns is not None)
        return sorted(done), [rows.in_order(firsts) for rows in collected] if done else []

    def batches(self, plan: Plan, rows: int) -> Iterator[list[pa.Table]]:
        """The rows that are done for each budget, a number of them at once: for runs larger than memory.

        Args:
            plan: the run's.
            rows: how many of each budget at least, save for the last batch; a whole part is never split.

        Yields:
            Parts in the order of the plan, unless a compaction is under way.
        """
        waiting: list[list[pa.Table]] = []
        for _, tables in self._pieces(plan, None):
            waiting.append(tables)
            if sum(len(tables[0]) for tables in waiting) >= rows:
                yield [pa.concat_tables(budget) for budget in zip(*waiting, strict=True)]
                waiting = []
        if waiting:
            yield [pa.concat_tables(budget) for budget in zip(*waiting, strict=True)]

    def _pieces(self, plan: Plan, columns: Sequence[str] | None) -> Iterator[tuple[list[int], list[pa.Table]]]:
        """Shards that follow each other, and their rows for each budget; part by part."""
        budgets = len(plan.params_hashes)
        for shards, rows in self._held(plan, columns):
            start = 0
            for run in _runs(shards):
                counts = [plan.part_rows(shard) for shard in run]
                part = rows.slice(start, sum(counts))
                start += len(part)
                yield run, [part] if budgets == 1 else _by_budget(part, counts, budgets)

    def compact(self, plan: Plan, on_files: Callable[[int], None], *, target_bytes: int = TARGET_BYTES) -> int:
        """Merges small parts into large ones; only for the holder of the lock, after `sweep`.

        Readers see each row once meanwhile, and after a kill at any moment.

        Args:
            plan: the run's.
            on_files: called with the number of files just dealt with; `compactable` says how many there are.
            target_bytes: of a merged file, uncompressed.

        Returns:
            How many files there are then.

        Raises:
            StorageError: when the folder cannot be written to, or another driver has taken it over.
        """
        return sum(
            compact(folder, files, self._confirm, target_bytes=target_bytes, on_files=on_files)
            for folder, files in self._usable(plan)
        )

    def compactable(self, plan: Plan) -> int:
        """The number of files that `compact` goes through."""
        return sum(len(files) for _, files in self._usable(plan))

    def _usable(self, plan: Plan) -> list[tuple[Place, list[PartFile]]]:
        done = set(self.done(plan))
        return [
            (folder, [file for file in part_files(folder) if done.issuperset(file.shards)])
            for folder, _ in self._tables(plan)
        ]

    def _tables(self, plan: Plan) -> list[tuple[Place, Callable[[PartFile, pa.Table], bool]]]:
        """The two folders of Parquet files, by-products first, and what makes a file of each valid."""
        return [
            (self.place / "by-products", lambda file, table: file.last < plan.shards),
            (self.parts, lambda file, table: _holds(plan, file, table)),
        ]

    def _confirm(self) -> None:
        if self._lease is not None:
            self._lease.confirm()

    def _held(self, plan: Plan, columns: Sequence[str] | None) -> Iterator[tuple[list[int], pa.Table]]:
        """Shards that are done and their rows, file by file, each shard once."""
        seen: set[int] = set()

        def read(file: PartFile) -> tuple[PartFile, pa.Table | None, bool]:
            wanted = None if columns is None else [*columns, *(key for key in _KEYS if key not in columns)]
            try:
                table = read_table(file.place, wanted)
            except FileNotFoundError:
                return file, None, True
            except StorageError:
                raise
            except (OSError, pa.ArrowException):
                return file, None, False
            if not set(wanted or ()) <= set(table.column_names) or not _holds(plan, file, table):
                return file, None, False
            return file, table if columns is None else table.select(columns), False

        listed: list[PartFile] = []
        while True:
            before, listed = listed, part_files(self.parts)
            if listed == before:  # what vanished is still listed: it is broken, a dangling link say
                return
            files = [
                file
                for group in innermost_first(listed)
                for file in group
                if file.last < plan.shards and not seen.issuperset(file.shards)
            ]
            vanished = False
            for file, table, gone in read_ahead(read, files, uncompressed_bytes if columns is None else None):
                vanished |= gone  # a compaction has merged it since: its rows are in another file now
                shards = [shard for shard in file.shards if shard not in seen]
                if table is None or not shards:
                    continue
                seen.update(shards)
                yield shards, table if len(shards) == len(file.shards) else _rows_of(plan, file, table, shards)
            if not vanished:
                return


_KEYS = ("image_id", "target")


def failed_rows(part: pa.Table, images: int) -> set[int]:
    """The rows of a shard with status ``failed`` at any budget.

    Args:
        part: the shard's rows, a budget after the other.
        images: how many it has at each.
    """
    failed = pc.equal(part["status"].cast(pa.string()), str(Status.FAILED)).to_numpy()
    return set((np.flatnonzero(failed) % images).tolist())


def _holds(plan: Plan, file: PartFile, table: pa.Table) -> bool:
    """Whether a table has exactly the keys of a file's shards, in order."""
    budgets = len(plan.params_hashes)
    if file.last >= plan.shards or not set(_KEYS) <= set(table.column_names):
        return False
    spans = [plan.span(shard) for shard in file.shards]
    if len(table) != sum(map(plan.part_rows, file.shards)):
        return False
    rows = np.concatenate([np.tile(np.arange(span.start, span.stop), budgets) for span in spans])
    if not np.array_equal(table["image_id"].to_numpy(), plan.ids[rows]):
        return False
    if plan.targets is None:
        return bool(table["target"].null_count == len(table))
    return not table["target"].null_count and np.array_equal(table["target"].to_numpy(), plan.targets[rows])


def _rows_of(plan: Plan, file: PartFile, table: pa.Table, shards: Sequence[int]) -> pa.Table:
    """The rows of some shards of a file."""
    ends = np.cumsum([plan.part_rows(shard) for shard in file.shards])
    return pa.concat_tables(
        [table.slice(ends[shard - file.first] - plan.part_rows(shard), plan.part_rows(shard)) for shard in shards]
    )


def _by_budget(part: pa.Table, counts: Sequence[int], budgets: int) -> list[pa.Table]:
    """Splits the rows of shards, each of which has a budget after the other."""
    slices: list[list[pa.Table]] = [[] for _ in range(budgets)]
    start = 0
    for count in counts:
        for budget, rows in enumerate(slices):
            rows.append(part.slice(start + budget * (count // budgets), count // budgets))
        start += count
    return [pa.concat_tables(rows).combine_chunks() for rows in slices]


def _runs(shards: Sequence[int]) -> Iterator[list[int]]:
    """Splits ascending numbers where one is left out."""
    run: list[int] = []
    for shard in shards:
        if run and shard != run[-1] + 1:
            yield run
            run = []
        run.append(shard)
    if run:
        yield run


class _Rows:
    """Rows that come part by part; small columns are merged on the way, since each piece of one has a weight."""

    MERGED = 256

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._merged: list[pa.Table] = []
        self._recent: list[pa.Table] = []

    def add(self, table: pa.Table, *, small: bool) -> None:
        self._counts.append(len(table))
        self._recent.append(table)
        if small and len(self._recent) == self.MERGED:
            self._merged.append(pa.concat_tables(self._recent).combine_chunks())
            self._recent = []

    def in_order(self, firsts: Sequence[int]) -> pa.Table:
        """All of them, in the order of these numbers, one for each that was added."""
        table = pa.concat_tables([*self._merged, *self._recent])
        order = np.argsort(firsts, kind="stable")
        if np.array_equal(order, np.arange(len(order))):
            return table
        starts = np.cumsum([0, *self._counts])
        return table.take(np.concatenate([np.arange(starts[i], starts[i + 1]) for i in order]))
