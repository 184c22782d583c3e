"""What a budget means, and several in one search: rows for each, what a smaller one broke is carried on."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from jobs import attack as attack_command
from jobs.threat import BallFlags, DetectorThreatFlags, ThreatFlags
from tests.conftest import random_images, random_model
from tests.workers.test_attacks import columns
from tests.workers.test_fgsm import predictions
from workers.attacks import ATTACKS, FGSM, PGD, Attack, DifferentialEvolution, RayS
from workers.attacks.norm_ball import BallAttack
from workers.attacks.toolkits import toolkit_attack
from workers.budgets import in_levels, number, spelled
from workers.detectors import DETECTORS
from workers.errors import WrongInput
from workers.results import Status
from workers.search import search_budgets
from workers.threat import Ball
from workers.training.defenses import DEFENSES


def test_a_single_step_is_searched_anew_at_each_budget() -> None:
    model, shape, _ = random_model("colour", 60)
    images = random_images(shape, 30, 61)
    labels = predictions(model, images)
    attacks = FGSM.at_each_budget({"epsilon": (0.3, 0.02, 0.1)})
    assert [attack.epsilon for attack in attacks] == [0.02, 0.1, 0.3]
    together = search_budgets(attacks, model, images, labels)
    for attack, result in zip(attacks, together, strict=True):
        assert columns(result) == columns(attack(model, images, labels))


def test_what_a_smaller_budget_broke_is_carried_on() -> None:
    model, shape, _ = random_model("grey", 62)
    images = random_images(shape, 30, 63)
    labels = predictions(model, images)
    attacks = DifferentialEvolution.at_each_budget({"pixels": [4, 12, 40], "population": 10, "generations": 2})
    results = search_budgets(attacks, model, images, labels, seed=3)
    counts = [int(result.success.sum()) for result in results]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[2], "the test needs images that only the larger budget breaks"
    assert columns(results[0]) == columns(attacks[0](model, images, labels, seed=3))
    for attack, smaller, result in zip(attacks[1:], results, results[1:], strict=False):
        alone = attack(model, images, labels, seed=3)
        for row in range(30):
            came_from = smaller if smaller.success[row] else alone
            assert result.status[row] == came_from.status[row]
            before = 0 if smaller.success[row] else smaller.queries[row]  # what the smaller budgets have cost
            assert result.queries[row] == before + came_from.queries[row]
            assert np.array_equal(result.adversarial[row], came_from.adversarial[row])
        assert result.params_hash == attack.params_hash
        assert attack.within(result.distances, images[0].size).all()
    assert set(results[0].status) <= {Status.SUCCESS, Status.EXHAUSTED}


def test_parameters_go_there_and_back() -> None:
    for budgets in ({"pixels": [1, 5]}, {"pixels": 3}):
        attacks = DifferentialEvolution.at_each_budget(budgets)
        parameters = Attack.parameters_of(attacks)
        assert parameters["pixels"] == budgets["pixels"]
        assert DifferentialEvolution.at_each_budget(parameters) == attacks


@pytest.mark.parametrize("values", [[], [1, 1], [0, 1]])
def test_wrong_values_are_refused(values: list[int]) -> None:
    with pytest.raises(WrongInput, match="--pixels"):
        DifferentialEvolution.at_each_budget({"pixels": values})


# what a typed budget means


def meant(text: str) -> int | None:
    """The whole levels of a typed ε by exact arithmetic; None at the very edge, where no float can tell."""
    over, *under = (Fraction(part) for part in text.replace(" ", "").split("/"))
    asked = 255 * (over / under[0] if under else over)
    nearest = round(asked)
    if abs(abs(asked - nearest) - Fraction(1, 1000)) < Fraction(1, 10**8):
        return None
    return nearest if nearest and abs(asked - nearest) < Fraction(1, 1000) else int(asked)


def spellings(levels: Fraction) -> list[str]:
    """The ways in which people type so many levels."""
    exact = f"{levels.numerator}/{levels.denominator * 255}"
    value = float(levels / 255)
    return [exact, exact.replace("/", " / "), repr(value), f"{value:.12f}", f"{value:.17e}", f"{float(levels)!r}/255"]


def by_flags(text: str) -> Attack:
    """The attack that the command line makes of a typed ε."""
    where = ["--model", "m", "--data", "d", "--out", "o"]
    _, bound, _ = attack_command.app.parse_args(["fgsm", f"--epsilon={text}", *where], exit_on_error=False)
    (attack,) = attack_command._attacks(FGSM, bound.arguments["attack"])
    return attack


def by_yaml(text: str, folder: Path) -> Attack:
    """The attack that a YAML file makes of an ε written into it."""
    (folder / "spec.yaml").write_text(f"attack: fgsm\nepsilon: {text}\nmodel: m\ndata: d\nout: o\n")
    tokens = attack_command._tokens(folder / "spec.yaml", [])
    _, bound, _ = attack_command.app.parse_args(tokens, exit_on_error=False)
    (attack,) = attack_command._attacks(FGSM, bound.arguments["attack"])
    return attack


def levels_moved(attack: Attack) -> int:
    """How many levels a search moves a black image that grows brighter along its loss, a feature."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 4))
    found = attack(model, np.zeros((1, 1, 2, 2), dtype=np.uint8), [0])
    assert attack.within(found.distances, 4).all()
    return round(255 * float(found.distances.linf[0]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    levels=st.one_of(
        st.integers(1, 255).map(Fraction),
        st.tuples(st.integers(1, 254), st.integers(-3000, 3000)).map(lambda at: at[0] + Fraction(at[1], 10**6)),
        st.fractions(1, 255, max_denominator=10**6),
    ),
    data=st.data(),
)
def test_what_is_typed_is_what_is_searched(levels: Fraction, data: st.DataObject, tmp_path: Path) -> None:
    text = data.draw(st.sampled_from(spellings(levels)))
    assume((expected := meant(text)) is not None)
    if not expected:
        with pytest.raises(WrongInput, match="--epsilon"):
            FGSM(epsilon=text)
        return
    made = FGSM(epsilon=text), by_flags(text), by_yaml(text, tmp_path), FGSM(epsilon=number(text))
    assert len(set(made)) == 1
    assert len({attack.params_hash for attack in made}) == 1
    assert made[0].ball.limit == expected
    assert levels_moved(made[0]) == expected
    assert bool(made[0].ball.note) == (abs(255 * number(text) - expected) > 1e-3)
    assert number(spelled(made[0].epsilon)) == made[0].epsilon
    assert FGSM(epsilon=spelled(made[0].epsilon)) == made[0]


@pytest.mark.parametrize(
    ("text", "levels", "shown"),
    [
        ("8/255", 8, "8/255"),
        ("0.031372549", 8, "8/255"),
        ("0.00784313725", 2, "2/255"),
        ("0.0039215", 1, "1/255"),
        ("0.0078", 1, "0.0078 (1/255)"),
        ("0.031", 7, "0.031 (7/255)"),
        ("0.0314", 8, "0.0314 (8/255)"),
        ("0.2", 51, "0.2"),
        ("1e-1/1", 25, "0.1 (25/255)"),
        ("1", 255, "1"),
    ],
)
def test_budgets_as_they_are_published(text: str, levels: int, shown: str) -> None:
    for attack in (FGSM(epsilon=text), PGD(epsilon=text)):
        assert attack.ball.limit == levels
        assert attack.title == f"{attack.NAME} --epsilon {shown}"
        assert attack.ball.describe() == {"norm": "linf", "epsilon": attack.epsilon, "levels": levels}


@pytest.mark.parametrize(
    "text",
    ["", " ", "8/0", "1/", "/255", "8/255/2", "nan", "nan/1", "inf", "1/inf", "１/255", "8\\255", "8//255", "1_0",
     "0x1", "1e999", "1e99999999", "-1/255", "0", "0/255", "0.5/255", "0.0039", "2", "510/255", "much", "2/255,4/255",
     "9" * 5000],
)  # fmt: skip
def test_what_is_no_budget_is_refused_by_name(text: str) -> None:
    for refused in (FGSM, RayS):
        with pytest.raises(WrongInput, match=r"^--epsilon: [^\n]*$"):
            refused(epsilon=text)


@pytest.mark.parametrize("given", [np.float32(8 / 255), np.float64(8 / 255), Fraction(8, 255), 8 / 255 + 1e-9])
def test_numbers_of_other_kinds_are_the_same_budget(given: Any) -> None:
    assert PGD(epsilon=given) == PGD(epsilon="8/255")
    assert PGD(epsilon=given).params_hash == PGD(epsilon=0.03137254901960784).params_hash


def test_a_level_that_is_given_twice() -> None:
    for twice in (["0.00784313725", "2/255"], [0.031, "7/255"], ["0.0079", "0.0080"]):
        with pytest.raises(WrongInput, match=r"--epsilon.* the same in whole levels"):
            PGD.at_each_budget({"epsilon": twice})
    found = PGD.at_each_budget({"epsilon": ["8/255", "0.0078", "2/255"]})
    assert [attack.ball.limit for attack in found] == [1, 2, 8]
    assert PGD.at_each_budget(Attack.parameters_of(found)) == found


def numeric(kind: type[BaseModel]) -> list[str]:
    """The fields that take a fractional number."""
    return [name for name, field in kind.model_fields.items() if "float" in str(field.annotation)]


CLASSES = [
    *ATTACKS.values(),
    *DEFENSES.values(),
    *DETECTORS.values(),
    ThreatFlags,
    DetectorThreatFlags,
    BallFlags,
    toolkit_attack("torchattacks:PGD"),
    toolkit_attack("torchattacks:CW"),
    toolkit_attack("foolbox:L2PGD"),
]


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if numeric(kind)], ids=lambda kind: kind.__name__)
def test_every_number_is_taken_as_a_quotient(kind: type[BaseModel]) -> None:
    for name in numeric(kind):
        given: Any = "102/51" if name in ("temperature", "warmup", "beta", "penalty", "c", "kappa") else "102/255"
        given, wanted = ([given], (0.4,)) if name == "temperatures" else (given, number(given))
        needed = {other: 1 for other, field in kind.model_fields.items() if field.is_required() and other != name}
        assert getattr(kind(**needed, **{name: given}), name) == wanted, name


