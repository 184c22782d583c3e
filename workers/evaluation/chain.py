"""Reading a model as a chain of convolutions, ReLUs and linear layers: what the incremental evaluator takes."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as every_module

from workers.models.foreign import OnCopies
from workers.models.loading import Normalised

__all__ = ["Chain", "Layer", "read_chain"]

LARGEST = 1e37
"""What no number inside a chain may exceed, whatever the image: a sum that overflows hides what it was made of."""

_RELUS = {torch.relu, nn.functional.relu, torch.relu_}


@dataclass(frozen=True)
class Layer:
    """A zero-padded convolution without groups; a linear layer is one whose kernel is its whole input.

    Attributes:
        weight: float32 ``[out, in, height, width]``.
        bias: float32 ``[out]``.
        stride, padding, dilation: rows and columns.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __call__(self, inputs: Tensor) -> Tensor:
        """The pre-activations ``[n, out, rows, columns]`` of inputs ``[n, in, rows, columns]``."""
        return nn.functional.conv2d(inputs, self.weight, self.bias, self.stride, self.padding, self.dilation)


@dataclass(frozen=True)
class Chain:
    """Layers with a ReLU between each two, behind a per-channel normalisation.

    Attributes:
        layers: the first takes the image, the last gives the logits.
        mean, std: float32 ``[C]``.
    """

    layers: tuple[Layer, ...]
    mean: Tensor
    std: Tensor

    def preactivations(self, images: Tensor) -> list[Tensor]:
        """What each layer gives before its ReLU, for float images ``[n, C, H, W]`` in [0, 1]."""
        hidden = (images - self.mean[:, None, None]) / self.std[:, None, None]
        found: list[Tensor] = []
        for layer in self.layers:
            found.append(layer(hidden))
            hidden = found[-1].relu()
        return found

    @property
    def largest(self) -> float:
        """What no pre-activation, nor the sum of its parts' sizes, exceeds for images in [0, 1]; NaN, ∞ if some may."""
        ends = torch.stack([-self.mean / self.std, (1 - self.mean) / self.std]).double().abs()
        most = float(ends.amax())
        largest = 0.0
        for layer in self.layers:
            terms = layer.weight.double().abs().flatten(1).sum(dim=1) * most + layer.bias.double().abs()
            most = float(terms.amax())
            largest = max(largest, most) if most == most else most
        return largest

    def same(self, other: "Chain") -> bool:
        """Whether another chain has the same layers and normalisation, bit by bit."""
        if len(self.layers) != len(other.layers):
            return False
        pairs = [(self.mean, other.mean), (self.std, other.std)]
        for one, two in zip(self.layers, other.layers, strict=True):
            if (one.stride, one.padding, one.dilation) != (two.stride, two.padding, two.dilation):
                return False
            pairs += [(one.weight, two.weight), (one.bias, two.bias)]
        return all(one.equal(two) for one, two in pairs)


def read_chain(model: nn.Module, shape: tuple[int, int, int]) -> Chain | None:
    """Reads a model in ``eval()`` mode as a chain for images of ``(C, H, W)``; None when it is none.

    The model is traced symbolically, so any way of writing a chain will do: ``nn.Sequential``, a ``forward``
    with `torch.relu`, dropout and identity between. What is read is compared with the model on an image. One in which
    some image may overflow is none: on the way a ReLU can hide a NaN from what is computed of it in parts. Nor is one
    that does more than its layers' classes say, which tracing does not see (`_does_more`).
    """
    if _does_more(model):
        return None
    mean, std = torch.zeros(shape[0]), torch.ones(shape[0])
    inner = model
    if type(model) is Normalised:
        mean, std = (part.detach().reshape(-1).expand(shape[0]).cpu() for part in (model.mean, model.std))
        inner = model.model
    try:
        layers = _layers(inner, shape)
    except Exception:  # tracing runs foreign code, and a model that cannot be traced is no chain
        return None
    if layers is None:
        return None
    chain = Chain(layers, mean, std)
    if not chain.largest < LARGEST:
        return None
    probe = torch.linspace(0, 1, shape[0] * shape[1] * shape[2]).reshape(1, *shape)
    device = next(model.parameters()).device
    with torch.no_grad():
        said, read = model(probe.clone().to(device)).cpu(), chain.preactivations(probe)[-1].flatten(1)
    same = said.shape == read.shape and torch.allclose(said, read, rtol=1e-4, atol=1e-4)
    return chain if same else None


