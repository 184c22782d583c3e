"""A model that counts how often it is asked."""

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["Asked", "OnCall"]

OnCall = Callable[[int, int], None]
"""Called with how many calls of a model are over, and how many there will be as far as is known."""


class Asked(nn.Module):
    """A model, and what it is still to be asked.

    Args:
        model: images to logits.
        on_call: told after each call, and whenever more or fewer are expected.

    Attributes:
        done: calls that are over.
        planned: these and those that are expected.
    """

    def __init__(self, model: nn.Module, on_call: OnCall) -> None:
        super().__init__()
        self.model, self.on_call = model, on_call
        self.done = self.planned = 0

    def expect(self, calls: int) -> None:
        """From now on so many calls follow."""
        self.planned = self.done + calls
        self.on_call(self.done, self.planned)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.model(images)
        self.done += 1
        self.planned = max(self.planned, self.done)
        self.on_call(self.done, self.planned)
        return answer
