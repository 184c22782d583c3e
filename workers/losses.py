"""The losses that gradient attacks raise, by name, and their derivatives by the logits."""

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor
    from torch.return_types import topk

__all__ = ["LOSSES", "Loss", "cotangents", "values"]

Loss = Literal["ce", "margin", "dlr"]
"""Cross-entropy, logit margin, and difference of logits ratio (Croce & Hein, 2020, Eq. 6 and 7).

Attacks use a loss to rank images and to find a direction, so cross-entropy stands as log Σ_{j≠y} exp z_j − z_y,
which rises with it and has the same gradient but for a factor above zero. That factor, 1 − p_y, is what
vanishes on a confident model; without it no gradient is lost however far apart the logits are.
"""

LOSSES = get_args(Loss)


def values(loss: Loss, logits: "Tensor", labels: "Tensor", targets: "Tensor | None") -> "Tensor":
    """The loss of each row, float ``[n]``; higher is nearer to the goal.

    Args:
        loss: which one.
        logits: ``[n, K]``; ``dlr`` needs K ≥ 3; with targets and K = 3, z_π3 stands for the mean of z_π3 and z_π4.
        labels: int64 ``[n]``, the true classes, to move away from.
        targets: int64 ``[n]``, the classes to move towards instead; None when untargeted.
    """
    if loss == "dlr":
        lead, scale = _ratio(logits, labels, targets)
        return lead / scale
    chosen = (labels if targets is None else targets)[:, None]
    others = logits.scatter(1, chosen, -float("inf"))
    rest = others.amax(dim=1) if loss == "margin" else others.logsumexp(dim=1)
    lead = rest - logits.gather(1, chosen)[:, 0]
    return lead if targets is None else -lead


def cotangents(loss: Loss, logits: "Tensor", labels: "Tensor", targets: "Tensor | None") -> "Tensor":
    """The derivative ``[n, K]`` of `values` by the logits; arguments as there."""
    import torch

    if loss == "dlr":
        lead, scale = _ratio(logits, labels, targets)
        order = _top(logits, targets).indices
        aim = _best_other(logits, labels[:, None]) if targets is None else targets[:, None]
        one, share = torch.ones_like(lead)[:, None], (lead / scale)[:, None]
        vector = torch.zeros_like(logits).scatter_add(1, aim, one).scatter_add(1, labels[:, None], -one)
        vector = vector.scatter_add(1, order[:, :1], -share)
        last = order[:, 2:]
        return vector.scatter_add(1, last, (share / last.shape[1]).expand_as(last)) / scale[:, None]
    chosen = (labels if targets is None else targets)[:, None]
    if loss == "margin":
        vector = torch.zeros_like(logits).scatter(1, _best_other(logits, chosen), 1)
    else:
        vector = logits.scatter(1, chosen, -float("inf")).softmax(dim=1)
    vector = vector.scatter(1, chosen, -1)
    return vector if targets is None else -vector


def _top(logits: "Tensor", targets: "Tensor | None") -> "topk":
    """The highest classes that the ratio's denominator is made of."""
    return logits.topk(3 if targets is None else min(4, logits.shape[1]), dim=1)


def _best_other(logits: "Tensor", chosen: "Tensor") -> "Tensor":
    """int64 ``[n, 1]``: the highest class but for the chosen one."""
    return logits.scatter(1, chosen, -float("inf")).argmax(dim=1, keepdim=True)


def _ratio(logits: "Tensor", labels: "Tensor", targets: "Tensor | None") -> tuple["Tensor", "Tensor"]:
    """Numerator and denominator of the difference of logits ratio, each ``[n]``."""
    label = labels[:, None]
    aim = _best_other(logits, label) if targets is None else targets[:, None]
    top = _top(logits, targets).values
    lead = (logits.gather(1, aim) - logits.gather(1, label))[:, 0]
    return lead, top[:, 0] - top[:, 2:].mean(dim=1) + 1e-12
