"""A model, and what is searched in its place because it hides its gradients or its logits."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from workers.detectors.guarded import Guarded, Judged
from workers.remedies.common_draws import common_draws
from workers.remedies.inside import Inside
from workers.remedies.remedies import Remedies
from workers.remedies.straight_through import StraightThrough

__all__ = ["JUDGED_DRAWS", "SEARCHED_DRAWS", "Remedied", "Searched", "judging"]

SEARCHED_DRAWS = 8
"""Of a model that draws by itself, how many answers a search looks at the mean of."""

JUDGED_DRAWS = 16
"""And how many, of draws that no search has seen, are the answer that counts."""

_JUDGED_SEED = 1_000_000


class Searched(nn.Module):
    """A model as a search sees it: float images ``[n, C, H, W]`` in [0, 1] to logits ``[n, K]``.

    Args:
        model: in ``eval()`` mode.
        remedies: what is done to it.
        first: the first of the seeds of its draws.
    """

    def __init__(self, model: nn.Module, remedies: Remedies, first: int = 0) -> None:
        super().__init__()
        self.model, self.remedies, self.first = model, remedies, first

    def forward(self, images: Tensor) -> Tensor:
        if self.remedies.alone:
            return torch.cat([self._mean(images[row : row + 1]) for row in range(len(images))])
        return self._mean(images)

    def _mean(self, images: Tensor) -> Tensor:
        if not self.remedies.draws:
            return self.once(images)
        answers = [self.once(images, self.first + number) for number in range(self.remedies.draws)]
        return torch.stack(answers).mean(dim=0)

    def once(self, images: Tensor, seed: int | None = None) -> Tensor:
        """The logits by one draw; without a seed the model draws as it likes."""
        inside = Inside(len(images)) if self.remedies.inside else None
        answer = self.answer(images, seed, inside)
        if inside is not None:
            answer = inside.before(answer)[self.remedies.inside - 1]
        if self.remedies.logarithm:
            answer = answer.clamp_min(1e-38).log()
        return answer.float() * self.remedies.scale

    def answer(self, images: Tensor, seed: int | None = None, inside: Inside | None = None) -> Tensor:
        """The model's answer by one draw, before anything is made of it; `inside` looks on where it is given."""
        with ExitStack() as stack:
            images = images.clone()  # a model may write to what it is given
            if seed is not None:
                stack.enter_context(common_draws(seed, len(images), images.device))
            if self.remedies.straight_through is not None:
                stack.enter_context(StraightThrough(images, self.remedies.straight_through))
            if inside is not None:
                stack.enter_context(inside)
            answer: Tensor = self.model(images)
        return answer


class Remedied(nn.Module):
    """A model whose own answers count, and what is searched in its place.

    Args:
        model: as given.
        remedies: what is done to it for the search.
        surrogate: another model that is searched instead of it.

    Attributes:
        answering: what its answers are; of a randomised model the mean over `JUDGED_DRAWS` draws.
        searched: what a search sees.
        asked: how many times the model itself is asked when the search looks once; 0 through a surrogate.
    """

    def __init__(self, model: nn.Module, remedies: Remedies, surrogate: nn.Module | None = None) -> None:
        super().__init__()
        own = Remedies(draws=JUDGED_DRAWS * bool(remedies.draws), alone=remedies.alone)
        self.answering = Searched(model, own, _JUDGED_SEED) if own else model
        self.searched = Searched(model, remedies) if surrogate is None else surrogate
        self.asked = max(remedies.draws, 1) if surrogate is None else 0

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.answering(images)
        return answer


def judging(model: nn.Module) -> nn.Module:
    """The module whose answers count: the model's own, with its detector's excess behind the logits if it has one."""
    answering = model.answering if isinstance(model, Remedied) else model
    return Judged(answering) if isinstance(answering, Guarded) else answering
