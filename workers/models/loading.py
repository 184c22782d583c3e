"""Any model: from a model folder or from ``package.module:function``, as bytes that travel to the actors."""

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from workers.errors import WrongInput
from workers.images import Dataset
from workers.models.cnn import CNN

__all__ = ["ModelRecipe", "check_model", "read_model"]


@dataclass(frozen=True)
class ModelRecipe:
    """All that is needed to build the same model anywhere; pickles small and without code.

    Attributes:
        reference: the model folder or ``module:function`` that the user named.
        architecture: ``{"name": "cnn", …}`` with its sizes, or ``{"function": "module:function"}``.
        weights: the parameters and buffers as safetensors.
        mean, std: per-channel normalisation put before the model; empty for none.
        weights_path: the safetensors the user named beside a function, None otherwise.
        content_hash: SHA-256 of architecture, weights, normalisation, and of the source file of a user's function.
    """

    reference: str
    architecture: dict[str, Any]
    weights: bytes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_path: Path | None
    content_hash: str

    def build(self, device: str = "cpu") -> nn.Module:
        """Builds the model in ``eval()`` mode on a device, its parameters frozen."""
        model = _construct(self.architecture)
        model.load_state_dict(safetensors.torch.load(self.weights))
        if "name" in self.architecture:
            # Channels-last weights take a quarter off a gradient on a CPU. A user's model is left as it is: it
            # may call view() on what a convolution returns, which that layout does not allow.
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.mean:
            model = Normalised(model, self.mean, self.std)
        return model.to(device).eval().requires_grad_(False)


def read_model(
    reference: str, *, weights: Path | None = None, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> ModelRecipe:
    """Reads a model folder, or calls a user's function once to learn its model's weights.

    Args:
        reference: a folder with ``model.json`` and safetensors, or ``package.module:function``, a function
            without arguments that returns an ``nn.Module`` taking float images ``[n, C, H, W]`` in [0, 1]
            to logits ``[n, classes]``. The module is looked up with the working directory on the path.
        weights: safetensors to load into a function's model; None keeps what the function returns.
        mean, std: per-channel normalisation to put before the model; both or none.

    Raises:
        WrongInput: when the reference is wrong, the function fails or the weights do not fit.
    """
    if bool(mean) != bool(std) or len(mean) != len(std):
        raise WrongInput(f"--mean and --std must have one number a channel each, got {len(mean)} and {len(std)}")
    if any(not number > 0 for number in std):
        raise WrongInput(f"--std must be above 0, got {', '.join(map(str, std))}")
    if Path(reference).is_dir():
        if weights:
            raise WrongInput("--weights goes with module:function; a model folder has its own weights")
        architecture, state = _read_folder(Path(reference))
    elif ":" in reference:
        architecture, state = {"function": reference}, weights.read_bytes() if weights and weights.is_file() else b""
        if weights and not state:
            raise WrongInput(f"--weights {weights}: no such file")
    else:
        raise WrongInput(f"--model {reference}: neither a model folder nor package.module:function")
    try:
        model = _construct(architecture)
        if not state:
            state = safetensors.torch.save({k: v.detach().clone().contiguous() for k, v in model.state_dict().items()})
        model.load_state_dict(safetensors.torch.load(state))
    except WrongInput:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's function or a foreign file raises: wrong input
        raise WrongInput(f"--model {reference}: {_summary(error)}") from None
    digest = hashlib.sha256(json.dumps([architecture, list(mean), list(std)], sort_keys=True).encode())
    digest.update(_source_of(architecture))
    digest.update(state)
    return ModelRecipe(reference, architecture, state, tuple(mean), tuple(std), weights, digest.hexdigest())


def check_model(model: nn.Module, dataset: Dataset) -> int:
    """Tries a model on the first two images of a data set.

    Returns:
        The number of classes.

    Raises:
        WrongInput: when it fails on images of this shape, does not return finite logits ``[n, classes]``, or
            knows fewer classes than the labels.
    """
    images = torch.tensor(dataset.images[:2]).float().div(255)
    shape = "×".join(map(str, dataset.shape))
    try:
        with torch.no_grad():
            logits = model(images.to(next(model.parameters(), images).device))
    except Exception as error:  # whatever a foreign model raises, it cannot take these images
        raise WrongInput(f"the model fails on images of {shape}: {_summary(error)}") from None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        came = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise WrongInput(f"the model must return logits [{len(images)}, classes], got {came}")
    if not logits.is_floating_point() or not logits.isfinite().all():
        raise WrongInput("the model must return finite floating-point logits")
    if logits.shape[1] < max(2, dataset.classes):
        raise WrongInput(
            f"the model knows {logits.shape[1]} classes, the labels of {dataset.name} go to {dataset.classes - 1}"
        )
    return logits.shape[1]


class Normalised(nn.Module):
    """A model behind ``(x − mean) / std`` for each channel, so that attacks stay in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        return self.model((images - self.mean) / self.std)


def _read_folder(folder: Path) -> tuple[dict[str, Any], bytes]:
    try:
        card = json.loads((folder / "model.json").read_text())
        weights = folder / card["weights"]
        if weights.suffix != ".safetensors" or weights.parent != folder:
            raise WrongInput(f"{folder}: weights must be a .safetensors file in the folder, got {card['weights']}")
        return dict(card["architecture"]), weights.read_bytes()
    except OSError as error:
        raise WrongInput(f"--model {folder}: {error.filename}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, WrongInput):
            raise
        raise WrongInput(f"--model {folder}: model.json is not a model's description: {_summary(error)}") from None


def _construct(architecture: dict[str, Any]) -> nn.Module:
    if "function" in architecture:
        model = _user_function(architecture["function"])()
        if not isinstance(model, nn.Module):
            raise WrongInput(f"{architecture['function']} must return an nn.Module, got {type(model).__name__}")
        return model
    sizes = dict(architecture)
    name = sizes.pop("name", None)
    if name != "cnn":
        raise WrongInput(f"unknown architecture {name}: expected cnn")
    return CNN(**sizes)


def _user_function(reference: str) -> Any:
    module_name, _, function_name = reference.partition(":")
    if "" not in sys.path and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that a user's folder never shadows brittle's own packages
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except (Exception, SystemExit) as error:  # an import runs the user's code, which may raise anything
        raise WrongInput(f"--model {reference}: cannot import {module_name}: {_summary(error)}") from None
    if not callable(function):
        raise WrongInput(f"--model {reference}: {module_name} has no function '{function_name}'")
    return function


def _source_of(architecture: dict[str, Any]) -> bytes:
    if "function" not in architecture:
        return b""
    try:
        return Path(inspect.getfile(_user_function(architecture["function"]))).read_bytes()
    except (TypeError, OSError):  # a builtin or a callable object has no source file
        return b""


def _summary(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}" if text else type(error).__name__
