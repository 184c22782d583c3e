"""Defenses: what each trains on is what its paper says; every training resumes to the same bits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from tests.conftest import ColourNet, random_images, random_model
from workers.attacks import PGD
from workers.detectors.guarded import Guarded, Judged
from workers.errors import WrongInput
from workers.models.loading import read_model
from workers.models.null import NullCNN, rejecting
from workers.models.rbf import RBFNetwork
from workers.models.synthesis import SynthesisClassifier
from workers.results import Status
from workers.sources import load_data
from workers.training.adversarial import AdversarialTraining, cross_entropy_sum
from workers.training.ascent import ascend, uniform_start
from workers.training.classifiers import Epoch, Recipe, Stage, stages, train
from workers.training.defense import Defense
from workers.training.defenses import DEFENSES, defense_named
from workers.training.distillation import Distillation, Teacher
from workers.training.fgsm import FGSMTraining
from workers.training.fgsm_rs import FGSMRandomStart
from workers.training.null_class import NullClass
from workers.training.pgd import PGDTraining
from workers.training.rbf import RBF
from workers.training.synthesis import Synthesis
from workers.training.trades import TRADES

ADVERSARIAL = [kind for kind in DEFENSES.values() if issubclass(kind, AdversarialTraining)]
QUICK = {
    "pgd": {"steps": 2},
    "trades": {"steps": 2},
    "distillation": {"teacher_epochs": 1},
    "null": {"initial_epochs": 1},
}
"""What keeps a training of a few seconds short."""


def quick(name: str) -> Defense:
    return defense_named(name, **QUICK.get(name, {}))


def run(
    folder: Path,
    defense: Defense,
    epochs: int = 2,
    on_batch: Callable[[int, int, float], None] = lambda *_: None,
    *,
    seed: int = 1,
) -> list[Epoch]:
    """All trainings of a defense on the digits; the last one's epochs."""
    training, test = load_data("digits", "train"), load_data("digits", "test")
    found: list[Epoch] = []
    for stage in stages(training, test, Recipe(epochs, 64, 3e-3, seed), folder, defense):
        found = list(train(training, test, stage.recipe, stage.folder, on_batch=on_batch, defense=stage.defense))
    return found


def trained(kind: str = "grey") -> tuple[nn.Module, Tensor, Tensor]:
    """A model with random weights in training mode, images and labels."""
    model, shape, classes = random_model(kind, 1)
    images = torch.tensor(random_images(shape, 32, 2)).float().div(255)
    return model.train(), images, torch.arange(32) % classes


