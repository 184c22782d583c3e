"""Defenses: what each trains on is what its paper says; every training resumes to the same bits."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from tests.conftest import ColourNet
from tests.workers.defense_cases import quick, run, stream, trained
from workers.errors import WrongInput
from workers.models.loading import read_model
from workers.sources import load_data
from workers.training.adversarial import AdversarialTraining, cross_entropy_sum
from workers.training.ascent import ascend, uniform_start
from workers.training.classifiers import Recipe, Stage, stages
from workers.training.defenses import DEFENSES, defense_named
from workers.training.distillation import Distillation, Teacher
from workers.training.fgsm import FGSMTraining
from workers.training.fgsm_rs import FGSMRandomStart
from workers.training.pgd import PGDTraining
from workers.training.trades import TRADES

ADVERSARIAL = [kind for kind in DEFENSES.values() if issubclass(kind, AdversarialTraining)]


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("epsilon", [0.3, 0.01])
def test_the_inner_search_stays_in_the_ball_and_raises_the_loss(kind: str, epsilon: float) -> None:
    model, images, labels = trained(kind)
    before = images.clone()
    loss = cross_entropy_sum(model, labels)
    start = uniform_start(images, epsilon, stream())
    found = ascend(loss, images, start, epsilon=epsilon, steps=5, step_size=epsilon / 2)
    for moved in (start, found):
        assert (moved - images).abs().max() <= epsilon + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
    assert loss(found) > loss(start)
    assert loss(found) > loss(images)
    assert torch.equal(images, before)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_step_is_the_fast_gradient_sign() -> None:
    model, images, labels = trained()
    moved = images.clone().requires_grad_(True)
    cross_entropy(model(moved), labels).backward()
    expected = (images + 0.1 * moved.grad.sign()).clamp(0, 1)
    found = ascend(cross_entropy_sum(model, labels), images, images, epsilon=0.1, steps=1, step_size=0.1)
    assert torch.allclose(found, expected, atol=1e-6)
    loss = FGSMTraining(epsilon=0.1, clean_share=0.25, warmup=0).objective(None, load_data("digits", "train"))
    expected_loss = 0.25 * cross_entropy(model(images), labels) + 0.75 * cross_entropy(model(expected), labels)
    assert loss(model, images, labels, stream(), 0.0).item() == pytest.approx(expected_loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("defense", "steps", "step_size"),
    [
        (FGSMRandomStart(epsilon=0.2, warmup=0), 1, 0.25),  # α = 1.25·ε
        (FGSMRandomStart(epsilon=0.2, warmup=0, step_size=0.1), 1, 0.1),
        (PGDTraining(epsilon=0.2, warmup=0, steps=5), 5, 0.1),  # 2.5·ε/steps
        (PGDTraining(epsilon=0.2, warmup=0, steps=3, step_size=0.01), 3, 0.01),
    ],
)
def test_only_what_the_search_from_a_random_start_finds_is_learned(
    defense: AdversarialTraining, steps: int, step_size: float
) -> None:
    """The search is written out: step along the sign, project to the ball, clip to [0, 1]."""
    model, images, labels = trained()
    drawn = (torch.rand(images.shape, generator=stream()) * 2 - 1) * 0.2
    moved = (images + drawn).clamp(0, 1)
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(cross_entropy(model(moved), labels), moved)
        change = (moved.detach() + step_size * gradient.sign() - images).clamp(-0.2, 0.2)
        moved = (images + change).clamp(0, 1)
    objective = defense.objective(None, load_data("digits", "train"))
    loss = objective(model, images, labels, stream(), 0.0)
    assert loss.item() == pytest.approx(cross_entropy(model(moved), labels).item(), rel=1e-4)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_without_a_ball_it_is_plain_training(kind: type[AdversarialTraining]) -> None:
    """At the first step of the warm-up ε is 0, and gradients are those of the cross-entropy."""
    model, images, labels = trained()
    loss = kind(epsilon=0.3, warmup=2.0).objective(None, load_data("digits", "train"))(
        model, images, labels, stream(), 0.0
    )
    plain = cross_entropy(model(images), labels)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    parameters = list(model.parameters())
    for one, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_epsilon_grows_through_the_warm_up(kind: type[AdversarialTraining], monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = trained()
    radii: list[float] = []

    def watched(*arguments: object, epsilon: float, **options: object) -> Tensor:
        radii.append(epsilon)
        return ascend(*arguments, epsilon=epsilon, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("workers.training.ascent.ascend", watched)
    loss = kind(epsilon=0.2, warmup=2.0).objective(None, load_data("digits", "train"))
    losses = [loss(model, images, labels, stream(), epoch).item() for epoch in (0.0, 0.5, 2.0, 7.0)]
    assert radii == pytest.approx([0, 0.05, 0.2, 0.2])
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] == losses[3]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_trades_has_the_gradient_of_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of CE(f(x), y) + β·Σ p·log(p / q), p of the image and q of the moved one, both with their derivative."""
    model, images, labels = trained()
    found: list[Tensor] = []

    def watched(*arguments: object, **options: object) -> Tensor:
        assert not model.training  # as in the authors' code
        found.append(ascend(*arguments, **options))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr("workers.training.ascent.ascend", watched)
    objective = TRADES(epsilon=0.2, beta=3.0, steps=4, warmup=0).objective(None, load_data("digits", "train"))
    loss = objective(model, images, labels, stream(), 0.0)
    p, q = model(images).softmax(dim=1), model(found[0]).softmax(dim=1)
    expected = -p[torch.arange(32), labels].log().mean() + 3.0 * (p * (p / q).log()).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    parameters = list(model.parameters())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)
    near = (images + 0.001 * torch.randn(images.shape, generator=stream())).clamp(0, 1)

    def divergence(moved: Tensor) -> float:
        return kl_div(model(moved).log_softmax(dim=1), p, reduction="batchmean").item()

    assert divergence(found[0]) > 10 * divergence(near)


