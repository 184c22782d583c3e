"""What a search reads off logits: the lead of a class, its log-odds, and how far logits may be off.

On the CPU each is one compiled pass: torch's reductions over ten classes take several, and wake its threads.
"""

import numpy as np
import torch
from torch import Tensor

from workers import compiled
from workers.compiled import kernel

__all__ = ["lead", "log_odds", "slack"]


def lead(logits: Tensor, chosen: Tensor) -> Tensor:
    """float32 ``[n]``: the logit of the class ``chosen`` (int64 ``[n]``) over the best other of ``[n, K]``."""
    if compiled.on_host(logits):
        found = np.empty(len(logits), np.float32)
        compiled.spread(_lead, len(found), logits.numpy(), chosen.numpy(), found)
        return torch.from_numpy(found)
    own = chosen[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(dim=1)


def log_odds(logits: Tensor, chosen: Tensor) -> Tensor:
    """float32 ``[n]``: log p/(1 − p) of the class ``chosen``, which still tells apart what rounds to p = 1."""
    if compiled.on_host(logits):
        found = np.empty(len(logits), np.float32)
        compiled.spread(_log_odds, len(found), logits.numpy(), chosen.numpy(), found)
        return torch.from_numpy(found)
    own = chosen[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).logsumexp(dim=1)


def slack(logits: Tensor) -> Tensor:
    """float32 ``[n]``: by how much incremental logits ``[n, K]`` on the CPU may differ from the dense ones.

    A candidate's own, whatever else is scored with it.
    """
    found = np.empty(len(logits), np.float32)
    compiled.spread(_slack, len(found), logits.numpy(), found)
    return torch.from_numpy(found)


@kernel(nogil=True)
def _lead(start, stop, logits, chosen, found):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        best = np.float32(-np.inf)
        for j in range(logits.shape[1]):
            if j != chosen[i] and logits[i, j] > best:
                best = logits[i, j]
        found[i] = logits[i, chosen[i]] - best


@kernel(nogil=True)
def _log_odds(start, stop, logits, chosen, found):  # type: ignore[no-untyped-def]
    _lead(start, stop, logits, chosen, found)
    for i in range(start, stop):
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