_CALLS = ("__call__", "_wrapped_call_impl", "_call_impl")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks")


def _does_more(model: nn.Module) -> bool:
    """Whether anything but the ``forward`` of the modules' classes acts when a model is called.

    Hooks of one module or of all, functions of an instance that hide its class's (brittle's own `OnCopies` around the
    ``forward`` of the class does not), a class with its own way of being called, a layer in training mode.
    """
    if any(getattr(every_module, hooks) for hooks in _GLOBAL_HOOKS):
        return True
    for each in model.modules():
        kind = type(each)
        if each.training or any(getattr(each, hooks) for hooks in _HOOKS):
            return True
        if any(getattr(kind, call) is not getattr(nn.Module, call) for call in _CALLS):
            return True
        for name, value in vars(each).items():
            own = isinstance(value, OnCopies) and getattr(value.plain, "__func__", None) is kind.forward
            if callable(value) and hasattr(kind, name) and not own:
                return True
    return False


def _layers(model: nn.Module, shape: tuple[int, int, int]) -> tuple[Layer, ...] | None:
    modules = dict(model.named_modules())
    layers: list[Layer] = []
    size, flat, rectified = torch.Size(shape), False, True  # the image itself counts as rectified: nothing is due
    before: fx.Node | None = None
    for node in fx.symbolic_trace(model).graph.nodes:
        if node.op == "placeholder":
            if before is not None:
                return None
        elif node.op == "output":
            return tuple(layers) if node.args == (before,) and flat and not rectified else None
        elif node.all_input_nodes != [before] or len(node.users) != 1:
            return None
        elif _is_relu(node, modules):
            if not layers:
                return None
            rectified = True
        elif _is_flatten(node, modules):
            flat = True
        elif not _is_nothing(node, modules):
            layer = _layer(modules.get(node.target), size, flat=flat)
            if layer is None or not rectified:
                return None
            layers.append(layer)
            size = layer(torch.zeros(1, *size)).shape[1:]
            rectified = False
        before = node
    return None


def _layer(module: Any, size: torch.Size, *, flat: bool) -> Layer | None:
    if any(type(each) not in (nn.Parameter, Tensor) for each in module.parameters(recurse=False)):
        return None  # a tensor of another kind may multiply in its own way
    if type(module) is nn.Conv2d and not flat and module.groups == 1 and module.padding_mode == "zeros":
        if isinstance(module.padding, str):
            return None
        weight = module.weight.detach().float().cpu()
        sizes = (module.stride, module.padding, module.dilation)
        return Layer(weight, _bias(module), *((int(a), int(b)) for a, b in sizes))
    if type(module) is nn.Linear and flat:
        return Layer(module.weight.detach().float().cpu().reshape(-1, *size), _bias(module))
    return None


def _bias(module: nn.Conv2d | nn.Linear) -> Tensor:
    if module.bias is None:
        return torch.zeros(len(module.weight))
    return module.bias.detach().float().cpu()


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return node.target in _RELUS or (node.op == "call_method" and node.target in ("relu", "relu_"))


def _is_flatten(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    whole = node.args[1:] in ((1,), (1, -1)) and not node.kwargs
    return whole and (node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten"))


def _is_nothing(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and type(modules[str(node.target)]) in (nn.Identity, nn.Dropout, nn.Dropout2d)