def stream(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    loss = kind(warmup=2.0).objective(None, load_data("digits", "train"))(model, images, labels, stream(), 0.0)
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
    TRADES(steps=5, warmup=0).objective(None, load_data("digits", "train"))(model, images, labels, stream(), 0.0)
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


def test_the_student_learns_the_teacher_s_soft_labels_at_the_temperature() -> None:
    """The loss is Σ −s·log p, s and p both at T, and least where the student answers as the teacher does."""
    student, images, labels = trained()
    teacher = random_model("grey", 9)[0].requires_grad_(False)
    objective = Distillation(temperature=20.0).objective(teacher, load_data("digits", "train"))
    loss = objective(student, images, labels, stream(), 0.0)
    soft = torch.exp(teacher(images) / 20) / torch.exp(teacher(images) / 20).sum(dim=1, keepdim=True)
    expected = -(soft * (student(images) / 20).log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective(teacher, images, labels, stream(), 0.0) < loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    taught = Teacher(temperature=20.0).objective(None, load_data("digits", "train"))
    hard = taught(student, images, labels, stream(), 0.0)
    assert hard.item() == pytest.approx(cross_entropy(student(images) / 20, labels).item(), rel=1e-6)


def test_a_distilled_model_hides_its_gradient_behind_its_softmax_alone(tmp_path: Path) -> None:
    """Cross-entropy in float32 has no gradient at most images; the logit margin has one at all of them."""
    run(tmp_path, Distillation(temperature=100.0, teacher_epochs=12), 12)
    model, test = read_model(str(tmp_path)).build(), load_data("digits", "test")
    labels = torch.tensor(test.labels)
    right = (model(torch.tensor(test.images).float().div(255)).argmax(dim=1) == labels).nonzero()[:, 0]
    assert len(right) > 0.85 * len(labels)
    shares = {}
    for name in ("cross-entropy", "margin"):
        images = torch.tensor(test.images[right.numpy()]).float().div(255).requires_grad_(True)
        logits, truth = model(images), labels[right]
        loss = cross_entropy(logits, truth, reduction="sum")
        if name == "margin":
            loss = (logits.scatter(1, truth[:, None], -torch.inf).amax(dim=1) - logits[range(len(truth)), truth]).sum()
        (gradient,) = torch.autograd.grad(loss, images)
        shares[name] = (gradient.abs().amax(dim=(1, 2, 3)) > 1e-30).float().mean().item()
    assert shares["margin"] == 1
    assert shares["cross-entropy"] < 0.5, shares


def test_the_student_waits_for_its_teacher(tmp_path: Path) -> None:
    """Trained by itself it is refused; prolonged, it goes on under the teacher that it had."""
    training, test = load_data("digits", "train"), load_data("digits", "test")
    defense = Distillation(teacher_epochs=2)

    def student(epochs: int) -> list[Epoch]:
        recipe = Recipe(epochs, 64, 3e-3, 1)
        return list(train(training, test, recipe, tmp_path / "b", on_batch=lambda *_: None, defense=defense))

    with pytest.raises(WrongInput, match="its teacher has 0 of 2 epochs"):
        student(1)
    assert not (tmp_path / "b").exists()
    run(tmp_path / "b", defense, 1)
    assert sorted(path.name for path in (tmp_path / "b" / "teacher").iterdir())[-1] == "model.json"
    assert read_model(str(tmp_path / "b" / "teacher")).build()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert student(3) == run(tmp_path / "a", defense, 3)
    with pytest.raises(WrongInput, match="teacher_epochs 2, not 3"):
        run(tmp_path / "b", Distillation(teacher_epochs=3), 3)


def test_another_training_s_folder_is_refused_before_its_teacher_is_trained(tmp_path: Path) -> None:
    run(tmp_path, quick("none"), 1)
    with pytest.raises(WrongInput, match="trained with defense none, not distillation"):
        run(tmp_path, quick("distillation"), 1)
    assert not (tmp_path / "teacher").exists()


def test_null_takes_what_the_size_of_the_perturbation_says() -> None:
    defense = NullClass(certainty=0.9)
    soft = defense.soft_labels(torch.tensor([2, 0]), torch.tensor([0.0, 0.4]), 5)
    expected = [[0.1 / 3, 0.1 / 3, 0.9, 0.1 / 3, 0], [0.54, 0.02, 0.02, 0.02, 0.4]]
    assert torch.allclose(soft, torch.tensor(expected))
    assert torch.allclose(soft.sum(dim=1), torch.ones(2))


def test_null_s_probability_is_the_share_that_the_first_classifier_gets_wrong(tmp_path: Path) -> None:
    run(tmp_path, quick("none"), 6)
    model, training = read_model(str(tmp_path)).build(), load_data("digits", "train")
    rates = NullClass(epsilon=0.4).null_rates(model, training)
    assert rates[0] == 0
    assert bool((rates.diff() >= 0).all())
    assert rates[-1] > 0.5
    images, labels = torch.tensor(training.images).float().div(255), torch.tensor(training.labels)
    right = model(images).argmax(dim=1) == labels
    moved = images[right].clone().requires_grad_(True)
    cross_entropy(model(moved), labels[right], reduction="sum").backward()
    moved = (images[right] + 0.2 * moved.grad.sign()).clamp(0, 1)
    wrong = (model(moved).argmax(dim=1) != labels[right]).float().mean()
    assert rates[5].item() == pytest.approx(wrong.item(), abs=0.01)


def test_the_null_class_begins_with_the_first_classifier() -> None:
    first = random_model("grey", 1)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = NullCNN(1, 9, 12, 4)
    null = model.linear.weight[4].clone()
    NullClass().start(model, first)
    images = torch.tensor(random_images((1, 9, 12), 8, 2)).float().div(255)
    assert torch.equal(model(images)[:, :4], first(images))
    assert torch.equal(model.linear.weight[4], null)


def test_an_image_that_is_predicted_as_null_is_rejected() -> None:
    """It does not fool, whatever the classes' logits say; every search is told by how much it is rejected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = NullCNN(1, 9, 12, 4).eval()
    images = torch.tensor(random_images((1, 9, 12), 64, 2))
    with torch.no_grad():
        logits = network(images.float().div(255))
        network.linear.bias[4] -= (logits[:, 4] - logits[:, :4].amax(dim=1)).median()  # half are NULL
        logits = network(images.float().div(255))
    model = rejecting(network)
    assert torch.equal(model(images.float().div(255)), logits[:, :4])
    is_null = logits.argmax(dim=1) == 4
    assert 0 < is_null.sum() < 64
    assert torch.equal(model.excess(images.float().div(255)) > 0, is_null)
    labels = logits[:, :4].argmax(dim=1)
    result = PGD(epsilon=0.2)(model, images, labels)
    assert result.success.any()
    found = Judged(model)(torch.tensor(result.adversarial).float().div(255))
    fools = (found[:, :4].argmax(dim=1) != labels) & (found[:, 4] <= 0)
    assert torch.equal(torch.tensor(result.success), fools)


def test_a_model_with_a_null_class_rejects_from_its_folder(tmp_path: Path) -> None:
    """Perturbed digits are mostly rejected, clean ones mostly not; its logits are those of the classes."""
    epochs = run(tmp_path, NullClass(initial_epochs=6), 6)
    assert epochs[-1].accuracy > 0.85
    assert len(epochs[-1].confusion) == 11
    model, test = read_model(str(tmp_path)).build(), load_data("digits", "test")
    assert isinstance(model, Guarded)
    images, labels = torch.tensor(test.images).float().div(255), torch.tensor(test.labels)
    assert (model.excess(images) > 0).float().mean() < 0.1
    moved = ascend(cross_entropy_sum(model, labels), images, images, epsilon=0.3, steps=1, step_size=0.3)
    assert (model.excess(moved) > 0).float().mean() > 0.5
    confusion = torch.tensor(epochs[-1].confusion)
    assert int(confusion[:, 10].sum()) == int((model.excess(images) > 0).sum())
    statuses = {str(status) for status in PGD(steps=5)(model, test.images[:20], test.labels[:20]).status}
    assert statuses <= {str(status) for status in Status}
    with pytest.raises(WrongInput, match="--mean and --std"):
        read_model(str(tmp_path), mean=(0.5,), std=(0.5,))


def test_the_units_are_gaussians_of_the_distance_to_their_centres() -> None:
    torch.manual_seed(4)
    model = RBFNetwork(1, 9, 12, 4, units=5, beta=3.0).requires_grad_(False)
    images = torch.tensor(random_images((1, 9, 12), 6, 2)).float().div(255)
    answers = torch.empty(6, 5)
    for row, p in enumerate(model.base(images).softmax(dim=1)):
        for unit, centre in enumerate(model.centres):
            answers[row, unit] = torch.exp(-3.0 * torch.dist(p, centre) ** 2)
    assert torch.allclose(model.units(images), answers, atol=1e-6)
    assert torch.allclose(model(images), answers @ model.linear.weight.T, atol=1e-5)


def test_the_rbf_network_begins_with_the_trained_cnn(tmp_path: Path) -> None:
    first = random_model("grey", 1)[0]
    torch.manual_seed(4)
    model = RBFNetwork(1, 9, 12, 4, units=5)
    RBF().start(model, first)
    images = torch.tensor(random_images((1, 9, 12), 6, 2)).float().div(255)
    assert torch.equal(model.base(images), first(images))
    assert run(tmp_path, RBF(units=50, base_epochs=5), 10)[-1].accuracy > 0.9
    state = read_model(str(tmp_path)).build().state_dict()
    assert state["centres"].shape == (50, 10)
    assert state["betas"].std() > 0  # they are learned


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
