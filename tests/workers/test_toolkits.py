"""Attacks of torchattacks and foolbox: what the toolkit does to each image alone, under brittle's rules."""

import importlib.util
import inspect
import pickle
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import random_images, random_model
from tests.workers.test_fgsm import predictions
from workers.attacks import attack_named
from workers.attacks.toolkits import TOOLKITS, _counted, toolkit_attack
from workers.errors import WrongInput
from workers.results import SearchResult

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(toolkit) is None for toolkit in TOOLKITS), reason="needs requirements-toolkits.txt"
)

CASES: dict[str, dict[str, Any]] = {
    "torchattacks:PGD": {"eps": 0.1, "steps": 4},
    "torchattacks:PGDL2": {"eps": 0.7, "steps": 4},
    "torchattacks:APGD": {"eps": 0.7, "norm": "L2", "steps": 4},
    "torchattacks:FAB": {"eps": 0.1, "steps": 3},
    "torchattacks:AutoAttack": {"eps": 0.1, "version": "rand"},
    "torchattacks:Jitter": {"eps": 0.1, "steps": 4},
    "torchattacks:OnePixel": {"steps": 3},
    "torchattacks:Square": {"eps": 0.1, "n_queries": 12},
    "torchattacks:PIFGSM": {"max_epsilon": 0.1, "num_iter_set": 3},
    "torchattacks:DeepFool": {"steps": 4},
    "torchattacks:CW": {"steps": 4, "lr": 0.1},
    "torchattacks:GN": {"std": 0.2},
    "torchattacks:Pixle": {"restarts": 2, "x_dimensions": (1, 3), "y_dimensions": (1, 3)},
    "foolbox:LinfPGD": {"epsilon": 0.1, "steps": 4},
    "foolbox:L2AdamPGD": {"epsilon": 0.7, "steps": 4},
    "foolbox:L1BasicIterativeAttack": {"epsilon": 6.0, "steps": 4},
    "foolbox:L2AdditiveGaussianNoiseAttack": {"epsilon": 1.5},
    "foolbox:L2FMNAttack": {"steps": 6},
    "foolbox:L2CarliniWagnerAttack": {"steps": 4, "binary_search_steps": 2},
    "foolbox:SaltAndPepperNoiseAttack": {"steps": 5},
    "foolbox:BoundaryAttack": {"steps": 4},
    "foolbox:SpatialAttack": {"max_rotation": 20.0},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As in an actor: more only get into each other's way on one small image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def rows(result: SearchResult) -> list[dict[str, Any]]:
    return result.to_table().drop_columns(["seconds"]).to_pylist()


@pytest.mark.parametrize("name", CASES)
def test_an_images_row_is_its_own(name: str) -> None:
    model, shape, classes = random_model("colour", 30)
    images = random_images(shape, 6, 31)
    labels = predictions(model, images)
    labels[2] = (labels[2] + 1) % classes
    attack = pickle.loads(pickle.dumps(attack_named(name)(**CASES[name])))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    torch.manual_seed(1)
    drawn = torch.rand(1), np.random.get_state()[1].tolist(), random.getstate()
    torch.manual_seed(1)

    result = attack(model, images, labels, seed=5)
    assert (torch.rand(1), np.random.get_state()[1].tolist(), random.getstate()) == drawn
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert attack.within(result.distances, images[0].size).all()
    assert (attack.ball is None) == (attack.BUDGET is None)
    reached = predictions(model, result.adversarial) != labels
    assert np.array_equal(result.success, reached & (np.arange(6) != 2))
    order = np.array([4, 0, 5, 2, 1, 3])
    again = attack(model, images[order], labels[order], ids=order, seed=5)
    assert rows(again) == [rows(result)[row] for row in order]
    alone = attack(model, images[3:4], labels[3:4], ids=[3], seed=5)
    assert rows(alone) == rows(result)[3:4]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("torchattacks:BIM", {"eps": 0.2, "steps": 5}), ("torchattacks:CW", {"steps": 5, "lr": 0.1}),
     ("foolbox:LinfBasicIterativeAttack", {"epsilon": 0.2, "steps": 5}), ("foolbox:LInfFMNAttack", {"steps": 5})],
)  # fmt: skip
@pytest.mark.parametrize("target", [None, 2])
def test_it_is_what_the_toolkit_does(name: str, parameters: dict[str, Any], target: int | None) -> None:
    model, shape, _ = random_model("colour", 32)
    model.requires_grad_(False)
    images = random_images(shape, 4, 33)
    labels = predictions(model, images)
    labels[labels == 2] = 3  # then already wrong
    result = attack_named(name)(**parameters)(model, images, labels, targets=target)
    kind = toolkit_attack(name).METHOD
    for row in np.flatnonzero(result.queries):
        image, label = torch.tensor(images[row : row + 1]) / 255, torch.tensor(labels[row : row + 1])
        aim = None if target is None else torch.tensor([target])
        if name.startswith("torchattacks"):
            direct = kind(model, **parameters)
            if aim is not None:
                direct.set_mode_targeted_by_label(quiet=True)
            made = direct(image, label if aim is None else aim)
        else:
            foolbox = sys.modules["foolbox"]
            criterion = foolbox.criteria.Misclassification(label)
            if aim is not None:
                criterion = foolbox.criteria.TargetedMisclassification(aim)
            epsilon = parameters.pop("epsilon", None)
            wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
            _, made, _ = kind(**parameters)(wrapped, image, criterion, epsilons=epsilon)
            parameters |= {} if epsilon is None else {"epsilon": epsilon}
        assert np.array_equal((made * 255).round().to(torch.uint8).numpy()[0], result.adversarial[row])


