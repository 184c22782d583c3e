"""Random numbers of a model that draws by itself: fixed by a seed, and the same for every image of a call."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["common_draws"]

_SIZED = {torch.rand, torch.randn, torch.randint}
_LIKE = {torch.rand_like, torch.randn_like, torch.randint_like}
_IN_PLACE = {
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.exponential_,
    Tensor.random_,
    torch.nn.init.uniform_,
    torch.nn.init.normal_,
}
_DROPOUT = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
}


@contextmanager
def common_draws(seed: int, count: int, device: torch.device) -> Iterator[None]:
    """Within it, what torch, NumPy and Python draw from their global streams depends on the seed alone.

    Random tensors of torch that have a row for each of ``count`` images have the same row for all, so that an
    answer does not depend on which other images it is asked with; not so what is drawn in other ways, by NumPy for
    example: a model that does is to be asked about each image alone. The streams are left as they were found.
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            with _OneRow(count):
                yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


class _OneRow(TorchFunctionMode):
    """Draws one row of what has a row for each image, and repeats it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, args = dict(kwargs or {}), tuple(args)
        if function in _SIZED:
            return self._sized(function, args, kwargs)
        first = args[0] if args else None
        if function is torch.normal:
            return self._normal(args, kwargs)
        if not isinstance(first, Tensor) or first.ndim == 0 or len(first) != self._count:
            return function(*args, **kwargs)
        if function in _LIKE:
            return _repeated(function(first[:1], *args[1:], **kwargs), self._count)
        if function in (torch.bernoulli, Tensor.bernoulli):
            return (torch.rand_like(first[:1]) < first).to(first.dtype)
        if function in _IN_PLACE:
            with torch.no_grad():
                return first.copy_(function(first[:1].clone(), *args[1:], **kwargs).expand_as(first))
        if function is Tensor.bernoulli_:
            share = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return first.copy_((torch.rand_like(first[:1].float()) < share).expand_as(first))
        if function in _DROPOUT:
            kwargs["inplace"] = False
            one = function(torch.ones_like(first[:1]), *args[1:3], **kwargs)
            return first * one
        return function(*args, **kwargs)

    def _sized(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A tensor of a given size, which is an argument of its own or several numbers."""
        if isinstance(size := kwargs.get("size"), Sequence) and len(size) and size[0] == self._count:
            return _repeated(function(*args, **{**kwargs, "size": (1, *size[1:])}), self._count)
        for place, value in enumerate(args):
            if isinstance(value, Sequence):
                if len(value) and value[0] == self._count:
                    one = (*args[:place], (1, *value[1:]), *args[place + 1 :])
                    return _repeated(function(*one, **kwargs), self._count)
                return function(*args, **kwargs)
        if function is not torch.randint and args and args[0] == self._count:
            return _repeated(function(1, *args[1:], **kwargs), self._count)
        return function(*args, **kwargs)

    def _normal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("mean", "std", "size"), args, strict=False)) | kwargs
        mean, std = given.get("mean", 0.0), given.get("std", 1.0)
        if isinstance(size := given.get("size"), Sequence) and len(size) and size[0] == self._count:
            return _repeated(torch.normal(mean, std, size=(1, *size[1:])), self._count)
        for like in (mean, std):
            if isinstance(like, Tensor) and like.ndim > 1 and len(like) == self._count:
                return mean + std * torch.randn_like(like[:1])
        return torch.normal(*args, **kwargs)


def _repeated(row: Tensor, count: int) -> Tensor:
    return row.expand(count, *row.shape[1:]).clone()
