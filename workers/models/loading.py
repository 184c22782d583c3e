"""Any model: a model folder, a program or ``package.module:function``, as bytes that travel to the actors."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from workers.errors import WrongInput
from workers.evaluation.scores import answered
from workers.images import Dataset
from workers.models.answer import other_dtype, require_logits
from workers.models.cnn import CNN
from workers.models.exported import load_program, pack_program
from workers.models.foreign import given_copies, prints_aside
from workers.models.kernel import KernelMachine
from workers.models.mlp import MLP
from workers.models.rbf import RBFNetwork
from workers.models.synthesis import SynthesisClassifier
from workers.remedies.remedies import NONE, Remedies

__all__ = ["ModelRecipe", "check_model", "construct", "hash_of_sources", "pack_weights", "read_model", "user_function"]

TRIED = 64
"""Images that a model is tried on before it is said to answer none."""


@dataclass(frozen=True)
class ModelRecipe:
    """All that is needed to build the same model anywhere; pickles small and without code.

    Attributes:
        reference: the model folder, program or ``module:function`` that the user named.
        architecture: ``{"name": "cnn", …}`` with its sizes, ``{"function": "module:function"}``, or
            ``{"program": "torch.export"}``.
        weights: the parameters and buffers as safetensors; of a program all of it, as `pack_program` leaves it.
        mean, std: per-channel normalisation put before the model; empty for none.
        weights_path: the safetensors the user named beside a function, None otherwise.
        content_hash: SHA-256 of architecture, weights, normalisation, and of the source of a user's function and of
            the user's own modules that it imports.
        remedies: what is done to it before it is searched.
        surrogate: another model, which is searched in its place.
        given: the content hash of the model as it was given; empty where that is what this is.
    """

    reference: str
    architecture: dict[str, Any]
    weights: bytes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_path: Path | None
    content_hash: str
    remedies: Remedies = NONE
    surrogate: "ModelRecipe | None" = None
    given: str = ""

    def build(self, device: str = "cpu") -> nn.Module:
        """Builds the model in ``eval()`` mode on a device, its parameters frozen."""
        model = _built(self.architecture, self.weights)
        if self.architecture.get("name") in ("cnn", "null", "rbf"):
            # Channels-last weights take a quarter off a gradient on a CPU. A user's model is left as it is: it
            # may call view() on what a convolution returns, which that layout does not allow.
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if "name" not in self.architecture:
            model = given_copies(model)
        if self.mean:
            model = Normalised(model, self.mean, self.std)
        if self.remedies or self.surrogate:
            from workers.remedies.remedied import Remedied

            model = Remedied(model, self.remedies, self.surrogate.build(device) if self.surrogate else None)
        return model.to(device).eval().requires_grad_(False)

    @property
    def given_hash(self) -> str:
        """The content hash of the model as it was given, whatever is done to search it."""
        return self.given or self.content_hash

    def searched_as(self, remedies: Remedies, surrogate: "ModelRecipe | None" = None) -> "ModelRecipe":
        """The same model, its own answers still those that count, searched under remedies or through a surrogate."""
        given = self.given_hash
        if not remedies and surrogate is None:
            return replace(self, remedies=NONE, surrogate=None, content_hash=given, given="")
        parts = [given, remedies.describe(), surrogate.content_hash if surrogate else None]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return replace(self, remedies=remedies, surrogate=surrogate, content_hash=digest, given=given)


def read_model(
    reference: str, *, weights: Path | None = None, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> ModelRecipe:
    """Reads a model folder or a program, or calls a user's function once to learn its model's weights.

    A model takes float images ``[n, C, H, W]`` in [0, 1] to logits ``[n, classes]``.

    Args:
        reference: a folder with ``model.json`` and safetensors; a ``.pt2`` file of ``torch.export.save``, any
            number of images allowed; or ``package.module:function``, a function without arguments that returns an
            ``nn.Module``. The module is looked up with the working directory on the path.
        weights: safetensors to load into a function's model; None keeps what the function returns.
        mean, std: per-channel normalisation to put before the model; both or none.

    Raises:
        WrongInput: when the reference is wrong, the function fails or the weights do not fit.
    """
    if bool(mean) != bool(std) or len(mean) != len(std):
        raise WrongInput(f"--mean and --std must have one number a channel each, got {len(mean)} and {len(std)}")
    if any(not number > 0 for number in std):
        raise WrongInput(f"--std must be above 0, got {', '.join(map(str, std))}")
    path = Path(reference)
    if weights and (path.is_dir() or path.suffix == ".pt2"):
        raise WrongInput("--weights goes with module:function; a model folder or program has its own weights")
    try:
        if path.is_dir():
            architecture, state = _read_folder(path)
            if mean and architecture.get("name") in ("guarded", "null"):
                raise WrongInput("--mean and --std: a model that rejects images is used as it was made, without")
        elif path.suffix in _FILES:
            architecture, state = {"program": "torch.export"}, _read_program(path)
        elif ":" in reference:
            architecture, state = {"function": reference}, _read_weights(weights)
        else:
            raise WrongInput("neither a model folder, a .pt2 program nor package.module:function")
        model = _built(architecture, state)
        if not state:
            state = pack_weights(model)
            _require_loadable(architecture, state)
    except WrongInput as error:
        raise WrongInput(str(error) if str(error).startswith("--") else f"--model {reference}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever a user's function or a foreign file raises: wrong input
        raise WrongInput(f"--model {reference}: {_summary(error)}") from None
    digest = hashlib.sha256(json.dumps([architecture, list(mean), list(std)], sort_keys=True).encode())
    for part in _sources_of(architecture):
        digest.update(part)
    digest.update(state)
    return ModelRecipe(reference, architecture, state, tuple(mean), tuple(std), weights, digest.hexdigest())


def _require_loadable(architecture: dict[str, Any], state: bytes) -> None:
    """Calls a user's function again: it must give the same weights, and its model must take them.

    A function that draws from a stream which its module has seeded once gives others at its second call, and the same
    in another process, which is asked then.

    Raises:
        WrongInput: for a function that draws its weights anew, which no later command could find again.
    """
    model = _construct(architecture)
    first, second = (safetensors.torch.load(packed) for packed in (state, pack_weights(model)))
    other = [name for name in first if name not in second or not _bits(first[name]).equal(_bits(second[name]))]
    if other and _weights_elsewhere(architecture["function"]) != hashlib.sha256(state).hexdigest():
        raise WrongInput(
            f"gives other weights at each call ({min(other)}): seed what it draws, within the function, or give "
            "trained weights as --weights"
        )
    model.load_state_dict(first)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().flatten().view(torch.uint8)


def _weights_elsewhere(reference: str) -> str:
    """SHA-256 of the packed weights that a function gives in a process of its own; empty where it fails there."""
    code = (
        "import sys, hashlib; sys.path[:] = sys.argv[2:]; import workers\n"
        "from workers.models.loading import _construct, pack_weights\n"
        "print('\\n' + hashlib.sha256(pack_weights(_construct({'function': sys.argv[1]}))).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, reference, *sys.path], capture_output=True, text=True, check=False
    )
    return run.stdout.splitlines()[-1] if run.returncode == 0 else ""


def pack_weights(model: nn.Module) -> bytes:
    """Parameters and buffers as safetensors; shared ones are written as often as they are named."""
    return bytes(
        safetensors.torch.save({name: x.detach().clone().contiguous() for name, x in model.state_dict().items()})
    )


def check_model(model: nn.Module, dataset: Dataset) -> int:
    """Tries a model on the first two images of a data set.

    An image without a finite answer is one that a search fails on; where no image has one, there is nothing to search.

    Returns:
        The number of classes.

    Raises:
        WrongInput: when it fails on images of this shape, its answer is no logits (`require_logits`), it gives a
            finite one to none of the first images, or has fewer classes than the labels: the first row with another
            label is named.
    """
    images = torch.tensor(dataset.images[:2]).float().div(255)
    shape = "×".join(map(str, dataset.shape))
    try:
        with torch.no_grad():
            answer = model(images.to(next(model.parameters(), images).device))
    except (Exception, SystemExit) as error:  # whatever a foreign model raises, it cannot take these images
        raise WrongInput(f"the model fails on images of {shape}: {other_dtype(model)}{_summary(error)}") from None
    logits = require_logits(answer, len(images))
    if not bool(answered(logits).any()) and not _answers_any(model, some := dataset.images[:TRIED]):
        raise WrongInput(f"the model must return finite logits: it does for none of the first {len(some)} images")
    classes = logits.shape[1]
    if classes < dataset.classes:
        row = int((dataset.labels >= classes).argmax())
        raise WrongInput(f"row {row} of {dataset.name}: label {dataset.labels[row]}, the model has {classes} classes")
    return classes


def _answers_any(model: nn.Module, images: np.ndarray) -> bool:
    """Whether a model may answer some image by finite numbers; if it fails, a search says so of each image."""
    device = next(model.parameters(), torch.empty(0)).device
    try:
        with torch.no_grad():
            return any(
                bool(answered(model(pair.to(device).float().div(255)).float()).any())
                for pair in torch.split(torch.tensor(images), 2)
            )
    except Exception:  # whatever a foreign model raises
        return True


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


_FILES = {
    ".pt2": "",
    ".safetensors": "weights without an architecture; give the architecture as --model package.module:function "
    "and this file as --weights",
    ".onnx": "ONNX is not read, because its converter to torch does not load beside a CPU build of torch; give the "
    "model as a torch.export program (.pt2) or as package.module:function",
} | dict.fromkeys(
    (".pt", ".pth", ".pkl", ".ckpt", ".bin"),
    "a pickle can run any code and is never loaded; save the weights as safetensors and give the architecture as "
    "--model package.module:function, or export the model with torch.export.save",
)
"""What a model's file may be, or why it is not taken."""


