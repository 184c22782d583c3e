"""A differentiable stand-in for a detector that gives no gradients, learned from its scores."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["StandIn", "learn"]

BATCH = 128


class StandIn(nn.Module):
    """A small convolutional network from images to a score.

    Two convolutions (16 and 32 filters, 3×3, stride 2), a linear layer of 64 and one to the score; ReLU between.

    Args:
        shape: ``(C, H, W)``.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * -(-height // 4) * -(-width // 4), 64),
            nn.ReLU(),
            nn.Linear(64, 1),
        )
        self.register_buffer("centre", torch.tensor(0.0))
        self.register_buffer("spread", torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``[n]`` of float images ``[n, C, H, W]`` in [0, 1]."""
        found: Tensor = self.layers(images)[:, 0]
        return found * self.spread + self.centre


def learn(
    images: Tensor,
    scores: Tensor,
    *,
    seed: int,
    epochs: int = 5,
    on_step: Callable[[int, int, str], None],
) -> tuple[StandIn, float]:
    """Learns the scores of images, nine tenths of them, by least squares on standardised scores.

    Args:
        images: uint8 ``[n, C, H, W]``, at least 20.
        scores: float ``[n]``, finite; a score beyond 4 standard deviations counts as that.
        seed: of weights and order.
        epochs: passes over the images.
        on_step: called with steps done, steps in all and what is done.

    Returns:
        The stand-in, and the share of the variance of the scores that it explains on the tenth that it did not learn;
        0 where it does worse than their mean.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StandIn((images.shape[1], images.shape[2], images.shape[3]))
    model.centre, model.spread = scores.mean(), scores.std().clamp(min=1e-12)
    wanted = ((scores - model.centre) / model.spread).clamp(-4, 4) * model.spread + model.centre
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    kept, learned = order[: len(order) // 10], order[len(order) // 10 :]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps, done = epochs * -(-len(learned) // BATCH), 0
    for epoch in range(epochs):
        shuffled = learned[torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed + 1 + epoch))]
        for part in torch.split(shuffled, BATCH):
            optimizer.zero_grad()
            residual = (model(images[part].float().div(255)) - wanted[part]) / model.spread
            residual.square().mean().backward()
            optimizer.step()
            done += 1
            on_step(done, steps, "stand-in")
    model.requires_grad_(False).eval()
    found = torch.cat([model(images[part].float().div(255)) for part in torch.split(kept, BATCH)])
    unexplained = (found - wanted[kept]).square().mean() / wanted[kept].var(correction=0).clamp(min=1e-12)
    return model, max(0.0, 1 - float(unexplained))
