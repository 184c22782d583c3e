"""A look at a model by a worker, before any search."""

import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cluster.pool import SearchPool
from cluster.queue import TICK, TRIES
from workers.actor import WorkerBroken
from workers.errors import in_one_line
from workers.remedies.checks import Probe, unlooked

if TYPE_CHECKING:
    import numpy as np

    from workers.models.loading import ModelRecipe
    from workers.remedies.asked import OnCall

__all__ = ["look_at"]


def look_at(
    pool: SearchPool, model: "ModelRecipe", images: "np.ndarray", *, gradients: bool, timeout: float, on_call: "OnCall"
) -> Probe:
    """Has a worker find out what there is to know of a model.

    A model that brings the worker's process down is looked at again, `TRIES` times in all, as a shard is searched.

    Args:
        pool: the workers; one at least has answered.
        model: as it was given.
        images: uint8 ``[n, C, H, W]``, clean.
        gradients: whether searches will go by gradients.
        timeout: seconds after which a look is taken to hang, and its worker is started anew.
        on_call: told about once a second how many calls of the model are over, and how many there will be.

    Returns:
        What was found; that the model could not be looked at, and why, where it could not.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_del

    shared, actor, board = pool.share(model), pool.actors[0], f"brittle-look-{secrets.token_hex(8)}"
    reason = ""
    try:
        for attempt in range(TRIES):
            # Behind a ping, which waits for a process that is started anew: a look itself is never sent twice.
            alive = actor.device.options(max_task_retries=-1).remote()
            if not ray.wait([alive], timeout=pool.resources.patience)[0]:
                return unlooked("no worker answers")
            asked = actor.look.remote(shared, images, gradients, board)
            if not _ended(asked, board, timeout, on_call):
                ray.kill(actor, no_restart=False)
                return unlooked(f"it took longer than {timeout:g} s (--shard-timeout)")
            try:
                found: Probe = ray.get(asked)
                return found
            except ray.exceptions.RayActorError:
                reason = "its worker's process died (it crashed, was killed, or the machine ran out of memory)"
            except ray.exceptions.RayTaskError as error:
                reason = in_one_line(error.cause)[:500]
                if isinstance(error.cause, WorkerBroken):
                    ray.kill(actor, no_restart=False)
            except ray.exceptions.RayError as error:
                reason = in_one_line(error)[:500]
            if attempt + 1 < TRIES:
                pool.say(f"the look at the model failed, and is tried again: {reason}")
        return unlooked(f"{reason}, {TRIES} times of {TRIES}")
    finally:
        with suppress(Exception):  # Ray itself may be gone
            _internal_kv_del(board)


def _ended(asked: Any, board: str, timeout: float, on_call: "OnCall") -> bool:
    """Whether a look has ended in time; tells meanwhile how far it is."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    late = time.monotonic() + timeout
    while True:
        ready, _ = ray.wait([asked], timeout=TICK)
        if told := _internal_kv_get(board):
            done, _, planned = told.decode().partition("/")
            on_call(int(done), int(planned))
        if ready:
            return True
        if time.monotonic() > late:
            return False