def _read_program(path: Path) -> bytes:
    if not path.is_file():
        raise WrongInput("no such file")
    if reason := _FILES[path.suffix]:
        raise WrongInput(reason)
    return pack_program(path.read_bytes())


def _read_weights(path: Path | None) -> bytes:
    if path is None:
        return b""
    if not path.is_file():
        raise WrongInput(f"--weights {path}: no such file")
    return path.read_bytes()


def _built(architecture: dict[str, Any], state: bytes) -> nn.Module:
    if "program" in architecture:
        return load_program(state)
    if architecture.get("name") == "guarded":
        from workers.detectors.guarded import build_guarded

        return build_guarded(architecture, state)
    model = _construct(architecture)
    if state:
        model.load_state_dict(safetensors.torch.load(state))
    if architecture.get("name") == "null":
        from workers.models.null import NullCNN, rejecting

        assert isinstance(model, NullCNN)
        return rejecting(model)
    return model


def _construct(architecture: dict[str, Any]) -> nn.Module:
    if "function" in architecture:
        function = user_function(architecture["function"])
        with prints_aside():
            model = function()
        if not isinstance(model, nn.Module):
            raise WrongInput(f"{architecture['function']} must return an nn.Module, got {type(model).__name__}")
        return model
    return construct(architecture)


