"""The inner search of adversarial training: images of higher loss in the L∞ ball of radius ε, pixels in [0, 1].

Nothing is rounded to 8 bits here: an attack that is later made on the model is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ascend", "uniform_start"]


def uniform_start(images: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Uniform draws from the ball around images ``[n, C, H, W]``, clipped to [0, 1]."""
    moved = torch.rand(images.shape, generator=generator).mul_(2).sub_(1).mul_(epsilon)
    return moved.add_(images).clamp_(0, 1)


def ascend(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    start: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int,
    step_size: float | Tensor,
) -> Tensor:
    """Takes steps along the sign of a loss's gradient, each projected to the ball and to [0, 1].

    Only the derivative by the images is computed: no gradient is left at the model's parameters.

    Args:
        loss: of images, a scalar; a sum over them, so that no image's gradient depends on how many there are.
        images: float ``[n, C, H, W]`` in [0, 1], the centres of the balls; not written to.
        start: where the search starts, in the balls; not written to.
        epsilon: radius; one for all images, or ``[n, 1, 1, 1]``.
        steps: how many.
        step_size: of each step; likewise.

    Returns:
        Images of that shape, without a history of gradients.
    """
    low, high = (images - epsilon).clamp_(min=0), (images + epsilon).clamp_(max=1)
    moved = start.detach()
    for _ in range(steps):
        moved.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(moved), moved)
        moved = torch.clamp(moved.detach() + step_size * gradient.sign(), low, high)
    return moved
