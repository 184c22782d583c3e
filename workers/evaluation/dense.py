"""The plain evaluator: whole images through the whole model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.evaluation.calls import filled_call

__all__ = ["DenseEvaluator", "batch_that_fits"]


class DenseEvaluator:
    """Runs a model in chunks of ``batch`` images, the last one filled up to a multiple of ``block`` by its own images.

    Logits change with the batch size by about 1e-5, enough to change what an iterative attack ends with.
    With every call padded (and MKL in its strict mode, see `workers`) an image's logits and gradients are
    the same bits in every layout of shards and batches, on one kind of device and one set of versions. A call is a
    fresh copy (`filled_call`), and for gradients no leaf of the graph: a model may write to it.

    Args:
        model: float images ``[n, C, H, W]`` in [0, 1] to logits ``[n, classes]``, in ``eval()`` mode.
        block: every call is filled up to a multiple of this.
        batch: the largest call, a multiple of ``block``; 64 is the seed's CNN's fastest on a CPU core.
    """

    def __init__(self, model: nn.Module, *, block: int = 16, batch: int = 64) -> None:
        if block < 1 or batch % block:
            raise ValueError(f"batch must be a multiple of block, got {batch} and {block}")
        self.model, self.block, self.batch = model, block, batch

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters(), torch.empty(0)).device

    def logits(self, images: Tensor) -> Tensor:
        """Logits float32 ``[n, classes]`` of images ``[n, C, H, W]``, uint8 or float in [0, 1]."""
        with torch.no_grad():
            chunks = torch.split(images, self.batch)
            return torch.cat([self.model(self._padded(chunk))[: len(chunk)].float() for chunk in chunks])

    def gradients(
        self, images: Tensor, cotangents: Callable[[Tensor, slice], Sequence[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Vector–Jacobian products of the logits with respect to the images.

        Args:
            images: ``[n, C, H, W]``, uint8 or float in [0, 1].
            cotangents: given the logits ``[m, classes]`` of some rows and the slice of those rows, returns
                vectors v of that shape; one backward pass is done for each.

        Returns:
            The logits ``[n, classes]``, and for each vector the gradient of Σ v·logits, ``[n, C, H, W]``.
        """
        logits, gradients = [], []
        for start in range(0, len(images), self.batch):
            rows = slice(start, min(start + self.batch, len(images)))
            inputs = self._padded(images[rows]).requires_grad_(True)
            with torch.enable_grad():
                outputs = self.model(inputs.clone()).float()
            real = outputs.detach()[: rows.stop - start]
            vectors = list(cotangents(real, rows))
            found = []
            for number, vector in enumerate(vectors):
                padded = torch.zeros_like(outputs)
                padded[: len(real)] = vector
                more: dict[str, Any] = {"retain_graph": number + 1 < len(vectors)}
                found.append(torch.autograd.grad(outputs, inputs, padded, **more)[0][: len(real)])
            logits.append(real)
            gradients.append(found)
        return torch.cat(logits), [torch.cat(parts) for parts in zip(*gradients, strict=True)]

    def _padded(self, images: Tensor) -> Tensor:
        return filled_call(images, len(images) + -len(images) % self.block)


def batch_that_fits(model: nn.Module, images: Tensor, free: int, *, block: int, most: int = 8192) -> int:
    """The largest batch whose forward and two backward passes fit into memory, for a device fed best by large ones.

    Everything that the passes of one block write is added up, as if nothing were freed before the end.

    Args:
        model: in ``eval()`` mode, on its device.
        images: some to try it on, uint8 ``[n, C, H, W]``, 1 ≤ n ≤ block.
        free: bytes that may be used.
        block: the batch is a multiple of it.
        most: the largest batch to give.

    Returns:
        The batch, at least one block.
    """
    evaluator = DenseEvaluator(model, block=block, batch=block)
    images = images.to(evaluator.device)
    with _Written() as written:
        try:
            evaluator.gradients(images, lambda logits, rows: [logits, logits])
        except RuntimeError:  # a model without gradients is searched by its logits alone
            evaluator.logits(images)
    return max(1, min(most, free * block // written.bytes) // block) * block


class _Written(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        found = function(*arguments, **(options or {}))
        self.bytes += sum(leaf.nbytes for leaf in tree_leaves(found) if isinstance(leaf, Tensor))
        return found
