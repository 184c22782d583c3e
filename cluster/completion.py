"""What is left of a run, searched to its end: every row of the plan comes to stand in one part."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from cluster.pool import SearchPool
from cluster.queue import Done, Lost, Narrowed, Queue, Work
from cluster.singles import Singles
from cluster.store import Plan, RunFolder
from workers.actor import Shard, SharedModel
from workers.attacks.attack import Attack
from workers.images import Dataset
from workers.results import SearchResult, write_part

__all__ = ["Completion"]


class Completion:
    """The shards of a run that are not done, and the rows that are to be searched alone.

    Args:
        folder: the run's, held by this process.
        plan: the run's.
        attacks: the method with its parameters, one for each budget.
        dataset: the images that the plan's ids name.
        done: the shards that are done.
        retry_failed: whether rows with status ``failed`` are searched again.
    """

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        attacks: Sequence[Attack],
        dataset: Dataset,
        *,
        done: Sequence[int],
        retry_failed: bool = False,
    ) -> None:
        self._folder, self._plan, self._attacks, self._dataset = folder, plan, tuple(attacks), dataset
        self._singles = Singles(folder, plan)
        self._whole = np.ones(plan.shards, dtype=bool)
        self._whole[list(done)] = False
        self._staged = self._singles.staged()
        if retry_failed:  # a kill may have left some there, where a shard was being searched row by row
            self._staged = {shard: rows - self._singles.failed(shard, rows) for shard, rows in self._staged.items()}
        self._rows = {shard: self._singles.missing(shard, rows) for shard, rows in self._staged.items()}
        if retry_failed:
            self._rows = folder.failed(plan) | self._rows
        self._whole[list(self._rows)] = False
        for shard in [shard for shard, rows in self._rows.items() if not rows]:  # stopped just before that
            self._finish(shard)

    @property
    def rows_left(self) -> int:
        """The rows that are still to be searched, those of each budget counted."""
        whole = sum(self._plan.part_rows(shard) for shard in np.flatnonzero(self._whole).tolist())
        return whole + len(self._plan.params_hashes) * sum(map(len, self._rows.values()))

    @property
    def shards_left(self) -> int:
        """The shards whose part is not there, or is to be written again."""
        return int(self._whole.sum()) + len(self._rows)

    def run(self, pool: SearchPool, model: SharedModel, timeout: float) -> "Iterator[Done | Narrowed | Lost | None]":
        """Searches all that is left on a pool, and yields what happens; see `Queue` for that and for errors.

        Args:
            pool: the actors.
            model: what they attack.
            timeout: seconds that a shard may take.
        """
        queue = Queue(
            pool,
            self._work(),
            partial(self._load, model),
            self._plan.images,
            model=model,
            attacks=self._attacks,
            folder=self._folder.parts,
            timeout=timeout,
        )
        for event in queue:
            match event:
                case Done(Work(shard, None)):
                    self._whole[shard] = False
                case Narrowed(shard):
                    self._whole[shard] = False
                    self._rows[shard] = set(range(self._plan.images(shard)))
                case Done(Work(shard, int(row))):
                    self._end(shard, row)
                case Lost(Work(shard, int(row)), reason):
                    self._record_failure(shard, row, reason)
                    self._end(shard, row)
            yield event

    def _work(self) -> Iterator[Work]:
        for shard, rows in list(self._rows.items()):
            yield from (Work(shard, row) for row in sorted(rows))
        for shard in range(self._plan.shards):
            if self._whole[shard]:
                yield Work(shard)

    def _span(self, work: Work) -> slice:
        span = self._plan.span(work.shard)
        return span if work.row is None else slice(span.start + work.row, span.start + work.row + 1)

    def _load(self, model: SharedModel, work: Work) -> Shard:
        plan, span = self._plan, self._span(work)
        ids = plan.ids[span]
        if work.row is None:
            part, by_products = self._folder.part(work.shard), self._folder.by_products(work.shard)
        else:
            shard, row = work.shard, work.row
            part, by_products = self._singles.part(shard, row), self._singles.by_products(shard, row)
        return Shard(
            title=str(work),
            model=model,
            attacks=self._attacks,
            seed=plan.frozen["seed"],
            ids=ids,
            images=self._dataset.images[ids],
            labels=self._dataset.labels[ids],
            targets=None if plan.targets is None else plan.targets[span],
            split=self._dataset.split,
            block=plan.frozen["block"],
            batch=plan.frozen["batch"],
            part=part,
            by_products=by_products,
        )

    def _record_failure(self, shard: int, row: int, reason: str) -> None:
        span = self._span(Work(shard, row))
        ids, targets = self._plan.ids[span], self._plan.targets
        results = [
            SearchResult.failed(
                attack,
                ids,
                self._dataset.labels[ids],
                None if targets is None else targets[span],
                split=self._dataset.split,
                seed=self._plan.frozen["seed"],
                worker="",
                shape=self._dataset.shape,
                reason=reason,
            )
            for attack in self._attacks
        ]
        write_part(pa.concat_tables([result.to_table() for result in results]), self._singles.part(shard, row))

    def _end(self, shard: int, row: int) -> None:
        self._rows[shard].discard(row)
        self._staged.setdefault(shard, set()).add(row)
        if not self._rows[shard]:
            self._finish(shard)

    def _finish(self, shard: int) -> None:
        self._singles.assemble(shard, self._staged.pop(shard))
        del self._rows[shard]
