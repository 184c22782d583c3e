"""What is read off logits, compiled and in torch operations, against float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from workers import compiled
from workers.evaluation.scores import UNANSWERED, answered, lead, log_odds, predicted, slack
from workers.losses import LOSSES
from workers.search import Goal


def random_logits(seed: int, classes: int, scale: float) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (200, classes)).astype(np.float32)
    return torch.tensor(logits), torch.tensor(rng.integers(0, classes, 200))


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize(("classes", "scale"), [(2, 1), (10, 5), (7, 60)])
def test_lead_and_log_odds(monkeypatch: pytest.MonkeyPatch, on_host: bool, classes: int, scale: float) -> None:
    monkeypatch.setattr(compiled, "on_host", lambda tensor: on_host)
    logits, chosen = random_logits(classes, classes, scale)
    exact, rows = logits.double().numpy(), np.arange(200)
    others = exact.copy()
    others[rows, chosen] = -np.inf
    own = exact[rows, chosen]
    np.testing.assert_allclose(lead(logits, chosen), own - others.max(axis=1), rtol=1e-6, atol=1e-5)
    expected = own - np.logaddexp.reduce(others, axis=1)
    np.testing.assert_allclose(log_odds(logits, chosen), expected, rtol=1e-5, atol=1e-5)
    goal = Goal(chosen, None)
    assert torch.equal(goal.log_odds(logits, torch.arange(200)), log_odds(logits, chosen))
    assert torch.equal(Goal(chosen, chosen).log_odds(logits, torch.arange(200)), -log_odds(logits, chosen))


def test_log_odds_tell_apart_what_probabilities_round_to_one() -> None:
    logits = torch.tensor([[30.0, 0, 1], [31, 0, 1], [32, 0, 1]])
    chosen = torch.zeros(3, dtype=torch.int64)
    assert (logits.softmax(dim=1)[:, 0] == 1).all()
    assert (log_odds(logits, chosen).diff() > 0.9).all()


@pytest.mark.parametrize("on_host", [True, False])
def test_what_is_no_answer_is_never_the_best(monkeypatch: pytest.MonkeyPatch, on_host: bool) -> None:
    monkeypatch.setattr(compiled, "on_host", lambda tensor: on_host)
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor(
        [
            [nan, nan, nan],
            [1, nan, 0],
            [0, 1, inf],
            [-inf, 1, 0],
            [2, 2, 1],
            [0, 3, 3],
            [3e38, -3e38, 0],
            [-3e38, 3e38, 0],
        ]
    )
    rows, labels = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    known = [False] * 4 + [True] * 4
    assert answered(logits).tolist() == known
    assert predicted(logits).tolist() == [UNANSWERED] * 4 + [0, 1, 0, 1]  # of a tie the lowest class
    for targets in (None, torch.ones(8, dtype=torch.int64)):
        goal = Goal(labels, targets)
        assert goal.reached(logits, rows).tolist() == [False] * 5 + [True, False, True]
        for worst in (goal.margin(logits, rows), goal.log_odds(logits, rows)):
            assert (worst[:4] == inf).all()
            assert not worst.isnan().any()
        for loss in LOSSES:
            raised = goal.loss(loss, logits, rows)
            assert (raised[:4] == -inf).all()
            assert not raised.isnan().any()
    behind = torch.cat([logits, torch.tensor([[-1.0]] * 4 + [[nan], [nan], [inf], [-1.0]])], dim=1)
    guarded = Goal(labels, None, guarded=True)
    assert guarded.reached(behind, rows).tolist() == [False] * 7 + [True]
    assert (guarded.margin(behind, rows)[:7] == inf).all()


def test_slack_is_each_rows_own() -> None:
    logits, _ = random_logits(1, 5, 20)
    np.testing.assert_allclose(slack(logits), 1e-4 * logits.abs().amax(dim=1).clamp(min=1), rtol=1e-6)
    assert torch.equal(slack(logits[3:4]), slack(logits)[3:4])
