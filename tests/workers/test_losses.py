"""The losses against their definitions in float64, their derivatives against autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from workers.losses import LOSSES, Loss, cotangents, values


def by_definition(loss: Loss, logits: Tensor, label: int, target: int | None) -> Tensor:
    chosen = label if target is None else target
    others = torch.stack([z for k, z in enumerate(logits) if k != chosen])
    if loss == "dlr":
        top = logits.sort(descending=True).values
        if target is None:
            return -(logits[label] - others.max()) / (top[0] - top[2])
        return -(logits[label] - logits[target]) / (top[0] - (top[2] + top[3]) / 2)
    lead = (others.exp().sum().log() if loss == "ce" else others.max()) - logits[chosen]
    return lead if target is None else -lead


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("classes", [4, 7, 10])
def test_values_and_derivatives(loss: Loss, targeted: bool, classes: int) -> None:
    stream = torch.Generator().manual_seed(classes)
    logits = (5 * torch.randn(40, classes, generator=stream, dtype=torch.float64)).requires_grad_(True)
    labels = torch.randint(classes, (40,), generator=stream)
    targets = (labels + 1 + torch.arange(40) % (classes - 1)) % classes if targeted else None
    expected = torch.stack(
        [by_definition(loss, logits[i], int(labels[i]), int(targets[i]) if targeted else None) for i in range(40)]
    )
    (slope,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(values(loss, logits.detach(), labels, targets), expected.detach())
    torch.testing.assert_close(cotangents(loss, logits.detach(), labels, targets), slope)


@pytest.mark.parametrize("targeted", [False, True])
def test_cross_entropy_up_to_a_factor(targeted: bool) -> None:
    stream = torch.Generator().manual_seed(1)
    logits = (2 * torch.randn(30, 5, generator=stream, dtype=torch.float64)).requires_grad_(True)
    labels = torch.arange(30) % 5
    targets = (labels + 2) % 5 if targeted else None
    loss = cross_entropy(logits, labels if targets is None else targets, reduction="none")
    signed = loss if targets is None else -loss
    (slope,) = torch.autograd.grad(signed.sum(), logits)
    found = cotangents("ce", logits.detach(), labels, targets)
    factor = slope.norm(dim=1, keepdim=True) / found.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found * factor, slope)
    order = signed.detach().argsort()
    assert (values("ce", logits.detach(), labels, targets)[order].diff() > 0).all()


@pytest.mark.parametrize("loss", ["ce", "margin"])  # in dlr the confident class is in the denominator too
@pytest.mark.parametrize("targeted", [False, True])
def test_no_confidence_hides_the_gradient(loss: Loss, targeted: bool) -> None:
    logits = torch.tensor([[500.0, 3.0, 2.0, 1.0]])
    targets = torch.tensor([2]) if targeted else None
    labels = torch.tensor([0])
    slope = cotangents(loss, logits, labels, targets)[0]
    assert slope.isfinite().all()
    assert slope.argmin() == 0
    assert slope.argmax() == (2 if targeted else 1)
    nearer = logits.clone()
    nearer[0, 0] -= 100
    gain = values(loss, nearer, labels, targets) - values(loss, logits, labels, targets)
    assert gain > 0


def test_three_classes_and_ties() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    labels, targets = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert values("dlr", logits, labels, targets)[0] == pytest.approx(-0.5)
    for aim in (None, targets):
        assert values("dlr", logits, labels, aim).isfinite().all()
        assert cotangents("dlr", logits, labels, aim).isfinite().all()
