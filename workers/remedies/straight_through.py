"""Steps without a gradient, passed straight through on the way back."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from workers.remedies.remedies import Way

__all__ = ["StraightThrough"]

_ROUNDING = {
    torch.round,
    torch.floor,
    torch.ceil,
    torch.trunc,
    torch.fix,
    Tensor.round,
    Tensor.floor,
    Tensor.ceil,
    Tensor.trunc,
    Tensor.fix,
}
_SIGN = {torch.sign, torch.sgn, Tensor.sign, Tensor.sgn, torch.heaviside, Tensor.heaviside}
_DETACHING = {Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore[attr-defined]
_CASTING = {Tensor.to, Tensor.type, Tensor.int, Tensor.long, Tensor.byte, Tensor.short, Tensor.char}
_LEAVING: set[Any] = {Tensor.numpy, Tensor.__array__}
_COMPARING = {
    torch.gt: 1,
    torch.ge: 1,
    torch.lt: -1,
    torch.le: -1,
    torch.greater: 1,
    torch.greater_equal: 1,
    torch.less: -1,
    torch.less_equal: -1,
    Tensor.gt: 1,
    Tensor.ge: 1,
    Tensor.lt: -1,
    Tensor.le: -1,
    Tensor.__gt__: 1,
    Tensor.__ge__: 1,
    Tensor.__lt__: -1,
    Tensor.__le__: -1,
}
"""Comparisons, and the sign that the difference of both sides has where they hold."""


class StraightThrough(TorchFunctionMode):
    """Gives rounding, signs, comparisons, casts to integers and detached tensors a gradient, by functions like them.

    Backward pass differentiable approximation (Athalye, Carlini & Wagner, 2018, "Obfuscated gradients give a false
    sense of security", section 4.1), with the identity in place of each step. Values are not changed.

    Args:
        images: float ``[n, C, H, W]``, what the gradient is taken for.
        way: ``operations``; or ``input``: the identity stands also for all that lies between the images and whatever
            tensor of their size an operation is given, a step in foreign code among them.
    """

    def __init__(self, images: Tensor, way: Way) -> None:
        super().__init__()
        self._images, self._way = images, way
        self._sizes = (images.shape, torch.Size((len(images), images[0].numel())))
        self._compared: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, args = kwargs or {}, tuple(args)
        if self._way == "input":
            args = tuple(self._reached(value) for value in args)
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            return self._called(function, args, kwargs)
        if function in _DETACHING:
            return first
        if function in _LEAVING:  # for foreign code, which would be refused a tensor with a gradient
            return function(first.detach(), *args[1:], **kwargs)
        found = self._called(function, args, kwargs)
        if not isinstance(found, Tensor) or found.shape != first.shape or not first.requires_grad:
            return found
        if function in _ROUNDING or (function in _CASTING and not found.dtype.is_floating_point):
            return _through(found.to(first.dtype), first)
        return _through(found, first.clamp(-1, 1)) if function in _SIGN else found

    def _called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operation returns; a comparison is remembered, and what is made of one hangs on its two sides."""
        with torch.enable_grad():  # a step within no_grad() is one without a gradient
            found = function(*args, **kwargs)
            if not isinstance(found, Tensor):
                return found
            if function in _COMPARING and found.dtype == torch.bool:
                difference = args[0] - args[1]
                if isinstance(difference, Tensor) and difference.requires_grad:
                    self._compared[id(found)] = found, _COMPARING[function] * difference
            elif found.is_floating_point() and not found.requires_grad:
                for value in args:
                    _, difference = self._compared.get(id(value), (None, None))
                    if difference is not None and difference.shape == found.shape:
                        return _through(found, difference)
        return found

    def _reached(self, value: Any) -> Any:
        """A tensor of the images' size, which now hangs on them."""
        if isinstance(value, list | tuple):
            return type(value)(self._reached(one) for one in value) if type(value) in (list, tuple) else value
        if not isinstance(value, Tensor) or value is self._images or value.shape not in self._sizes:
            return value
        if not value.is_floating_point():
            return value
        with torch.enable_grad():
            return _through(value.clone(), self._images.reshape(value.shape))


def _through(value: Tensor, like: Tensor) -> Tensor:
    """The value, with the gradient of another tensor."""
    return value.detach() + (like - like.detach())