def test_the_model_is_left_in_training_mode_and_its_statistics_see_the_images_once() -> None:
    """TRADES searches in evaluation mode: batch normalisation learns from the two passes of the loss alone."""
    model, images, labels = trained("colour")
    assert isinstance(model, ColourNet)
    norm = model.body[1]
    assert isinstance(norm, nn.BatchNorm2d)
    TRADES(epsilon=0.3, steps=5, warmup=0).objective(None, load_data("digits", "train"))(
        model, images, labels, stream(), 0.0
    )
    assert int(norm.num_batches_tracked) == 2
    assert model.training


@pytest.mark.parametrize("name", DEFENSES)
def test_killed_and_resumed_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    straight = run(tmp_path / "a", quick(name))
    for epoch, step in ((1, 4), (2, 7)):

        def die(at: int, done: int, loss: float, *, when: tuple[int, int] = (epoch, step)) -> None:
            if (at, done) == when:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "b", quick(name), on_batch=die)
    assert run(tmp_path / "b", quick(name)) == straight
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("epoch-*"))
    assert files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("name", DEFENSES)
def test_the_folder_says_what_made_it(name: str, tmp_path: Path) -> None:
    defense = quick(name)
    run(tmp_path, defense, 1)
    said = json.loads((tmp_path / "model.json").read_text())["training"]
    assert said["defense"] == name
    assert {key: said[key] for key in type(defense).model_fields} == defense.model_dump(mode="json")
    recipe = read_model(str(tmp_path))
    assert recipe.build()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    other = next(known for known in DEFENSES if known != name)
    with pytest.raises(WrongInput, match=f"trained with defense {name}, not {other}"):
        run(tmp_path, quick(other), 1)


def test_no_defense_takes_the_name_of_a_training_s_own_field() -> None:
    own = {"defense", "data", "architecture", "epochs", "batch_size", "learning_rate", "seed", "out", "test_data"}
    for kind in DEFENSES.values():
        assert not own & set(kind.model_fields), kind


def test_other_parameters_are_another_training(tmp_path: Path) -> None:
    run(tmp_path, PGDTraining(steps=1), 1)
    with pytest.raises(WrongInput, match="trained with steps 1, not 2; name another folder"):
        run(tmp_path, PGDTraining(steps=2), 1)


def test_a_folder_without_a_defense_s_name_is_a_plain_one(tmp_path: Path) -> None:
    """As trainings left it before there were defenses."""
    whole = run(tmp_path / "a", quick("none"))
    run(tmp_path / "b", quick("none"), 1)
    card = tmp_path / "b" / "model.json"
    assert '"defense": "none",' in card.read_text()
    card.write_text(card.read_text().replace('"defense": "none",', ""))
    with pytest.raises(WrongInput, match="trained with defense none, not pgd"):
        run(tmp_path / "b", quick("pgd"))
    assert run(tmp_path / "b", quick("none")) == whole
    assert (tmp_path / "a/epoch-002.safetensors").read_bytes() == (tmp_path / "b/epoch-002.safetensors").read_bytes()


def test_adversarial_training_makes_a_model_robust(tmp_path: Path) -> None:
    """On the digits, at ε = 0.1: the search that breaks a plainly trained model breaks few images of a trained one."""
    test = load_data("digits", "test")
    images, labels = torch.tensor(test.images).float().div(255), torch.tensor(test.labels)
    robust = {}
    for name, defense in {"plain": quick("none"), "pgd": PGDTraining(epsilon=0.1, steps=3)}.items():
        assert run(tmp_path / name, defense, 8)[-1].accuracy > 0.85
        model = read_model(str(tmp_path / name)).build()
        start = uniform_start(images, 0.1, stream())
        moved = ascend(cross_entropy_sum(model, labels), images, start, epsilon=0.1, steps=20, step_size=0.02)
        robust[name] = (model(moved).argmax(dim=1) == labels).float().mean().item()
    assert robust["pgd"] > robust["plain"] + 0.15, robust


def test_an_unknown_defense_is_refused() -> None:
    with pytest.raises(WrongInput, match="unknown defense pdg: expected one of none, fgsm"):
        defense_named("pdg")
    with pytest.raises(WrongInput, match="unknown parameter --gamma"):
        defense_named("pgd", gamma=1)


def test_stages_are_in_their_order(tmp_path: Path) -> None:
    digits = load_data("digits", "train")
    (only,) = stages(digits, digits, Recipe(3), tmp_path, quick("pgd"))
    assert only == Stage("model", Recipe(3), quick("pgd"), tmp_path)
    teacher, student = stages(digits, digits, Recipe(3), tmp_path, Distillation(temperature=7, teacher_epochs=5))
    assert teacher == Stage("teacher", Recipe(5), Teacher(temperature=7), tmp_path / "teacher")
    assert student == Stage("model", Recipe(3), Distillation(temperature=7, teacher_epochs=5), tmp_path)
