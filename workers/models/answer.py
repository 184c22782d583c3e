"""What a model must answer, and what to change in one that answers something else."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.errors import WrongInput

__all__ = ["other_dtype", "require_logits"]

_DTYPES = (torch.float32, torch.float64)


def require_logits(answer: Any, images: int) -> Tensor:
    """A model's answer to so many images, as it is: float32 or float64 logits ``[images, classes]``.

    Raises:
        WrongInput: when it is something else, or of one class; it says what to return instead, where that is known.
    """
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != images or answer.shape[1] < 2:
        came = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise WrongInput(f"the model must return logits [{images}, classes], got {came}{_instead_of(answer, images)}")
    if answer.dtype not in _DTYPES:
        hint = ": call .float() on them" if answer.is_floating_point() else ""
        raise WrongInput(f"the model must return floating-point logits of 32 or 64 bits, got {answer.dtype}{hint}")
    return answer


def other_dtype(model: nn.Module) -> str:
    """That a model's weights are not float32, as images are, for the front of an error; empty when they are."""
    weights = [*model.parameters(), *model.buffers()]
    others = sorted({str(x.dtype) for x in weights if x.is_floating_point() and x.dtype != torch.float32})
    name = ", ".join(others).replace("torch.", "")
    return f"it is of {name}, images are float32: call .float() on it; " if others else ""


def _instead_of(answer: Any, images: int) -> str:
    if isinstance(answer, Tensor):
        if not answer.is_floating_point():
            return ": return the logits, not the classes"
        if answer.ndim and len(answer) == answer.numel() == images:
            return ": two logits are needed; a model with one logit z can answer [-z, z]"
        maps = answer.ndim > 2 and len(answer) == images and answer[0].numel() == answer.shape[1]
        return ": return it with .flatten(1)" if maps else ""
    if isinstance(getattr(answer, "logits", None), Tensor):
        return ": return its .logits"
    parts: Any = ()
    if isinstance(answer, Mapping):
        parts = answer.items()
    elif isinstance(answer, tuple | list):
        parts = enumerate(answer)
    key = next((key for key, part in parts if isinstance(part, Tensor) and part.ndim == 2), None)
    return "" if key is None else f": return its [{key!r}]"
