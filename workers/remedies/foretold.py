"""How much of the rise of a loss that a gradient foretells comes, over changes that an attack could store."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["DISTANCES", "FEWEST", "change", "share_that_comes"]

DISTANCES = ((0.1, 1), (1.0, 1), (0.3, 16), (1.0, 64))
"""How far images are moved: so far that the gradient foretells this share of the lead of the highest logit, each value
by this many levels. Steps in proportion to the lead do not grow with the image; the small ones are for models whose
gradient soon turns, the large ones for models that round what they are given and do not see a small one at all."""

FEWEST = 16
"""So many values are moved at least, however much fewer foretell: of a few, a gradient may be right by chance."""


def share_that_comes(
    margins: Callable[[Tensor], Tensor], images: Tensor, gradient: Tensor, lead: Tensor, usable: Tensor
) -> float:
    """The share of the foretold rise that comes on the median image, at the distance of `DISTANCES` where it is most.

    Args:
        margins: of uint8 images ``[n, C, H, W]`` the margin loss ``[n]``; called once for each distance.
        images: uint8 ``[n, C, H, W]``.
        gradient: float ``[n, C, H, W]``, of the margin by images in [0, 1].
        lead: float ``[n]``, of the highest logit: the margin below zero.
        usable: bool ``[n]``, which images have a gradient; one at least.
    """
    medians = []
    for share, levels in DISTANCES:
        changed = [
            change(image, slope, share * float(ahead), levels)
            for image, slope, ahead in zip(images, gradient, lead, strict=True)
        ]
        foretold = torch.tensor([rise for _, rise in changed], dtype=torch.float64, device=lead.device)
        came = margins(torch.stack([moved for moved, _ in changed])).double() + lead.double()
        medians.append(float((came / foretold.clamp(min=1e-300)).nan_to_num(0)[usable].median()))
    return max(medians)


def change(image: Tensor, gradient: Tensor, foretold: float, levels: int) -> tuple[Tensor, float]:
    """Moves the values of largest gradient, as many as foretell a rise, each by as many levels as its range leaves.

    Where all values together foretell less, the levels are doubled, up to 255.

    Args:
        image: uint8 ``[C, H, W]``.
        gradient: float ``[C, H, W]``, by an image in [0, 1]; a value whose gradient is not finite stays as it is.
        foretold: the rise.
        levels: by how many a value is moved.

    Returns:
        The image, uint8, and the rise that is foretold of it.
    """
    slope = gradient.flatten().double().nan_to_num(0, 0, 0) / 255
    before = image.flatten().double()
    room = torch.where(slope > 0, 255 - before, before)
    steepest = (slope.abs() * (room > 0)).argsort(descending=True)
    slope, room = slope[steepest], room[steepest]
    while True:
        rises = (slope.abs() * room.clamp(max=levels)).cumsum(0)
        if float(rises[-1]) >= foretold or levels >= 255:
            break
        levels = min(2 * levels, 255)
    count = min(max(int((rises < foretold).sum()) + 1, FEWEST), len(rises))
    moved = before.clone()
    moved[steepest[:count]] += slope[:count].sign() * room[:count].clamp(max=levels)
    return moved.to(torch.uint8).view_as(image), float(rises[count - 1])