def test_queries_and_gradients_are_counted() -> None:
    model, shape, classes = random_model("colour", 34)
    images = random_images(shape, 3, 35)
    labels = predictions(model, images)
    counts = {
        "torchattacks:FGSM": (1, 1),
        "torchattacks:EOTPGD": (20, 20),  # ten steps, the gradient taken twice
        "torchattacks:GN": (0, 0),
        "foolbox:FGSM": (2, 1),  # foolbox asks the model about what it made
    }
    for name, (queries, gradients) in counts.items():
        result = attack_named(name)(**({"epsilon": 0.1} if name == "foolbox:FGSM" else {}))(model, images, labels)
        assert set(result.queries) == {queries}, name
        assert set(result.gradients) == {gradients}, name
    deep = attack_named("torchattacks:DeepFool")(steps=1)(model, images, labels)
    assert set(deep.gradients) == {classes}  # a Jacobian's rows


def test_the_seed_reaches_attacks_that_set_their_own() -> None:
    model, shape, _ = random_model("colour", 36)
    images = random_images(shape, 3, 37)
    labels = predictions(model, images)
    for name in ("torchattacks:APGD", "torchattacks:PGD", "torchattacks:OnePixel", "foolbox:LinfPGD"):
        attack = attack_named(name)(**({"epsilon": 0.02} if name.startswith("foolbox") else {}))
        first, second, third = (attack(model, images, labels, seed=seed).adversarial for seed in (1, 1, 2))
        assert np.array_equal(first, second)
        assert not np.array_equal(first, third), name


@pytest.mark.parametrize("toolkit", TOOLKITS)
def test_every_attack_of_the_toolkit_has_its_flags_or_a_reason(toolkit: str) -> None:
    attack_named(f"{toolkit}:FGSM")  # imports it, its warnings kept back
    module = sys.modules["torchattacks" if toolkit == "torchattacks" else "foolbox.attacks"]
    base = module.attack.Attack if toolkit == "torchattacks" else module.Attack
    names = [n for n in dir(module) if inspect.isclass(kind := getattr(module, n)) and issubclass(kind, base)]
    assert len(names) > 35
    refused = {}
    for name in names:
        try:
            kind = attack_named(f"{toolkit}:{name}")
        except WrongInput as error:
            refused[name] = str(error)
            continue
        needed = {"VirtualAdversarialAttack": {"steps": 2}}.get(name, {})
        attack = kind(**needed, **({"epsilon": 0.5} if toolkit == "foolbox" and kind.BUDGET else {}))
        assert attack.params_hash
        assert (attack.ball is None) == (kind.BUDGET is None)
    assert set(refused) == ({"LGV", "MultiAttack"} if toolkit == "torchattacks" else {"Attack"})


