"""What a change of the image changes inside a model, layer by layer, beside random noise of the same size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from analysis.embeddings import classifier_of
from analysis.statistics import Estimate, by_image
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.scores import UNANSWERED, predicted
from workers.results import distances

__all__ = ["GROUPS", "INPUT", "Changes", "Growth", "Layer", "activation_changes", "activations", "change_maps",
           "growths", "norm_matched_noise"]  # fmt: skip

INPUT = "input"
"""The image itself, as the layer before all others."""

GROUPS = ("success", "failure", "noise of success", "noise of failure")
"""Whose change it is: an adversarial image that succeeded or failed, or the noise of the same size beside it."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECTIFIERS = ("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "gelu", "silu")

OnImages = Callable[[int], object]


def _ignore(count: int) -> None:
    pass


@dataclass(frozen=True)
class Layer:
    """Where activations are read.

    Attributes:
        name: the module's path in the model, ``conv1``; of a rectifier behind it ``conv1 relu``; a number behind it
            from the second time on.
        kind: ``input``, ``convolution``, ``linear`` or ``rectifier``.
    """

    name: str
    kind: str


class _Recorder(TorchFunctionMode):
    """Keeps the outputs of convolutions, linear layers and rectifiers, modules or functions, while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model, self._last = model, ""
        self._handles: list[Any] = []
        self._times: dict[str, int] = {}
        self.found: dict[Layer, Tensor] = {}

    def __enter__(self) -> "_Recorder":
        for name, module in self._model.named_modules():
            if isinstance(module, _CONVOLUTIONS):
                self._handles.append(module.register_forward_hook(self._hook(name, "convolution")))
            elif isinstance(module, nn.Linear):
                self._handles.append(module.register_forward_hook(self._hook(name, "linear")))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in _RECTIFIERS and isinstance(answer, Tensor):
            self._keep(f"{self._last} {name.rstrip('_')}".strip(), "rectifier", answer)
        return answer

    def _hook(self, name: str, kind: str) -> Callable[..., None]:
        def keep(module: nn.Module, arguments: Any, answer: Any) -> None:
            self._last = name or "model"
            if isinstance(answer, Tensor):
                self._keep(self._last, kind, answer)

        return keep

    def _keep(self, name: str, kind: str, answer: Tensor) -> None:
        self._times[name] = times = self._times.get(name, 0) + 1
        layer = Layer(name if times == 1 else f"{name} {times}", kind)
        self.found[layer] = answer.detach().clone()  # a rectifier in place writes over it


def activations(model: nn.Module, images: np.ndarray) -> dict[Layer, Tensor]:
    """The image and the outputs of all convolutions, linear layers and rectifiers, in the order executed.

    Args:
        model: in ``eval()`` mode; of a classifier behind a detector the classifier is looked into.
        images: uint8 ``[n, C, H, W]``, n ≤ 64, as many as the evaluator sees at once.

    Returns:
        float32 ``[n, …]`` each; what has not a row an image is left out.
    """
    evaluator = DenseEvaluator(classifier_of(model))
    if not 0 < len(images) <= evaluator.batch:
        raise ValueError(f"expected 1 to {evaluator.batch} images, got {len(images)}")
    shown = torch.tensor(images, device=evaluator.device)
    with _Recorder(evaluator.model) as recorder:
        evaluator.logits(shown)
    padded = len(images) + -len(images) % evaluator.block
    seen = {
        layer: answer[: len(images)].float()
        for layer, answer in recorder.found.items()
        if answer.ndim > 1 and len(answer) == padded
    }
    return {Layer(INPUT, "input"): shown.float().div(255)} | seen


def norm_matched_noise(images: np.ndarray, sizes: np.ndarray, draws: Sequence[np.random.Generator]) -> np.ndarray:
    """Images moved at random by an L2 norm: a Gaussian direction, clipped to 0 to 255 and rounded to whole levels.

    The direction's length is found by bisection, so that the L2 norm after clipping and rounding is as close to the
    size as it gets. It cannot always be met: rounding leaves gaps at a few levels, and clipping an end.

    Args:
        images: uint8 ``[n, C, H, W]``.
        sizes: float ``[n]``, L2 norms on pixels in [0, 1].
        draws: a generator for each image.

    Returns:
        uint8 ``[n, C, H, W]``.
    """
    clean = images.astype(np.float64)
    ways = np.reshape([draw.standard_normal(images.shape[1:]) for draw in draws], clean.shape)

    def moved(by: np.ndarray) -> np.ndarray:
        return np.rint(np.clip(clean + by[:, None, None, None] * ways, 0, 255)).astype(np.uint8)

    def size(noisy: np.ndarray) -> np.ndarray:
        return distances(images, noisy).l2

    low = np.zeros(len(images))
    high = np.full(len(images), 1.0)
    while (short := (size(moved(high)) < sizes) & (high < 1e6)).any():  # 10⁶ levels saturate nearly every value
        high[short] *= 4
    for _ in range(40):
        middle = (low + high) / 2
        reached = size(moved(middle)) >= sizes
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    below, above = moved(low), moved(high)
    nearer = np.abs(size(above) - sizes) < np.abs(size(below) - sizes)
    return np.where(nearer[:, None, None, None], above, below)


@dataclass(frozen=True)
class Changes:
    """How much activations changed.

    Attributes:
        layers: L of them, in the order executed, the input first.
        adversarial: float64 ``[n, L]``, ‖a(x′) − a(x)‖₂ / ‖a(x)‖₂ of each image and layer; NaN where a(x) is 0.
        noise: float64 ``[n, L, draws]``, the same for images moved at random.
        size: float64 ``[n]``, ‖x′ − x‖₂ on pixels in [0, 1].
        noise_size: float64 ``[n, draws]``, of the noise as it came to be.
        noise_fools: ``[n, draws]``, 1 where the model predicts another class than for the clean image, 0 where it does
            not; NaN where it gives either of both no answer.
    """

    layers: tuple[Layer, ...]
    adversarial: np.ndarray
    noise: np.ndarray
    size: np.ndarray
    noise_size: np.ndarray
    noise_fools: np.ndarray


def activation_changes(
    model: nn.Module,
    clean: np.ndarray,
    adversarial: np.ndarray,
    image: np.ndarray,
    *,
    draws: int = 3,
    seed: int = 0,
    on_images: OnImages = _ignore,
) -> Changes:
    """Measures how much adversarial images change each layer, and noise of the same L2 norm.

    Args:
        model: in ``eval()`` mode.
        clean, adversarial: uint8 ``[n, C, H, W]``, n ≥ 1.
        image: int64 ``[n]``, ids, not negative, by which noise is drawn.
        draws: of noise, for each image.
        seed: of the noise, not negative.
        on_images: called with the number of images just measured.

    Raises:
        WrongInput: for a model that has no convolution and no linear layer whose output is a row an image.
    """
    evaluator = DenseEvaluator(classifier_of(model))
    sizes = distances(clean, adversarial).l2
    noise = []
    for draw in range(draws):
        generators = [np.random.default_rng([seed, int(one), draw]) for one in image]
        noise.append(norm_matched_noise(clean, sizes, generators))
    layers: tuple[Layer, ...] = ()
    found: list[list[np.ndarray]] = [[] for _ in range(draws + 1)]
    fools: list[np.ndarray] = []
    for start in range(0, len(clean), evaluator.batch):
        rows = slice(start, start + evaluator.batch)
        before = activations(model, clean[rows])
        layers = layers or tuple(before)
        if not any(layer.kind in ("convolution", "linear") for layer in layers):
            raise WrongInput("the model executes no convolution and no nn.Linear, whose activations could be compared")
        norms = {layer: values.flatten(1).norm(dim=1) for layer, values in before.items()}
        for number, changed in enumerate((adversarial, *noise)):
            after = activations(model, changed[rows])
            if tuple(after) != layers:
                raise WrongInput("the model executes other layers for other images, so they cannot be compared")
            ratios = [(after[one] - before[one]).flatten(1).norm(dim=1) / norms[one] for one in layers]
            found[number].append(torch.stack(ratios, dim=1).nan_to_num(posinf=torch.nan, nan=torch.nan).cpu().numpy())
        own, *others = [predicted(evaluator.logits(torch.tensor(x[rows]))).cpu().numpy() for x in (clean, *noise)]
        silent = [(one == UNANSWERED) | (own == UNANSWERED) for one in others]
        fools.append(
            np.stack([np.where(no, np.nan, one != own) for one, no in zip(others, silent, strict=True)], axis=1)
        )
        on_images(len(own))
    whole = [np.concatenate(parts).astype(np.float64) for parts in found]
    return Changes(
        layers,
        whole[0],
        np.stack(whole[1:], axis=2),
        sizes,
        np.stack([distances(clean, one).l2 for one in noise], axis=1),
        np.concatenate(fools),
    )


def change_maps(model: nn.Module, clean: np.ndarray, adversarial: np.ndarray) -> dict[str, np.ndarray]:
    """Where each convolution's output changed: max over channels of |Δ|, behind its rectifier where it has one.

    Args:
        model: in ``eval()`` mode.
        clean, adversarial: uint8 ``[n, C, H, W]``, 1 ≤ n ≤ 64.

    Returns:
        float32 ``[n, H′, W′]`` by the layer's name, in the order executed; the input's ``[n, H, W]`` first.
    """
    before, after = activations(model, clean), activations(model, adversarial)
    layers = [layer for layer in before if before[layer].ndim == 4]
    found = {}
    for number, layer in enumerate(layers):
        behind = layers[number + 1] if number + 1 < len(layers) else layer
        shown = behind if behind.kind == "rectifier" and behind.name.startswith(f"{layer.name} ") else layer
        if layer.kind in ("input", "convolution"):
            found[shown.name] = (after[shown] - before[shown]).abs().amax(dim=1).cpu().numpy()
    return found


@dataclass(frozen=True)
class Growth:
    """How a change goes on from the first layer with weights to the last.

    Attributes:
        rows: image and search, of which the layers could be compared.
        factor: median of the relative change at the last layer over that at the first.
        tapers: share of rows in which it is smaller at the last.
        beside_noise: median of the factor over that of the noise of the same image and size; None for noise itself.
    """

    rows: int
    factor: Estimate
    tapers: Estimate
    beside_noise: Estimate | None


def growths(
    changes: Sequence[Changes], success: Sequence[np.ndarray], image: Sequence[np.ndarray]
) -> dict[str, Growth]:
    """The growth of changes of one model, by `GROUPS`; groups without rows are absent.

    Args:
        changes: of several runs.
        success: bool ``[n]`` each.
        image: int64 ``[n]`` each, ids; intervals draw images, not rows.
    """
    weighted = [number for number, one in enumerate(changes[0].layers) if one.kind in ("convolution", "linear")]
    first, last = weighted[0], weighted[-1]
    won, ids = np.concatenate(success), np.concatenate(image)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.concatenate([one.adversarial[:, last] / one.adversarial[:, first] for one in changes])
        random = np.concatenate([np.median(one.noise[:, last] / one.noise[:, first], axis=1) for one in changes])
    found = {}
    for group, chosen in (("success", won), ("failure", ~won)):
        usable = chosen & np.isfinite(own) & np.isfinite(random) & (random > 0)
        if usable.any():
            beside = by_image(own[usable] / random[usable], ids[usable], "median")
            found[group] = _growth(own[usable], ids[usable], beside)
            found[f"noise of {group}"] = _growth(random[usable], ids[usable], None)
    return {group: found[group] for group in GROUPS if group in found}


def _growth(factors: np.ndarray, images: np.ndarray, beside: Estimate | None) -> Growth:
    return Growth(len(factors), by_image(factors, images, "median"), by_image(factors < 1, images), beside)
