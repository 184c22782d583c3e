"""What searches say of one another."""

import pyarrow as pa
import pytest

from analysis.robustness import Verdict, judge
from analysis.statistics import Rate
from analysis.validity import LEFT, beaten, deeper, monotone, standing, unbounded
from jobs.evaluation import Evaluation
from jobs.threat import stages_within
from workers.remedies.checks import Check, State
from workers.threat import Ball


@pytest.mark.parametrize(
    ("broken", "right", "fails"),
    [
        (0, 100, False),
        (5, 100, False),
        (9, 100, False),
        (11, 100, True),
        (3, 10, True),
        (60, 1000, False),
        (80, 1000, True),
    ],
)
def test_a_weaker_search_may_break_a_few_by_chance(broken: int, right: int, fails: bool) -> None:
    """The interval's lower end is above one in twenty, or it is not."""
    check = beaten("noise beats gradients", Rate(broken, right), right, 1.5)
    assert check.state == (State.FAILED if fails else State.PASSED)
    assert check.seconds == 1.5
    assert f"{broken} of {right}" in check.reason
    assert beaten("noise beats gradients", Rate(0, 0), 0, 0.0).state == State.NOT_RUN


def test_more_steps_are_given_to_all_where_they_broke_some() -> None:
    assert deeper(Rate(2, 64), None, 1.0).state == State.PASSED
    assert deeper(Rate(20, 64), None, 1.0).state == State.FAILED
    given = deeper(Rate(20, 64), 31, 1.0)
    assert given.state == State.REMEDIED
    assert "31 more" in given.remedy


def test_a_larger_budget_breaks_the_more() -> None:
    assert monotone(Rate(0, 50), "L∞ ε = 0.6", 1.0).state == State.PASSED
    assert monotone(Rate(10, 50), "L∞ ε = 0.6", 1.0).state == State.FAILED
    assert monotone(Rate(0, 0), "L∞ ε = 0.6", 1.0).state == State.NOT_RUN
    assert [unbounded(Rate(reached, 50), 1.0).state for reached in (50, 48, 47, 0)] == [
        State.PASSED,
        State.PASSED,
        State.FAILED,
        State.FAILED,
    ]


def test_searches_that_failed_neither_pass_nor_fail_a_check() -> None:
    """Passed, failed or not run, as it would be however the failed searches had ended."""
    for hits in range(0, 51, 5):
        for unknown in range(0, 51 - hits, 5):
            found = Rate(hits, 50, unknown=unknown)
            for check in (
                lambda rate: unbounded(rate, 1.0),
                lambda rate: monotone(rate, "L∞ ε = 0.6", 1.0),
                lambda rate: deeper(rate, None, 1.0),
                lambda rate: beaten("noise", rate, 60, 1.0),
            ):
                ends = {check(Rate(hits + more, 50)).state for more in (0, unknown)}
                assert check(found).state == (ends.pop() if len(ends) == 1 else State.NOT_RUN)
                assert (f"({unknown} searches failed)" in check(found).reason) == (unknown > 0)


@pytest.mark.parametrize(
    ("role", "statuses", "state"),
    [
        ("unbounded", {"success": 1, "failed": 49}, State.NOT_RUN),
        ("unbounded", {"failed": 50}, State.NOT_RUN),
        ("unbounded", {"success": 48, "failed": 2}, State.PASSED),
        ("unbounded", {"success": 1, "exhausted": 40, "failed": 9}, State.FAILED),
        ("unbounded", {"success": 10, "already_wrong": 40}, State.PASSED),
    ],
)
def test_rows_that_failed_stay_in_the_denominator_of_a_check(role: str, statuses: dict[str, int], state: State) -> None:
    stage = next(stage for stage in stages_within(Ball("linf", 0.1)) if stage.role == role)
    ended = [status for status, count in statuses.items() for _ in range(count)]
    evaluation = object.__new__(Evaluation)
    evaluation.beyond = {
        stage.name: pa.table({"image_id": range(len(ended)), "status": ended, "seconds": [0.0] * len(ended)})
    }
    found = evaluation._check_beyond(stage)
    assert found.state == state
    assert f"of {len(ended) - statuses.get('already_wrong', 0)}" in found.reason


def test_a_number_stands_where_next_to_nothing_is_left() -> None:
    checks = [Check("one", State.FAILED, "so"), Check("other", State.PASSED, "so"), Check("third", State.NOT_RUN, "so")]
    assert standing(checks, Rate(6, 100)) == checks
    found = standing(checks, Rate(int(100 * LEFT), 100))
    assert [check.state for check in found] == [State.REMEDIED, State.PASSED, State.NOT_RUN]
    assert "95 of 100" in found[0].remedy
    doubtful = [Check("other images of a call", State.FAILED, "so")]
    assert standing(doubtful, Rate(0, 100)) == doubtful


def test_a_failed_check_voids_what_is_left_but_no_counterexample() -> None:
    said = ["check failed: one: so"]
    none = judge(Rate(50, 100), Rate(0, 100), None)
    assert none.unless([]) is none
    assert none.unless(said).verdict == Verdict.INVALID
    assert none.unless(said).reasons[0] == said[0]
    assert judge(Rate(50, 100), Rate(0, 100), 0.4).unless(said).verdict == Verdict.INVALID
    assert judge(Rate(50, 100), Rate(0, 100), 0.9).unless(said).verdict == Verdict.BROKEN
    assert judge(Rate(100, 100), Rate(99, 100), 0.9).unless(said).verdict == Verdict.HOLDS
