"""The dense evaluator: equal to the plain model, and the same bits wherever an image sits."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import random_images, random_model
from workers.evaluation.dense import DenseEvaluator, batch_that_fits


def vectors(logits: Tensor, rows: slice) -> list[Tensor]:
    return [torch.ones_like(logits), logits.softmax(dim=1)]


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_equals_the_plain_model(kind: str) -> None:
    model, shape, _ = random_model(kind, 0)
    images = torch.tensor(random_images(shape, 37, 1))
    evaluator = DenseEvaluator(model, block=4, batch=8)
    plain = images.float().div(255).requires_grad_(True)
    expected = model(plain)
    (slope,) = torch.autograd.grad(expected.sum(), plain)
    logits, (ones, _) = evaluator.gradients(images, vectors)
    torch.testing.assert_close(evaluator.logits(images), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ones, slope, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["grey", "colour", "mnist"])
def test_same_bits_in_every_layout(kind: str, mnist_model: nn.Module) -> None:
    model, shape, _ = (mnist_model, (1, 28, 28), 10) if kind == "mnist" else random_model(kind, 0)
    images = torch.tensor(random_images(shape, 150, 2))
    evaluator = DenseEvaluator(model)
    logits, gradients = evaluator.gradients(images, vectors)
    assert torch.equal(logits, evaluator.logits(images))
    rng = np.random.default_rng(3)
    for size in (1, 2, 7, 16, 33, 64, 65, 149):
        rows = torch.tensor(rng.permutation(150)[:size])
        some, found = evaluator.gradients(images[rows], vectors)
        assert torch.equal(some, logits[rows])
        assert torch.equal(evaluator.logits(images[rows]), logits[rows])
        for whole, part in zip(gradients, found, strict=True):
            assert torch.equal(part, whole[rows])


def test_same_bits_for_strides_that_only_look_different(mnist_model: nn.Module) -> None:
    images = torch.tensor(random_images((1, 28, 28), 16, 4))
    evaluator = DenseEvaluator(mnist_model)
    odd = images.to(memory_format=torch.channels_last).as_strided((16, 1, 28, 28), (784, 1, 28, 1))
    assert torch.equal(odd, images)
    assert torch.equal(evaluator.logits(odd), evaluator.logits(images))
    for expected, found in zip(
        evaluator.gradients(images, vectors)[1], evaluator.gradients(odd, vectors)[1], strict=True
    ):
        assert torch.equal(expected, found)


def test_refuses_a_batch_that_is_no_multiple() -> None:
    with pytest.raises(ValueError, match="multiple of block"):
        DenseEvaluator(nn.Flatten(), block=16, batch=40)


def test_the_batch_that_fits_grows_with_the_memory() -> None:
    """A linear layer's passes: its input, output and gradients are known to the byte, so the batch is too."""
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval(), torch.tensor(random_images((3, 4, 4), 2, 0))
    one = batch_that_fits(model, images, 1, block=16)
    assert one == 16
    large = [batch_that_fits(model, images, free, block=16) for free in (1 << 20, 2 << 20, 4 << 20)]
    assert 16 < large[0] < large[1] < large[2]
    assert all(batch % 16 == 0 for batch in large)
    at_least = 4 * (48 + 5 + 48)  # the image, its logits and one gradient have to be there at once
    assert large[2] <= (4 << 20) // at_least
    assert batch_that_fits(model, images, 1 << 40, block=16) == 8192


def test_the_batch_of_a_model_without_gradients_fits_too() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear((images > 0.5).float().flatten(1)).detach()

    assert batch_that_fits(Steps(), torch.tensor(random_images((1, 4, 4), 3, 0)), 1 << 20, block=16) > 16


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_logits_are_single_precision_whatever_the_model_computes_in(kind: torch.dtype) -> None:
    class Other(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3].to(kind)

    images = torch.tensor(random_images((1, 4, 4), 5, 1))
    evaluator = DenseEvaluator(Other())
    logits, (ones,) = evaluator.gradients(images, lambda found, rows: [torch.ones_like(found)])
    assert logits.dtype == evaluator.logits(images).dtype == torch.float32
    assert ones.flatten(1)[:, :3].eq(1).all()
