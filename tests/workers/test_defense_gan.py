"""Defense-GAN: the GAN's training, the projection, and the detector around them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import random_images, random_model
from workers.detectors.defense_gan import DefenseGAN, DefenseGANDetector
from workers.errors import WrongInput
from workers.images import Dataset
from workers.models.gan import GAN
from workers.sources import load_data
from workers.training.gan import GANNetwork
from workers.training.networks import NetworkEpoch, train_network

RECIPE = DefenseGAN(steps=20, restarts=3, code_size=5, filters=3)


def detector_of(kind: str, recipe: DefenseGAN = RECIPE, seed: int = 1) -> DefenseGANDetector:
    model, shape, _ = random_model(kind, 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = recipe.build(model, shape)
        for parameter in detector.gan.generator.parameters():
            parameter.data *= 4  # untrained, it makes grey images of any code
    detector.fit(torch.empty(0), torch.empty(0), seed=seed, on_step=lambda *_: None)
    return detector.requires_grad_(False)


def floats(shape: tuple[int, int, int], count: int) -> torch.Tensor:
    return torch.from_numpy(random_images(shape, count, 9)).float() / 255


def train(folder: Path, epochs: int, cut: tuple[int, int] | None = None) -> list[NetworkEpoch]:
    def on_batch(epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == cut:
            raise KeyboardInterrupt

    network = GANNetwork(epochs=epochs, batch_size=96, code_size=8, filters=4)
    return list(train_network(network, load_data("digits", "train"), folder, on_batch=on_batch))


def test_a_cut_training_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    straight = train(tmp_path / "a", 3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", 3, cut=(2, 4))
    assert train(tmp_path / "b", 3) == straight
    for kind in ("safetensors", "optimizer"):
        assert (tmp_path / f"a/epoch-003.{kind}").read_bytes() == (tmp_path / f"b/epoch-003.{kind}").read_bytes()


def test_training_brings_generated_images_nearer() -> None:
    digits = load_data("digits", "train")
    images = torch.tensor(digits.images).float() / 255
    network = GANNetwork(batch_size=96, code_size=8, filters=4, learning_rate=2e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network.build(digits.shape)
    assert isinstance(model, GAN)

    def off() -> float:
        with torch.no_grad():
            made = model(torch.randn(512, 8, generator=torch.Generator().manual_seed(1)))
        return float((made.mean(dim=0) - images.mean(dim=0)).abs().mean())

    before, optimizers = off(), network.optimizers(model)
    for _ in range(120):
        rows = torch.randint(len(images), (96,), generator=generator)
        assert np.isfinite(network.step(model, optimizers, images[rows], generator))
    assert off() < before / 2


@pytest.mark.parametrize("shape", [(3, 7, 6), (1, 1, 3), (2, 17, 28)])
def test_any_shape_is_generated_and_judged(shape: tuple[int, int, int]) -> None:
    model = GAN(*shape, code_size=4, filters=2)
    made = model(torch.randn(5, 4))
    assert made.shape == (5, *shape)
    assert made.min() >= 0
    assert made.max() <= 1
    assert model.critic(made).shape == (5, 1)


def test_the_critics_penalty_holds_its_slope_at_one() -> None:
    model = GAN(1, 4, 4, code_size=2, filters=2)
    real, codes, mix = torch.rand(6, 1, 4, 4), torch.randn(6, 2), torch.rand(6, 1, 1, 1)
    with torch.no_grad():
        made = model(codes)
    loss, distance = model.critic_loss(real, codes, mix, 10.0)
    between = (mix * real + (1 - mix) * made).requires_grad_(True)
    slopes = [torch.autograd.grad(model.critic(one[None]).sum(), one)[0].norm() for one in between]
    expected = 10 * np.mean([(slope.item() - 1) ** 2 for slope in slopes]) - distance.item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert distance.item() == pytest.approx((model.critic(real).mean() - model.critic(made).mean()).item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["colour", "seed"])
def test_projection_lowers_the_error(kind: str) -> None:
    errors = []
    for steps, restarts in ((1, 1), (60, 1), (60, 8)):
        detector = detector_of(kind, DefenseGAN(steps=steps, restarts=restarts, code_size=5, filters=3, step_size=2))
        images = detector.gan(torch.randn(6, 5, generator=torch.Generator().manual_seed(5)))
        errors.append(float(detector.score(images).mean()))
    assert errors[1] < errors[0] / 2
    assert errors[2] <= errors[1]


def test_the_best_start_is_kept_and_the_score_is_its_error() -> None:
    detector = detector_of("colour")
    images = floats((3, 7, 6), 5)
    alone = []
    for start in detector.starts:
        single = detector_of("colour", RECIPE.model_copy(update={"restarts": 1}))
        single.starts.copy_(start[None])
        alone.append(single.score(images))
    score = detector.score(images)
    assert torch.allclose(score, torch.stack(alone).amin(dim=0), rtol=1e-5)
    again = detector.reconstruct(images)
    assert torch.allclose(score, (images - again).square().flatten(1).mean(dim=1))
    assert torch.equal(detector.predict(images), detector.classifier(again))


def test_each_image_is_projected_by_itself() -> None:
    detector = detector_of("colour")
    images = floats((3, 7, 6), 9)
    alone = torch.cat([detector.reconstruct(images[i : i + 1]) for i in range(len(images))])
    assert torch.equal(detector.reconstruct(images), alone)


def test_restored_scores_are_the_same_and_the_seed_decides() -> None:
    detector, images = detector_of("colour"), floats((3, 7, 6), 4)
    again = RECIPE.model_copy(update={"restarts": 1}).build(detector.classifier, (3, 7, 6))
    assert torch.equal(again.restore(detector.state_dict()).score(images), detector.score(images))
    assert not torch.equal(detector_of("colour", seed=2).score(images), detector.score(images))


def test_gradients_leave_the_descent_out() -> None:
    detector = detector_of("colour")
    images = floats((3, 7, 6), 3).requires_grad_(True)
    again = detector.reconstruct(images)
    (through,) = torch.autograd.grad(again.sum(), images, retain_graph=True)
    assert torch.equal(through, torch.ones_like(through))
    (slope,) = torch.autograd.grad(detector.score(images).sum(), images)
    assert torch.allclose(slope, 2 * (images - again).detach() / images[0].numel())
    (slope,) = torch.autograd.grad(detector.predict(images)[:, 0].sum(), images)
    at = again.detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(detector.classifier(at)[:, 0].sum(), at)
    assert torch.equal(slope, expected)
    with torch.no_grad():
        assert torch.equal(detector.score(images), detector.score(images.detach()))


def test_wrong_input_is_one_line() -> None:
    with pytest.raises(WrongInput, match="momentum"):
        DefenseGAN(momentum=1)
    few = load_data("digits", "train")
    tiny = Dataset.checked(few.images[:5], few.labels[:5], split="all", name="few")
    with pytest.raises(WrongInput, match="--batch-size: at most the 5 training images"):
        list(train_network(GANNetwork(), tiny, Path("never"), on_batch=lambda *_: None))
