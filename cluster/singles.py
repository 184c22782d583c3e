"""Rows that are searched one by one, staged beside the parts until their shard's part can be put together."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.store import Plan, RunFolder
from workers.results import Status, write_part

__all__ = ["Singles"]

_KEY = ["image_id", "target", "params_hash"]


class Singles:
    """``RUN/singles/``: a folder for each shard, in it a file for each row (all of its budgets) that has ended.

    A row is staged when its file is whole. When all that a shard waits for are there, its part is written from
    them and from the rows that the part has already; then the shard's folder goes.

    Args:
        folder: the run's.
        plan: the run's.
    """

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._root = folder.path / "singles"

    def part(self, shard: int, row: int) -> Path:
        """The file of one row; its folder is made."""
        return self._place(shard) / f"row-{row:06d}.parquet"

    def by_products(self, shard: int, row: int) -> Path:
        """The file of what an attack leaves beside that row."""
        return self._place(shard) / f"by-products-{row:06d}.parquet"

    def begun(self) -> list[int]:
        """The shards that were being searched row by row when the run was stopped."""
        return sorted(int(path.name.removeprefix("part-")) for path in self._root.glob("part-*"))

    def missing(self, shard: int) -> list[int]:
        """The rows of a shard that neither its part nor a file here has an end for."""
        lacking = range(len(self._plan.ids[self._plan.span(shard)]))
        staged = {row for row in lacking if self.part(shard, row).exists()}
        kept = set() if self._base(shard) is None else set(lacking) - set(self.failed(shard))
        return [row for row in lacking if row not in staged | kept]

    def failed(self, shard: int) -> list[int]:
        """The rows of a shard that is done whose search broke, at any budget."""
        status = pq.read_table(self._folder.part(shard), columns=["status"])["status"].cast(pa.string())
        images = len(self._plan.ids[self._plan.span(shard)])
        return sorted({int(row) % images for row in np.flatnonzero(pc.equal(status, str(Status.FAILED)).to_numpy())})

    def assemble(self, shard: int) -> None:
        """Writes a shard's part, once nothing is missing."""
        images, budgets = len(self._plan.ids[self._plan.span(shard)]), len(self._plan.params_hashes)
        staged = {row: self.part(shard, row) for row in range(images) if self.part(shard, row).exists()}
        base, singles = self._base(shard), {row: pq.read_table(path) for row, path in staged.items()}
        rows = [  # what is not staged stands in the part
            singles[row].slice(budget, 1) if row in singles else cast(pa.Table, base).slice(budget * images + row, 1)
            for budget in range(budgets)
            for row in range(images)
        ]
        self._assemble_by_products(shard, list(staged))
        write_part(pa.concat_tables(rows), self._folder.part(shard))
        place = self._place(shard)
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
        if not any(self._root.iterdir()):
            self._root.rmdir()

    def _assemble_by_products(self, shard: int, staged: list[int]) -> None:
        beside = [self.by_products(shard, row) for row in staged]
        tables = [pq.read_table(path) for path in beside if path.exists()]
        if not tables:
            return
        whole = self._folder.by_products(shard)
        if whole.exists():  # without what the rows that were searched again left before
            again = {row for number in staged for row in _keys(pq.read_table(self.part(shard, number)))}
            before = pq.read_table(whole)
            tables.insert(0, before.filter(pa.array([row not in again for row in _keys(before)])))
        whole.parent.mkdir(exist_ok=True)
        write_part(pa.concat_tables(tables), whole)

    def _base(self, shard: int) -> pa.Table | None:
        return pq.read_table(self._folder.part(shard)) if self._folder.has(self._plan, shard) else None

    def _place(self, shard: int) -> Path:
        place = self._root / f"part-{shard:06d}"
        place.mkdir(parents=True, exist_ok=True)
        return place


def _keys(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.select(_KEY).to_pylist()]