@pytest.mark.parametrize(
    ("shape", "linf", "l2"),
    [
        ((1, 28, 28), 0.3, 1.5),
        ((1, 8, 8), 0.3, 1.5),
        ((3, 32, 32), 8 / 255, 0.5),
        ((3, 64, 64), 8 / 255, 0.5),
        ((1, 64, 64), 8 / 255, 0.5),
        ((3, 224, 224), 4 / 255, 3.0),
        ((1, 512, 300), 4 / 255, 3.0),
    ],
)
def test_one_default_for_each_norm_and_image_size(shape: tuple[int, int, int], linf: float, l2: float) -> None:
    for kind in ATTACKS.values():
        if issubclass(kind, BallAttack):
            for norm, epsilon in (("linf", linf), ("l2", l2)):
                if norm == "linf" or "norm" in kind.model_fields:
                    open_yet = kind(**({"norm": norm} if "norm" in kind.model_fields else {}))
                    assert open_yet.for_images(shape).ball == Ball(norm, epsilon)
    for flags in (ThreatFlags, BallFlags):
        assert flags().ball(shape) == Ball("linf", linf)
        assert flags(norm="l2").ball(shape) == Ball("l2", l2)
    assert DetectorThreatFlags(norm="linf").known(shape) == Ball("linf", linf)
    assert DetectorThreatFlags().known(shape) is None
    for defense in DEFENSES.values():
        if "epsilon" in defense.model_fields:
            assert defense().for_images(shape).model_dump()["epsilon"] == linf


