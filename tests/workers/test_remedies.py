"""Models that hide what a search goes by: what a probe says of them, and that they can be searched all the same."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from analysis.replay import first_difference
from tests.conftest import random_images, random_model
from workers.attacks import APGD, FGSM, PGD
from workers.evaluation.dense import DenseEvaluator
from workers.images import Dataset
from workers.models.cnn import CNN
from workers.models.loading import read_model
from workers.remedies.checks import Check, Probe, State
from workers.remedies.common_draws import common_draws
from workers.remedies.inside import Inside
from workers.remedies.probe import probe
from workers.remedies.remedied import JUDGED_DRAWS, Remedied, Searched
from workers.remedies.remedies import NONE, Remedies
from workers.remedies.straight_through import StraightThrough

Answer = Callable[[nn.Module, Tensor], Tensor]


class Defended(nn.Module):
    """A base model behind some step."""

    def __init__(self, base: nn.Module, answer: Answer) -> None:
        super().__init__()
        self.base, self.answer = base, answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(self.base, images)


class NoGradient(torch.autograd.Function):
    """The identity, whose gradient is zero."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


class WrongGradient(NoGradient):
    """The identity, whose gradient is noise."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.randn_like(gradient)


def through_numpy(base: nn.Module, images: Tensor) -> Tensor:
    return base(torch.from_numpy(np.clip(images.detach().numpy(), 0.05, 0.95)))


def without_gradient(base: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        images = images * 0.9 + 0.05
    return base(images)


def noise_in_place(base: nn.Module, images: Tensor) -> Tensor:
    images += 0.1 * torch.from_numpy(np.random.standard_normal(images.shape).astype(np.float32))
    return base(images)


DEFENDED: dict[str, tuple[Answer, set[str]]] = {
    "plain": (lambda base, x: base(x), set()),
    "logits of another scale": (lambda base, x: base(x) * 1e-5, {"scale of logits"}),
    "logits that are hardly numbers": (lambda base, x: base(x) * 1e-35, {"scale of logits"}),
    "softmax": (lambda base, x: base(x).softmax(dim=1), {"softmax as logits"}),
    "saturated softmax": (
        lambda base, x: (1000 * base(x)).softmax(dim=1),
        {"softmax as logits", "saturated or quantised outputs", "zero gradients", "scale of logits"},
    ),
    "clamped logits": (lambda base, x: base(x).clamp(-1, 1), {"saturated or quantised outputs", "zero gradients"}),
    "rounded logits": (
        lambda base, x: base(x).round(),
        {"saturated or quantised outputs", "zero gradients"},
    ),
    "one-hot": (
        lambda base, x: functional.one_hot(base(x).argmax(dim=1), 10).float(),
        {"softmax as logits", "saturated or quantised outputs", "non-differentiable step"},
    ),
    "no gradient of the logits": (lambda base, x: NoGradient.apply(base(x)), {"zero gradients"}),
    "rounded pixels": (lambda base, x: base((x * 7).round() / 7), {"zero gradients"}),
    "thresholded pixels": (lambda base, x: base((x > 0.2).float()), {"non-differentiable step"}),
    "integer pixels": (lambda base, x: base((x * 255).to(torch.uint8).float() / 255), {"non-differentiable step"}),
    "detached": (lambda base, x: base(x.detach()), {"non-differentiable step"}),
    "no_grad": (without_gradient, {"non-differentiable step"}),
    "through NumPy": (through_numpy, {"non-differentiable step"}),
    "no gradient of the pixels": (lambda base, x: base(NoGradient.apply(x)), {"zero gradients"}),
    "wrong gradient of the pixels": (lambda base, x: base(WrongGradient.apply(x)), {"masked gradients"}),
    "noise": (lambda base, x: base(x + 0.1 * torch.randn_like(x)), {"randomised model"}),
    "dropout": (lambda base, x: base(functional.dropout(x, 0.2, True)), {"randomised model"}),
    "NumPy's noise, in place": (noise_in_place, {"randomised model", "other images of a call", "writes to its input"}),
    "a transformation an image": (
        lambda base, x: base(x + 0.1 * torch.randint(0, 3, (len(x),)).view(-1, 1, 1, 1)),
        {"randomised model"},
    ),
    "noise and softmax": (
        lambda base, x: base(x + 0.1 * torch.rand(x.shape)).softmax(dim=1),
        {"randomised model", "softmax as logits"},
    ),
}


@pytest.fixture(scope="module")
def base(mnist_folder: object) -> nn.Module:
    return read_model(str(mnist_folder)).build()


def defended(base: nn.Module, name: str) -> nn.Module:
    return Defended(base, DEFENDED[name][0]).eval().requires_grad_(False)


@pytest.mark.parametrize("name", DEFENDED)
def test_a_probe_names_what_is_hidden_and_shows_it(base: nn.Module, mnist: Dataset, name: str) -> None:
    """The checks that fire are those expected, all are remedied, and PGD then turns what it turns of the base."""
    images, labels = mnist.images[:32], mnist.labels[:32]
    model = defended(base, name)
    found = probe(model, images)
    assert {check.name for check in found.checks if check.state != State.PASSED} == DEFENDED[name][1]
    assert all(check.state in (State.PASSED, State.REMEDIED) for check in found.checks)
    assert bool(found.remedies) == bool(DEFENDED[name][1])
    assert Probe.of(found.describe()) == found
    assert found.differentiable == ("non-differentiable step" not in DEFENDED[name][1])
    attack = APGD(epsilon=0.3, steps=20)
    result = attack(Remedied(model, found.remedies), images, labels)
    right = result.clean_prediction == labels
    assert result.success[right].mean() > 0.9
    torch.manual_seed(7)
    answers = model(torch.from_numpy(result.adversarial).float().div(255)).argmax(dim=1).numpy()
    if "randomised model" not in DEFENDED[name][1]:
        assert (answers[result.success] != labels[result.success]).all()
    else:
        assert (answers[result.success] != labels[result.success]).mean() > 0.8


def test_what_no_remedy_lifts_is_said_to_fail(base: nn.Module, mnist: Dataset) -> None:
    images = mnist.images[:32]
    tiny = probe(Defended(base, lambda model, x: model(x) * 1e-43).eval(), images)
    assert {check.name: check.state for check in tiny.checks}["scale of logits"] == State.FAILED
    batch = probe(Defended(base, lambda model, x: model(x) - model(x).mean(dim=0)).eval(), images)
    assert [check.name for check in batch.checks if check.state == State.FAILED] == ["other images of a call"]

    def nearest(model: nn.Module, x: Tensor) -> Tensor:
        """Votes of the nearest of a few random prototypes."""
        prototypes = torch.from_numpy(np.random.default_rng(0).random((30, 784), dtype=np.float32))
        near = torch.cdist(torch.from_numpy(x.detach().numpy().copy()).flatten(1), prototypes).numpy().argmin(axis=1)
        return torch.from_numpy(np.eye(10, dtype=np.float32)[near % 10])

    blind = probe(Defended(base, nearest).eval(), images)
    failed = {check.name for check in blind.checks if check.state == State.FAILED}
    assert failed == {"saturated or quantised outputs", "non-differentiable step"}
    assert not blind.searchable
    nan = probe(Defended(base, lambda model, x: model(x) / (x.amax(dim=(1, 2, 3))[:, None] < 1)).eval(), images)
    assert nan.checks[0].name == "finite answers"
    assert nan.checks[0].state == State.REMEDIED
    assert {check.name for check in nan.checks} > {"zero gradients", "masked gradients"}
    silent = probe(Defended(base, lambda model, x: model(x) * torch.nan).eval(), images)
    assert [(check.name, check.state) for check in silent.checks] == [("finite answers", State.FAILED)]
    root = probe(Defended(base, lambda model, x: model(x.sqrt())).eval(), images)
    named = {check.name: check for check in root.checks}
    assert named["finite gradients"].state == State.REMEDIED
    assert "% of the derivatives are not finite" in named["finite gradients"].reason
    assert named["zero gradients"].state == State.PASSED
    by_logits = probe(Defended(base, nearest).eval(), images, gradients=False)
    assert {check.name for check in by_logits.checks if check.state == State.FAILED} < failed


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_models_that_hide_nothing_are_left_alone(kind: str) -> None:
    for seed in range(3):
        model, shape, _ = random_model(kind, seed)
        found = probe(model.requires_grad_(False), random_images(shape, 20, seed))
        assert not found.remedies.draws
        assert (found.remedies.inside, found.remedies.straight_through) == (0, None)
        assert {check.state for check in found.checks} <= {State.PASSED, State.REMEDIED}


def test_remedies_leave_the_answers_that_count_and_the_shard_does_not_matter(base: nn.Module, mnist: Dataset) -> None:
    """Of a randomised model too: what a batch of other images is searched with changes nothing."""
    images, labels = mnist.images[:24], mnist.labels[:24]
    searched = {
        "noise": Remedies(draws=3),
        "one-hot": Remedies(inside=1),
        "NumPy's noise, in place": Remedies(draws=3, alone=True),
    }
    for name, remedies in searched.items():
        model = Remedied(defended(base, name), remedies)
        whole = PGD(epsilon=0.1, steps=5)(model, images, labels)
        parts = [
            PGD(epsilon=0.1, steps=5)(model, images[part], labels[part], ids=np.arange(24)[part])
            for part in (slice(0, 5), slice(5, 24))
        ]
        assert np.array_equal(whole.adversarial, np.concatenate([part.adversarial for part in parts]))
        assert whole.success.sum() > 0
        data = Dataset(mnist.images[:24], mnist.labels[:24], "all", "mnist")
        table = whole.to_table()
        assert (
            first_difference(table, PGD(epsilon=0.1, steps=5), 0, data, model, block=16, batch=64, on_rows=int) is None
        )


def test_fgsm_takes_the_gradient_of_what_is_searched(base: nn.Module, mnist: Dataset) -> None:
    images, labels = mnist.images[:32], mnist.labels[:32]
    hidden = FGSM(epsilon=0.2)(Remedied(defended(base, "one-hot"), Remedies(inside=1)), images, labels)
    plain = FGSM(epsilon=0.2)(base, images, labels)
    assert np.array_equal(hidden.adversarial, plain.adversarial)
    assert np.array_equal(hidden.success, plain.success)


def test_through_a_surrogate_the_model_s_own_answers_count(base: nn.Module, mnist: Dataset) -> None:
    images, labels = mnist.images[:16], mnist.labels[:16]
    torch.manual_seed(5)
    other = CNN().eval()
    through = APGD(epsilon=0.1, steps=5)(Remedied(base, NONE, other.requires_grad_(False)), images, labels)
    with torch.no_grad():
        logits = DenseEvaluator(base).logits(torch.from_numpy(through.adversarial))
    assert np.array_equal(through.adversarial_prediction, logits.argmax(dim=1).numpy())
    assert np.array_equal(
        through.success, (logits.argmax(dim=1).numpy() != labels) & (through.clean_prediction == labels)
    )
    assert not np.array_equal(through.adversarial, APGD(epsilon=0.1, steps=5)(base, images, labels).adversarial)


def test_a_recipe_under_remedies_is_another_model_with_the_same_answers(mnist_folder: object) -> None:
    recipe = read_model(str(mnist_folder))
    assert recipe.searched_as(NONE) == recipe == recipe.searched_as(Remedies(draws=2)).searched_as(NONE)
    other = recipe.searched_as(Remedies(inside=1))
    assert len({recipe.content_hash, other.content_hash, recipe.searched_as(NONE, recipe).content_hash}) == 3
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(other.build()(images), recipe.build()(images))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rand": lambda x: torch.rand(len(x), 3),
    "rand of a size": lambda x: torch.rand((len(x), 2, 2)),
    "rand by name": lambda x: torch.rand(size=(len(x), 2)),
    "randn": lambda x: torch.randn(x.shape),
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "one for each": lambda x: torch.randint(0, 1000, (len(x),)).float(),
    "randint": lambda x: torch.randint(0, 1000, (len(x), 4)).float(),
    "normal": lambda x: torch.normal(0.0, 1.0, size=(len(x), 3)),
    "normal of tensors": lambda x: torch.normal(torch.zeros_like(x), torch.ones_like(x)),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
    "uniform_": lambda x: torch.empty_like(x).uniform_(-1, 1),
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.5),
    "dropout": lambda x: functional.dropout(torch.ones_like(x), 0.5, True),
    "dropout of channels": lambda x: functional.dropout2d(torch.ones_like(x), 0.5, True),
    "NumPy": lambda x: torch.from_numpy(np.random.rand(1, 3)).expand(len(x), 3),
    "Python": lambda x: torch.full((len(x), 1), random.random()),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_depend_on_the_seed_alone(name: str) -> None:
    def drawn(seed: int, count: int) -> Tensor:
        with common_draws(seed, count, torch.device("cpu")):
            return DRAWS[name](torch.zeros(count, 6, 5, 5))

    found = drawn(1, 16)
    assert all(torch.equal(found[0], row) for row in found)
    assert torch.equal(found, drawn(1, 16))
    assert torch.equal(found[0], drawn(1, 48)[0])
    assert any(not torch.equal(found, drawn(seed, 16)) for seed in range(2, 8))
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    drawn(1, 16)
    assert (torch.rand(1), np.random.rand(), random.random()) == before


STEPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "round": (torch.round, torch.ones_like),
    "floor": (lambda x: x.floor(), torch.ones_like),
    "sign": (torch.sign, lambda x: (x.abs() <= 1).float()),
    "threshold": (lambda x: (x > 0.5).float(), torch.ones_like),
    "threshold below": (lambda x: (x < 0.5).float(), lambda x: -torch.ones_like(x)),
    "where": (lambda x: torch.where(x >= 0.2, 1.0, 0.0), torch.ones_like),
    "integers": (lambda x: (3 * x).to(torch.int32).float(), lambda x: torch.full_like(x, 3)),
    "detach": (lambda x: 2 * x.detach(), lambda x: torch.full_like(x, 2)),
    "data": (lambda x: 2 * x.data, lambda x: torch.full_like(x, 2)),
    "a ReLU is not touched": (torch.relu, lambda x: (x > 0).float()),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_keeps_its_values_and_passes_the_gradient_through(name: str) -> None:
    step, slope = STEPS[name]
    values = torch.linspace(-1.7, 1.9, 24).view(2, 1, 3, 4).requires_grad_(True)
    images = values.clone()
    with StraightThrough(images, "operations"):
        found = step(images)
    assert torch.equal(found.detach(), step(values.detach()).to(found.dtype))
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert torch.equal(gradient, slope(values.detach()))


def test_what_is_inside_is_found_from_the_last() -> None:
    images = torch.rand(3, 8)
    layer, wide = nn.Linear(8, 4), nn.Linear(8, 5)
    with Inside(3) as inside:
        wide(images)
        logits = layer(images)
        doubled = NoGradient.apply(2 * logits)
        answer = doubled.softmax(dim=1)
    before = inside.before(answer)
    assert before[0] is doubled
    assert torch.equal(before[1], 2 * logits)
    assert before[-1] is logits
    assert answer not in [value for value in before if value is answer]


def test_the_answers_of_a_randomised_model_that_count_are_of_fresh_draws(base: nn.Module) -> None:
    asked: list[int] = []

    class Counting(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(torch.initial_seed())
            return base(images)

    model = Remedied(Counting(), Remedies(draws=4))
    model.searched(torch.rand(2, 1, 28, 28))
    searched = set(asked)
    asked.clear()
    model(torch.rand(2, 1, 28, 28))
    assert len(asked) == JUDGED_DRAWS
    assert not searched & set(asked)


def test_a_check_reads_as_a_sentence() -> None:
    assert str(Check("a check", State.FAILED, "it is so")) == "a check: failed: it is so"
    assert str(Check("a check", State.REMEDIED, "it was so", "this")) == "a check: remedied: it was so; remedy: this"
    assert isinstance(Searched(nn.Identity(), NONE)(torch.ones(2, 3)), Tensor)
