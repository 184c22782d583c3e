"""What a model or a detector is called with: a tensor of its own, filled up with images that are there."""

import torch
from torch import Tensor

__all__ = ["filled_call"]


def filled_call(rows: Tensor, size: int) -> Tensor:
    """Rows and, behind them, the same rows in turn, up to a call of a given size.

    A call is never filled up with zeros: what compares the images of a call would count them as images. A random
    detector's draws are filled up likewise, so that a repeated image comes with its own draws.

    Always a fresh tensor in the plain layout. Whatever writes to it reaches nothing that is searched or stored. And
    an indexed one with C = 1 may be contiguous and yet have the strides of the channels-last layout, for which a
    convolution takes another kernel and gives other bits.

    Args:
        rows: ``[n, …]``; images uint8 or float in [0, 1], or draws.
        size: at least n.

    Returns:
        float ``[size, …]``, uint8 divided by 255.
    """
    filled = torch.empty((size, *rows.shape[1:]), device=rows.device)
    for start in range(0, size, len(rows) or 1):
        part = filled[start : start + len(rows)]
        part.copy_(rows[: len(part)])
    return filled.div_(255) if rows.dtype == torch.uint8 else filled
