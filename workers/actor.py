"""The search actor: holds the shared model, searches one shard at a time and writes its part."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.places import Place

if TYPE_CHECKING:
    from ray import ObjectRef
    from torch import nn

    from workers.attacks.attack import Attack
    from workers.models.loading import ModelRecipe
    from workers.remedies.checks import Probe
    from workers.results import SearchResult

__all__ = ["Introduction", "Outcome", "SearchActor", "Shard", "ShardSummary", "SharedModel", "WorkerBroken"]


MEMORY_SHARE = 0.5
"""Of a GPU's free memory that a batch may take; the rest is for the search's own state."""

log = logging.getLogger("brittle")


class WorkerBroken(Exception):
    """The process can search no further, out of memory for example: the caller is to start it anew."""


@dataclass(frozen=True)
class SharedModel:
    """A model in the object store, put there once for all actors.

    Attributes:
        content_hash: the recipe's.
        reference: the recipe's reference, in a list so that Ray does not resolve it before the call.
    """

    content_hash: str
    reference: "list[ObjectRef[ModelRecipe]]"


@dataclass(frozen=True)
class Introduction:
    """Who an actor is, said when it is ready to search.

    Attributes:
        name: written into the rows: ``worker-3@host``.
        node: Ray's id of its node.
        pid: its process there.
        device: ``cpu`` or ``cuda``.
        versions: see `workers.versions.versions`.
    """

    name: str
    node: str
    pid: int
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Shard:
    """The work of one call: images with their labels and targets, and where the part goes.

    Attributes:
        title: what logs call it, ``shard 12`` or ``shard 12, row 3``.
        model: what is attacked.
        attacks: the method with its parameters, one for each budget.
        seed: keys the random streams.
        ids: int64 ``[n]``.
        images: uint8 ``[n, C, H, W]``.
        labels: int64 ``[n]``.
        targets: int64 ``[n]``, None when untargeted.
        split: the data set's split.
        block, batch: of the evaluator.
        part: the file to write.
        by_products: the file for what the attack leaves beside its rows.
    """

    title: str
    model: SharedModel
    attacks: "tuple[Attack, ...]"
    seed: int
    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray | None
    split: str
    block: int
    batch: int
    part: Place
    by_products: Place


@dataclass(frozen=True)
class Outcome:
    """What rows came to.

    Attributes:
        searched: rows whose image was searched to an end.
        successes: rows with status ``success``.
        failed: rows with status ``failed``.
    """

    searched: int = 0
    successes: int = 0
    failed: int = 0

    def plus(self, other: "Outcome") -> "Outcome":
        """Of both together."""
        return Outcome(self.searched + other.searched, self.successes + other.successes, self.failed + other.failed)


@dataclass(frozen=True)
class ShardSummary:
    """What the driver hears of a finished shard; the rows stay in the part.

    Attributes:
        rows: how many rows the part has.
        outcomes: of the rows at each of the attack's budgets, in their order.
        queries: model evaluations.
        seconds: wall time in the actor.
    """

    rows: int
    outcomes: tuple[Outcome, ...]
    queries: int
    seconds: float

    @property
    def all(self) -> Outcome:
        """Of the rows at all budgets."""
        return reduce(Outcome.plus, self.outcomes)


class SearchActor:
    """One process that keeps the model in memory between shards. Ray makes it an actor (`cluster.pool`).

    Args:
        threads: torch's threads, so that actors on one machine do not fight.
        name: written into the rows.
    """

    def __init__(self, threads: int, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # a shipped working directory may have been cleared away
            if (here := str(Path.cwd())) not in sys.path:
                sys.path.append(here)
        import torch

        torch.set_num_threads(threads)
        # On a GPU, TF32 and the atomics of some backward kernels would make results depend on the layout.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        self.device = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") and torch.cuda.is_available() else "cpu"
        self._model: tuple[str, nn.Module] | None = None
        self.name = f"{name}@{os.uname().nodename}"
        if not log.handlers:  # Ray keeps what a worker writes to standard error in a file of its own
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(f"%(asctime)s {self.name} %(levelname)s %(message)s"))
            log.addHandler(handler)
            log.setLevel(logging.INFO)

    def ready(
        self, model: SharedModel, attacks: "Sequence[Attack]", packages: Sequence[str], probe: Place, token: str
    ) -> Introduction:
        """Builds the model, so that a search need not, and says who is here.

        Args:
            model: what will be attacked.
            attacks: with what; a worker that cannot read them fails here, and not at a shard.
            packages: whose versions matter besides.
            probe: where to write the token, beside the parts to come: the driver must find it there.
            token: what to write.

        Raises:
            StorageError: when the probe cannot be written.
        """
        import ray

        from workers.versions import versions

        self._built(model)
        probe.write(token.encode())
        node = ray.get_runtime_context().get_node_id()
        return Introduction(self.name, node, os.getpid(), self.device, versions(*packages))

    def fitting_batch(self, shared: SharedModel, images: np.ndarray, block: int, share: float) -> int:
        """The batch to give the model here: what fits into this actor's share of the GPU's free memory.

        Args:
            shared: the model.
            images: uint8 ``[n, C, H, W]``, at most a block, to try it on.
            block: the batch is a multiple of it.
            share: the GPUs that this actor has.
        """
        import torch

        from workers.evaluation.dense import batch_that_fits

        free, _ = torch.cuda.mem_get_info()
        there, most = torch.tensor(images), int(free * MEMORY_SHARE * min(1, share))
        return batch_that_fits(self._built(shared), there, most, block=block)

    def look(self, shared: SharedModel, images: np.ndarray, gradients: bool, board: str) -> "Probe":
        """What there is to know of a model before it is searched (`workers.remedies.probe`).

        Args:
            shared: the model.
            images: uint8 ``[n, C, H, W]``, clean.
            gradients: whether searches will go by gradients.
            board: the key under which Ray keeps how far this is, as ``done/planned`` calls of the model.

        Raises:
            WorkerBroken: when the machine failed and not the model.
        """
        import torch
        from ray.experimental.internal_kv import _internal_kv_put

        from workers.remedies.checks import unlooked
        from workers.remedies.probe import probe

        def told(done: int, planned: int) -> None:
            _internal_kv_put(board, f"{done}/{planned}")

        log.info("a look at the model")
        try:
            return probe(self._built(shared), images, gradients=gradients, on_call=told)
        except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError) as error:
            log.error("a look at the model: %s", error)
            raise WorkerBroken(_said(error)) from None
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # a foreign model may raise anything
            log.exception("a look at the model")
            return unlooked(_said(error))

    def search(self, shard: Shard) -> ShardSummary:
        """Searches a shard and writes its part whole; a search that raises becomes rows that say so.

        Raises:
            WorkerBroken: when the machine failed and not the search.
            OSError: when the part cannot be written.
        """
        from workers.results import SEARCHED, Status, by_products_table, write_part

        started = time.perf_counter()
        log.info("%s: images %s", shard.title, _ranges(shard.ids))
        results = self._search(shard, np.arange(len(shard.ids)))
        import pyarrow as pa

        order = [attack.params_hash for attack in shard.attacks]  # the part's: a budget after the other
        results.sort(key=lambda result: order.index(result.params_hash))
        table = pa.concat_tables([result.to_table() for result in results])
        beside = [extra for result in results if (extra := by_products_table(result)) is not None]
        if beside:  # first, so that a part that is there has them
            write_part(pa.concat_tables(beside, promote_options="default"), shard.by_products)
        write_part(table, shard.part)
        outcomes = dict.fromkeys(order, Outcome())
        for result in results:
            counts = (np.isin(result.status, found).sum() for found in (SEARCHED, [Status.SUCCESS], [Status.FAILED]))
            outcomes[result.params_hash] = outcomes[result.params_hash].plus(Outcome(*map(int, counts)))
        summary = ShardSummary(
            rows=len(table),
            outcomes=tuple(outcomes.values()),
            queries=int(sum(result.queries.sum() for result in results)),
            seconds=time.perf_counter() - started,
        )
        log.info("%s: %d rows in %.1f s, %d successes", shard.title, len(table), summary.seconds, summary.all.successes)
        return summary

    def _built(self, shared: SharedModel) -> "nn.Module":
        """The model, built when it is first asked for; only the last one is kept."""
        import ray

        if self._model is None or self._model[0] != shared.content_hash:
            self._model = shared.content_hash, ray.get(shared.reference[0]).build(self.device)
        return self._model[1]

    def _search(self, shard: Shard, rows: np.ndarray) -> list["SearchResult"]:
        """Searches rows of a shard together; when that raises, each alone, so that one image fails by itself."""
        import torch

        from workers.results import SearchResult
        from workers.search import search_budgets

        options: dict[str, Any] = {"split": shard.split, "seed": shard.seed, "worker": self.name}
        targets = None if shard.targets is None else shard.targets[rows]
        model = self._built(shard.model)
        try:
            return search_budgets(
                shard.attacks,
                model,
                shard.images[rows],
                shard.labels[rows],
                targets=targets,
                ids=shard.ids[rows],
                block=shard.block,
                batch=shard.batch,
                **options,
            )
        except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError) as error:
            # The machine failed, not the image, and a broken CUDA context breaks all that follows.
            log.error("%s, images %s: %s", shard.title, _ranges(shard.ids[rows]), error)
            raise WorkerBroken(_said(error)) from None
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # a foreign model may raise anything
            if len(rows) > 1:
                return [result for row in rows for result in self._search(shard, np.array([row]))]
            log.exception("%s, image %d", shard.title, shard.ids[rows[0]])
            return [
                SearchResult.failed(
                    attack,
                    shard.ids[rows],
                    shard.labels[rows],
                    targets,
                    shape=shard.images.shape[1:],
                    reason=_said(error),
                    **options,
                )
                for attack in shard.attacks
            ]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _ranges(ids: np.ndarray) -> str:
    """Image ids in a line that stays short: ``3, 7–9, 12``, and how many more there are."""
    distinct = np.unique(ids)
    runs = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs[:8]]
    return ", ".join(shown) + (f" and {sum(map(len, runs[8:]))} more" if len(runs) > 8 else "")
