"""The best pair of features among all n², found without looking at all of them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["best_pair"]

AT_ONCE = 64
"""Up to this many candidates of a row, all their pairs are compared at once; more are scanned in tiles."""

TILE = 512
"""Candidates on each side of a tile."""

VALUES = 2**21
"""As many of the rows' values are sorted in one go: some 100 MB, whatever the size of an image."""


def best_pair(u: "Tensor", v: "Tensor", domain: "Tensor") -> tuple["Tensor", "Tensor"]:
    """The pair p ≠ q of each row that maximises (u_p + u_q)·(v_p + v_q) where both sums are above zero.

    A feature p that two others a and b dominate (a and b at least as large in u and in v) can be left out: in any
    pair with p, the one of a and b that is not the partner does as well. What remains, the 2-skyband, is found by
    one sort: in falling order of u, p is dominated twice if two features before it have a v at least as large.
    Sums and products of float32 are monotone after rounding too, so the score is exactly that of a comparison of
    all pairs. Among pairs of equal score the choice depends on the row alone.

    Args:
        u, v: finite ``[n, F]``.
        domain: bool ``[n, F]``, the features that may be chosen.

    Returns:
        The score ``[n]``, zero where no pair has two sums above zero, and the pair int64 ``[n, 2]``, which means
        nothing there.
    """
    import torch

    if u.shape[1] < 2:
        return u.new_zeros(len(u)), torch.zeros((len(u), 2), dtype=torch.int64, device=u.device)
    at_once = max(1, VALUES // u.shape[1])
    parts = zip(torch.split(u, at_once), torch.split(v, at_once), torch.split(domain, at_once), strict=True)
    scores, pairs = zip(*(_best_pair(*part) for part in parts), strict=True)
    return torch.cat(scores), torch.cat(pairs)


def _best_pair(u: "Tensor", v: "Tensor", domain: "Tensor") -> tuple["Tensor", "Tensor"]:
    import torch

    rows = len(u)
    u, order = u.masked_fill(~domain, -torch.inf).sort(dim=1, descending=True, stable=True)
    v = v.masked_fill(~domain, -torch.inf).gather(1, order)
    kept = v > _second_largest_before(v)
    counts = kept.sum(dim=1)
    width = int(counts.max().clamp(2, AT_ONCE))

    # The candidates of each row moved to its front; what does not fit falls into one more column, cut off again.
    slot = torch.where(kept, kept.cumsum(dim=1) - 1, width).clamp_max(width)
    front_u, front_v = (x.new_full((rows, width + 1), -torch.inf).scatter_(1, slot, x)[:, :width] for x in (u, v))
    place = order.new_zeros((rows, width + 1)).scatter_(1, slot, order)
    scores = _products(front_u, front_u, front_v, front_v)
    scores.diagonal(dim1=1, dim2=2).zero_()
    best, flat = scores.flatten(1).max(dim=1)
    pair = place.gather(1, torch.stack([flat // width, flat % width], dim=1))

    for row in torch.nonzero(counts > width)[:, 0].tolist() if width == AT_ONCE else ():
        candidates = torch.nonzero(kept[row])[:, 0]
        best[row], chosen = _scan(u[row, candidates], v[row, candidates])
        pair[row] = order[row, candidates[chosen]]
    return best, pair


def _second_largest_before(values: "Tensor") -> "Tensor":
    """The second largest of all values to the left, ``[n, F]``; −∞ where there are fewer than two."""
    import torch

    nothing = values.new_full((len(values), 1), -torch.inf)
    largest = torch.cat([nothing, values.cummax(dim=1).values[:, :-1]], dim=1)
    # Each value either is the largest so far or is not: the smaller of the two is the one that lost.
    lost = torch.minimum(values, largest)
    return torch.cat([nothing, lost.cummax(dim=1).values[:, :-1]], dim=1)


def _products(u: "Tensor", other_u: "Tensor", v: "Tensor", other_v: "Tensor") -> "Tensor":
    """The scores ``[…, a, b]`` of all pairs of ``[…, a]`` with ``[…, b]``, zero where a sum is not above zero."""
    sums = (u[..., :, None] + other_u[..., None, :]).clamp_min_(0)
    return sums.mul_((v[..., :, None] + other_v[..., None, :]).clamp_min_(0))


def _scan(u: "Tensor", v: "Tensor") -> tuple[float, "Tensor"]:
    """The best score and pair of one row ``[m]``, u falling, tile by tile.

    The tiles with the highest bound come first, and those whose bound does not exceed the best score are left
    out: along the skyband v rises as u falls, so that a tile's corner bounds its pairs closely.
    """
    import torch

    parts = list(zip(torch.split(u, TILE), torch.split(v, TILE), strict=True))
    top_u = torch.stack([part.amax() for part, _ in parts])
    top_v = torch.stack([part.amax() for _, part in parts])
    bounds = _products(top_u, top_u, top_v, top_v).triu()
    ranked = bounds.flatten().sort(descending=True, stable=True)
    best, chosen = 0.0, torch.zeros(2, dtype=torch.int64, device=u.device)
    for bound, number in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True):
        if bound <= best:
            break
        first, second = divmod(number, len(parts))
        scores = _products(parts[first][0], parts[second][0], parts[first][1], parts[second][1])
        if first == second:
            scores.fill_diagonal_(0)
        score, flat = scores.flatten().max(dim=0)
        if float(score) > best:
            best = float(score)
            inner = torch.stack([flat // len(parts[second][0]), flat % len(parts[second][0])])
            chosen = inner + TILE * torch.tensor([first, second], device=u.device)
    return best, chosen
