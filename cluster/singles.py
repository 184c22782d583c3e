"""Rows that are searched one by one, staged beside the parts until their shard's part can be put together."""

from typing import Any, cast

import pyarrow as pa

from cluster.store import Plan, RunFolder, failed_rows
from workers.parquet import read_table
from workers.places import Place
from workers.results import write_part

__all__ = ["Singles"]

_KEY = ["image_id", "target", "params_hash"]


class Singles:
    """``RUN/singles/``: a file for each row (all of its budgets) whose search alone has ended.

    A row is staged when its file is whole. When all that a shard waits for are there, its part is written from
    them and from the rows that the part has already; then its files here go.

    Args:
        folder: the run's.
        plan: the run's.
    """

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._root = folder.place / "singles"
        self._before_by_products, self._before = folder.shard_rows(plan)

    def part(self, shard: int, row: int) -> Place:
        """The file of one row."""
        return self._root / f"part-{shard:06d}-{row:06d}.parquet"

    def by_products(self, shard: int, row: int) -> Place:
        """The file of what an attack leaves beside that row."""
        return self._root / f"by-products-{shard:06d}-{row:06d}.parquet"

    def staged(self) -> dict[int, set[int]]:
        """The rows that are here by shard: what a run that was stopped has of its searches row by row."""
        found: dict[int, set[int]] = {}
        for name in self._root.names():
            if name.startswith("part-"):
                shard, row = name.removeprefix("part-").removesuffix(".parquet").split("-")
                found.setdefault(int(shard), set()).add(int(row))
        return found

    def failed(self, shard: int, staged: set[int]) -> set[int]:
        """Those of a shard's rows here that have status ``failed`` at any budget."""
        return {row for row in staged if failed_rows(read_table(self.part(shard, row)), images=1)}

    def missing(self, shard: int, staged: set[int]) -> set[int]:
        """The rows of a shard that neither its part nor a file here has an end for.

        Args:
            shard: its number.
            staged: its rows that are here, and are to stay as they are.
        """
        images, base = self._plan.images(shard), self._before.of(shard)
        return (set(range(images)) if base is None else failed_rows(base, images)) - staged

    def assemble(self, shard: int, staged: set[int]) -> None:
        """Writes a shard's part, once nothing is missing.

        Args:
            shard: its number.
            staged: its rows that are here.
        """
        images, rows = self._plan.images(shard), sorted(staged)
        singles = {row: read_table(self.part(shard, row)) for row in rows}
        base = self._before.of(shard) if len(rows) < images else None
        order = [  # what is not staged stands in the part
            singles[row].slice(budget, 1) if row in singles else cast(pa.Table, base).slice(budget * images + row, 1)
            for budget in range(len(self._plan.params_hashes))
            for row in range(images)
        ]
        beside = [self.by_products(shard, row) for row in rows]
        self._assemble_by_products(shard, [place for place in beside if place.exists()], list(singles.values()))
        write_part(pa.concat_tables(order), self._folder.part(shard))
        for place in [*beside, *(self.part(shard, row) for row in rows)]:
            place.remove()

    def _assemble_by_products(self, shard: int, beside: list[Place], singles: list[pa.Table]) -> None:
        if not beside:
            return
        tables, before = [read_table(place) for place in beside], self._before_by_products.of(shard)
        if before is not None:  # without what the rows that were searched again left
            again = {key for table in singles for key in _keys(table)}
            tables.insert(0, before.filter(pa.array([key not in again for key in _keys(before)])))
        write_part(pa.concat_tables(tables, promote_options="default"), self._folder.by_products(shard))


def _keys(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.select(_KEY).to_pylist()]
