"""A user's code as brittle runs it: given copies, and printing to standard error."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stdout
from typing import Any

from torch import Tensor, nn

__all__ = ["OnCopies", "given_copies", "prints_aside", "writes_to_input"]


def prints_aside() -> AbstractContextManager[Any]:
    """What a user's code prints within it goes to standard error: standard output is for results."""
    return redirect_stdout(sys.stderr)


class OnCopies:
    """A function of a user's that is given copies of its tensors, and prints aside.

    Attributes:
        plain: the function.
        wrote: whether it has changed a copy since this was set to False; None while nobody asks.
    """

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain
        self.wrote: bool | None = None

    def __call__(self, *given: Any, **more: Any) -> Any:
        copies = [value.clone() if isinstance(value, Tensor) else value for value in given]
        with prints_aside():
            answer = self.plain(*copies, **more)
        if self.wrote is not None:
            pairs = zip(given, copies, strict=True)
            self.wrote |= any(isinstance(one, Tensor) and not one.equal(other) for one, other in pairs)
        return answer


def given_copies(model: nn.Module) -> nn.Module:
    """The same module, which from now on copies the images that it is called with, and prints aside.

    Whoever calls it (an evaluator, a toolkit, a detector), what it writes to its input, on ``x.data`` or by ``x.sub_``,
    reaches no tensor of the caller. Names, layers and weights of the module are left as they are.
    """
    if not isinstance(model.forward, OnCopies):
        model.forward = OnCopies(model.forward)
    return model


def writes_to_input(model: nn.Module, images: Tensor) -> bool:
    """Whether a module changes the images ``[n, C, H, W]`` that it is called with, or one inside it its copies."""
    given, inside = images.clone(), [each.forward for each in model.modules() if isinstance(each.forward, OnCopies)]
    for forward in inside:
        forward.wrote = False
    model(given)
    wrote = [forward.wrote for forward in inside]
    for forward in inside:
        forward.wrote = None
    return not given.equal(images) or any(wrote)