def construct(architecture: Mapping[str, Any]) -> nn.Module:
    """A network of brittle's own with random weights, drawn from torch's own stream.

    Args:
        architecture: its ``name`` and its sizes.

    Raises:
        WrongInput: for an unknown name.
    """
    from workers.models.null import NullCNN

    kinds: dict[str, type[nn.Module]] = {
        "cnn": CNN,
        "kernel": KernelMachine,
        "mlp": MLP,
        "null": NullCNN,
        "rbf": RBFNetwork,
        "synthesis": SynthesisClassifier,
    }
    sizes = dict(architecture)
    if (name := sizes.pop("name", None)) not in kinds:
        *first, last = kinds
        raise WrongInput(f"unknown architecture {name}: expected {', '.join(first)} or {last}")
    return kinds[name](**sizes)


def user_function(reference: str) -> Any:
    """The function of ``package.module:function``, looked up with the working directory on the path.

    Raises:
        WrongInput: when there is none, or its module cannot be imported.
    """
    module_name, _, function_name = reference.partition(":")
    if "" not in sys.path and (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that a user's folder never shadows brittle's own packages
    try:
        with prints_aside():
            function = getattr(importlib.import_module(module_name), function_name, None)
    except (Exception, SystemExit) as error:  # an import runs the user's code, which may raise anything
        raise WrongInput(f"--model {reference}: cannot import {module_name}: {_summary(error)}") from None
    if not callable(function):
        raise WrongInput(f"--model {reference}: {module_name} has no function '{function_name}'")
    return function


def hash_of_sources(described: dict[str, Any]) -> str:
    """SHA-256 of what the user's function in ``{"function": "module:function"}`` is made of."""
    digest = hashlib.sha256()
    for part in _sources_of(described):
        digest.update(part)
    return digest.hexdigest()


def _sources_of(architecture: dict[str, Any]) -> Iterator[bytes]:
    """Names and sources of what a user's functions are made of: their modules, and the user's own modules they import.

    The user's own are those in the folder that the function's module was found in, and not installed packages.
    """
    if architecture.get("name") == "guarded":  # its parts may be functions
        yield from _sources_of(architecture["classifier"])
        yield from _sources_of(architecture["detector"]["parameters"])
    if "function" not in architecture:
        return
    name = architecture["function"].partition(":")[0]
    try:
        own = Path(inspect.getfile(user_function(architecture["function"])))
        yield own.read_bytes()
    except (TypeError, OSError):  # a builtin or a callable object has no source file
        pass
    first = _source_file(name)
    if first is None or "site-packages" in first.parts:
        return
    root = first.parents[name.count(".") + (first.name == "__init__.py")]
    found, waiting = {}, [name]
    while waiting:
        name = waiting.pop()
        path = _source_file(name)
        if name in found or path is None or not path.is_relative_to(root) or "site-packages" in path.parts:
            continue
        if path.is_relative_to(Path(__file__).parent.parent):  # brittle's own: bound by the hash of its code
            continue
        found[name] = path.read_bytes()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imported(found[name], package)
    for name in sorted(found):
        yield name.encode() + b"\0" + found[name]


def _source_file(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin).resolve() if spec and spec.origin and spec.origin.endswith(".py") else None


def _imported(source: bytes, package: str) -> Iterator[str]:
    """Every module that a source may import; ``from a import b`` may mean the module ``a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _summary(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}" if text else type(error).__name__
