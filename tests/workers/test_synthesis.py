"""Analysis by synthesis: its codes, its gradient, and what each generator learns."""

from pathlib import Path

import pytest
import torch

from tests.conftest import random_images
from tests.workers.defense_cases import run, stream
from workers.models.synthesis import SynthesisClassifier
from workers.training.synthesis import Synthesis


def synthesis(**sizes: int) -> SynthesisClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return SynthesisClassifier(1, 5, 4, classes=3, hidden=7, code_size=2, **sizes)


def test_a_class_is_as_likely_as_its_best_code() -> None:
    """The search of a code comes near the best of a fine grid, and its cost is written out once."""
    model = synthesis(starts=50, steps=40)
    with torch.no_grad():
        model.decode_weight.mul_(5)
    images = torch.tensor(random_images((1, 5, 4), 6, 2)).float().div(255)
    line = torch.linspace(-4, 4, 161)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        made = model.decode(grid.expand(3, -1, -1))
        apart = (made[:, None] - images.flatten(1)[None, :, None]).square().sum(dim=3)
        best = (apart / (2 * 0.3**2) + grid.square().sum(dim=1) / 2).amin(dim=2).T
        plain, refined = synthesis(starts=50, steps=0), model
        plain.load_state_dict(model.state_dict())
        assert (-refined(images) <= -plain(images) + 1e-5).all()
        assert (-refined(images) >= best - 0.05).all()
        assert (-refined(images) - best).median() < 0.2
    assert torch.allclose(refined(images[2:3]), refined(images)[2:3], atol=1e-4)


def test_the_gradient_is_that_of_the_energy_with_the_code_held() -> None:
    model = synthesis()
    images = torch.tensor(random_images((1, 5, 4), 6, 2)).float().div(255).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(images)[:, 1].sum(), images)
    with torch.no_grad():
        flat = images.flatten(1)[None]
        made = model.decode(model.codes(flat))[1]
    assert torch.allclose(gradient.flatten(1), -(images.detach().flatten(1) - made) / 0.3**2, atol=1e-4)


def test_each_class_s_generator_learns_from_its_own_images() -> None:
    """The bound is that of the label's autoencoder, written out; the others get no gradient."""
    model = synthesis()
    images = torch.tensor(random_images((1, 5, 4), 6, 2)).float().div(255)
    labels, noise = torch.tensor([0, 2, 0, 0, 2, 2]), torch.randn(6, 2, generator=stream())
    losses = model.loss(images, labels, noise)
    for row, label in enumerate(labels.tolist()):
        flat = images[row].flatten()[None, None]
        mean, log_variance = (part[label, 0] for part in model.encode(flat))
        code = mean + noise[row] * (log_variance / 2).exp()
        made = model.decode(code.expand(3, 1, -1))[label, 0]
        spread = torch.distributions.Normal(mean, (log_variance / 2).exp())
        divergence = torch.distributions.kl_divergence(spread, torch.distributions.Normal(0.0, 1.0)).sum()
        expected = (images[row].flatten() - made).square().sum() / (2 * 0.3**2) + divergence
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-4)
    losses.mean().backward()
    for parameter in model.parameters():
        assert not parameter.grad[1].any()
        assert parameter.grad[0].any()


def test_synthesis_learns_to_classify(tmp_path: Path) -> None:
    epochs = run(tmp_path, Synthesis(hidden=60, starts=20, steps=3), 6)
    assert epochs[-1].accuracy > 0.93
    assert epochs[-1].loss < epochs[0].loss