def test_defaults_are_hashed_as_what_a_flag_would_give() -> None:
    kind = attack_named("foolbox:L2CarliniWagnerAttack")
    assert kind().params_hash == kind(confidence=0.0).params_hash
    assert attack_named("foolbox:DDNAttack")().params_hash != attack_named("torchattacks:CW")().params_hash


@pytest.mark.parametrize(
    ("name", "parameters", "targeted", "says"),
    [
        ("torchattacks:PGD", {"epsilon": 0.1}, False, "unknown parameter --epsilon"),
        ("torchattacks:PGD", {"steps": 1.5}, False, "--steps"),
        ("torchattacks:APGD", {"norm": "L7"}, False, "--norm: expected one of Linf, L2, L1, got L7"),
        ("torchattacks:APGD", {}, True, "--target: torchattacks:APGD cannot be targeted"),
        ("torchattacks:Nope", {}, False, "has no attack 'Nope'"),
        ("torchattacks:__doc__", {}, False, "has no attack"),
        ("torchattacks:LGV", {}, False, "needs trainloader"),
        ("foolbox:PGD", {}, False, "--epsilon is required"),
        ("foolbox:PGD", {"epsilon": 0.001}, False, "--epsilon"),
        ("foolbox:FGSM", {"epsilon": 0.1}, True, "--target: foolbox:FGSM cannot be targeted"),
        ("foolbox:GenAttack", {"epsilon": 0.1}, False, "only targeted"),
        ("foolbox:DatasetAttack", {}, False, "cannot be started: DatasetAttack"),
        ("foolbox:L2DeepFoolAttack", {"loss": "hinge"}, False, "'logits' or 'crossentropy'"),
        ("nobody:PGD", {}, False, "expected one of .*torchattacks:NAME, foolbox:NAME"),
    ],
)
def test_what_cannot_be_is_refused(name: str, parameters: dict[str, Any], targeted: bool, says: str) -> None:
    with pytest.raises(WrongInput, match=says):
        attack_named(name)(**parameters).check((3, 8, 8), 10).check_goal(targeted)


def test_a_toolkit_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(WrongInput, match="pip install --no-deps -r requirements-toolkits"):
        attack_named("torchattacks:NotAskedBefore")


class Partly(torch.nn.Module):
    """Logits √x + c of images of white pixels, black ones among them; an answer of NaN where a pixel is grey."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = images.flatten(1)
        grey = ((values > 0.4) & (values < 0.6)).any(dim=1, keepdim=True)
        return torch.stack([values.sqrt().sum(dim=1), values.sum(dim=1)], dim=1) * torch.where(grey, torch.nan, 1.0)


def test_derivatives_count_of_images_that_have_an_answer() -> None:
    images = torch.ones(4, 1, 2, 2)
    images[1:3, 0, 0, 0] = 0.0
    images[2:, 0, 1, 1] = 0.5
    for rows, expected in [([0], 0), ([1], 1), ([2], 0), ([3], 0), ([0, 1, 2, 3], 1), ([2, 3], 0)]:
        model, asked = _counted(Partly()), images[rows].requires_grad_(True)
        (found,) = torch.autograd.grad(model(asked).sum(), asked)
        assert bool(found.isfinite().all())
        assert model.not_finite == expected
        assert model.unanswered == sum(row > 1 for row in rows)
