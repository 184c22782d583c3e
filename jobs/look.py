"""The look at a model before it is searched: by a worker, once for each model."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.look import look_at
from jobs.launch import WorkerHost
from jobs.progress import progress
from jobs.subject import Subject
from workers.files import write_whole
from workers.images import hash_of_images
from workers.remedies.checks import UNPROBED, Probe
from workers.sources import cache_folder
from workers.versions import versions

__all__ = ["look"]

LOOKED_AT = 128
"""Of the first so many images a look at the model takes some that differ."""


def look(subject: Subject, host: WorkerHost, *, gradients: bool) -> Probe:
    """Whether a model shows searches what they go by; of one behind a detector nothing is found out.

    What is found out is kept in the user's cache, by all that decides it; where that cannot be read or written, the
    model is looked at each time.

    Args:
        subject: the model and the images.
        host: where it is looked at; Ray starts here if it has not.
        gradients: whether the searches will go by gradients.

    Raises:
        WrongInput: when no worker can start.
    """
    from workers.detectors.guarded import Guarded
    from workers.remedies.probe import looked_at

    pool = host.pool()
    if isinstance(subject.model, Guarded):
        return UNPROBED
    images = looked_at(subject.dataset.images[:LOOKED_AT])
    made_from = {
        "model": subject.recipe.given_hash,
        "images": [*images.shape, hash_of_images(images)],
        "gradients": gradients,
        "device": pool.device,
        **versions(),
    }
    if (known := _kept(made_from)) is not None:
        return known
    with progress(1, "a look at the model", "calls") as bar:
        shown = 0

        def told(done: int, planned: int) -> None:
            nonlocal shown
            bar.expect(planned)
            bar.advance(done - shown)
            shown = done

        timeout = host.where.shard_timeout
        found = look_at(pool, subject.recipe, images, gradients=gradients, timeout=timeout, on_call=told)
    if not any(check.unlooked for check in found.checks):
        _keep(made_from, found)
    return found


def _place(made_from: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache_folder().with_name("looks") / f"{digest[:32]}.json"


def _kept(made_from: dict[str, Any]) -> Probe | None:
    """What an earlier look found; None where there is none that can be read."""
    try:
        kept = json.loads(_place(made_from).read_text())
        return Probe.of(kept["found"]) if kept["made_from"] == made_from else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _keep(made_from: dict[str, Any], found: Probe) -> None:
    place = _place(made_from)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps({"made_from": made_from, "found": found.describe()}, indent=1).encode())
