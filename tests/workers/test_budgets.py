"""Several budgets in one search: rows for each, what a smaller one broke is carried on."""

import numpy as np
import pytest

from tests.conftest import random_images, random_model
from tests.workers.test_attacks import columns
from tests.workers.test_fgsm import predictions
from workers.attacks import FGSM, Attack, DifferentialEvolution
from workers.errors import WrongInput
from workers.results import Status
from workers.search import search_budgets


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
    for given in ({"pixels": [1, 5]}, {"pixels": 3}):
        attacks = DifferentialEvolution.at_each_budget(given)
        parameters = Attack.parameters_of(attacks)
        assert parameters["pixels"] == given["pixels"]
        assert DifferentialEvolution.at_each_budget(parameters) == attacks


@pytest.mark.parametrize("values", [[], [1, 1], [0, 1]])
def test_wrong_values_are_refused(values: list[int]) -> None:
    with pytest.raises(WrongInput, match="--pixels"):
        DifferentialEvolution.at_each_budget({"pixels": values})