def test_a_default_is_hashed_as_what_was_searched() -> None:
    model, shape, _ = random_model("colour", 60)
    images = random_images(shape, 4, 61)
    labels = predictions(model, images)
    for kind in (FGSM, PGD):
        open_yet, given = kind(), kind(epsilon="8/255")
        found = open_yet(model, images, labels)
        assert found.params_hash == given.params_hash
        assert columns(found) == columns(given(model, images, labels))
        with pytest.raises(ValueError, match="open until the images are known"):
            _ = open_yet.ball


@pytest.mark.parametrize(
    ("norm", "epsilon", "limit", "shown"),
    [
        ("l2", 0.5, 16256, "L2 ε = 0.5"),  # 127.5²
        ("l2", 0.2, 2601, "L2 ε = 0.2"),
        ("l2", 0.0039215, 1, "L2 ε = 1/255"),
        ("l2", 2**0.5 / 255, 2, "L2 ε = 0.00554593553871802"),
        ("l2", 0.005, 1, "L2 ε = 0.005 (0.00392)"),
        ("l1", 10.0, 2550, "L1 ε = 10"),
        ("l1", 0.1, 25, "L1 ε = 0.1 (0.098)"),
        ("linf", 0.3, 76, "L∞ ε = 0.3 (76/255)"),
        ("linf", 0.99999, 254, "L∞ ε = 0.99999 (254/255)"),
    ],
)
def test_limits_and_words_of_every_norm(norm: Any, epsilon: float, limit: int, shown: str) -> None:
    ball = Ball(norm, epsilon)
    assert (ball.limit, str(ball)) == (limit, shown)
    assert bool(ball.note) == ("(" in shown)
    at, beyond = np.sqrt([limit, limit + 1]) if norm == "l2" else np.array([limit, limit + 1])
    for kind in (np.float32, np.float64):
        moved = SimpleNamespace(**{norm: np.array([at, beyond], dtype=kind) / 255})
        assert ball.within(moved).tolist() == [True, False]


@pytest.mark.parametrize(
    ("distance", "words"), [(0, "0"), (1 / 255, "0.0039 (1/255)"), (1.5 / 255, "0.0059 (1.5/255)"), (1, "1 (255/255)")]
)
def test_a_distance_is_never_shown_as_none(distance: float, words: str) -> None:
    assert in_levels(distance) == words
