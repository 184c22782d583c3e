"""What a model computes on the way to its answer."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Inside"]


class Inside(TorchFunctionMode):
    """Keeps every floating-point tensor ``[n, …]`` of two dimensions that the operations within it take or return.

    Args:
        count: n.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count
        self._found: list[Tensor] = []

    def before(self, answer: Tensor) -> list[Tensor]:
        """Those of the shape of the model's answer, the last first; the answer itself is not among them."""
        return [value for value in reversed(self._found) if value.shape == answer.shape and value is not answer]

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._keep(args)  # an autograd.Function of the model's own is seen by what takes its result
        returned = function(*args, **(kwargs or {}))
        self._keep([returned])
        return returned

    def _keep(self, values: Iterable[Any]) -> None:
        for value in values:
            if not isinstance(value, Tensor) or isinstance(value, nn.Parameter) or value.ndim != 2:
                continue
            if len(value) != self._count:
                continue
            if value.is_floating_point() and all(value is not other for other in self._found):
                self._found.append(value)
