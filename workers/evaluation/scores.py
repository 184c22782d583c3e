"""What is read off logits: whether they are an answer, the class, its lead and log-odds, how far they may be off.

An answer is finite numbers: one NaN or infinity among them, and it says nothing of the image. A class that is never
to be predicted has a large negative logit, not −∞. The prediction is the lowest class of the highest logits.

On the CPU each is one compiled pass: torch's reductions over ten classes take several, and wake its threads.
"""

import numpy as np
import torch
from torch import Tensor

from workers import compiled
from workers.compiled import kernel

__all__ = ["UNANSWERED", "answered", "lead", "log_odds", "predicted", "slack"]

UNANSWERED = -2
"""What stands for a class where there is no answer."""


def answered(numbers: Tensor) -> Tensor:
    """bool ``[n]``: which rows of ``[n, K]`` are an answer, every number of them finite."""
    if compiled.on_host(numbers):
        found = np.empty(len(numbers), np.bool_)
        compiled.spread(_answered, len(found), numbers.numpy(), found)
        return torch.from_numpy(found)
    return numbers.isfinite().all(dim=1)


def predicted(logits: Tensor) -> Tensor:
    """int64 ``[n]``: the lowest class of the highest logits ``[n, K]``; `UNANSWERED` where they are no answer."""
    return logits.argmax(dim=1).masked_fill(~answered(logits), UNANSWERED)


def lead(logits: Tensor, chosen: Tensor) -> Tensor:
    """float32 ``[n]``: the logit of the class ``chosen`` (int64 ``[n]``) over the best other of ``[n, K]``.

    NaN where the logits are no answer.
    """
    if compiled.on_host(logits):
        found = np.empty(len(logits), np.float32)
        compiled.spread(_lead, len(found), logits.numpy(), chosen.numpy(), found)
        return torch.from_numpy(found)
    own = chosen[:, None]
    ahead = logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(dim=1)
    return ahead.masked_fill(~answered(logits), torch.nan)


def log_odds(logits: Tensor, chosen: Tensor) -> Tensor:
    """float32 ``[n]``: log p/(1 − p) of the class ``chosen``, which still tells apart what rounds to p = 1.

    NaN where the logits are no answer.
    """
    if compiled.on_host(logits):
        found = np.empty(len(logits), np.float32)
        compiled.spread(_log_odds, len(found), logits.numpy(), chosen.numpy(), found)
        return torch.from_numpy(found)
    own = chosen[:, None]
    odds = logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).logsumexp(dim=1)
    return odds.masked_fill(~answered(logits), torch.nan)


def slack(logits: Tensor) -> Tensor:
    """float32 ``[n]``: by how much incremental logits ``[n, K]`` on the CPU may differ from the dense ones.

    A candidate's own, whatever else is scored with it.
    """
    found = np.empty(len(logits), np.float32)
    compiled.spread(_slack, len(found), logits.numpy(), found)
    return torch.from_numpy(found)


@kernel(nogil=True)
def _answered(start, stop, numbers, found):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        finite = True
        for j in range(numbers.shape[1]):
            finite &= np.isfinite(numbers[i, j])
        found[i] = finite


@kernel(nogil=True)
def _lead(start, stop, logits, chosen, found):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        best, finite = np.float32(-np.inf), True
        for j in range(logits.shape[1]):
            finite &= np.isfinite(logits[i, j])
            if j != chosen[i] and logits[i, j] > best:
                best = logits[i, j]
        found[i] = logits[i, chosen[i]] - best if finite else np.float32(np.nan)


@kernel(nogil=True)
def _log_odds(start, stop, logits, chosen, found):  # type: ignore[no-untyped-def]
    _lead(start, stop, logits, chosen, found)
    for i in range(start, stop):
        if not np.isfinite(found[i]):  # no answer, or logits further apart than float32 goes: the sum is nothing then
            continue
        best = logits[i, chosen[i]] - found[i]
        total = np.float32(0)
        for j in range(logits.shape[1]):
            if j != chosen[i]:
                total += np.exp(logits[i, j] - best)
        found[i] -= np.log(total)


@kernel(nogil=True)
def _slack(start, stop, logits, found):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        largest = np.float32(1)
        for j in range(logits.shape[1]):
            largest = max(largest, abs(logits[i, j]))
        found[i] = np.float32(1e-4) * largest
