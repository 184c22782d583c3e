"""What searches say of one another."""

import pytest

from analysis.robustness import Verdict, judge
from analysis.statistics import Rate
from analysis.validity import LEFT, beaten, deeper, monotone, standing, unbounded
from workers.remedies.checks import Check, State


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
    check = beaten("noise beats gradients", broken, right, right, 1.5)
    assert check.state == (State.FAILED if fails else State.PASSED)
    assert check.seconds == 1.5
    assert f"{broken} of {right}" in check.reason
    assert beaten("noise beats gradients", 0, 0, 0, 0.0).state == State.NOT_RUN


def test_more_steps_are_given_to_all_where_they_broke_some() -> None:
    assert deeper(2, 64, None, 1.0).state == State.PASSED
    assert deeper(20, 64, None, 1.0).state == State.FAILED
    given = deeper(20, 64, 31, 1.0)
    assert given.state == State.REMEDIED
    assert "31 more" in given.remedy


def test_a_larger_budget_breaks_the_more() -> None:
    assert monotone(0, 50, "L∞ ε = 0.6", 1.0).state == State.PASSED
    assert monotone(10, 50, "L∞ ε = 0.6", 1.0).state == State.FAILED
    assert monotone(0, 0, "L∞ ε = 0.6", 1.0).state == State.NOT_RUN
    assert [unbounded(reached, 50, 1.0).state for reached in (50, 48, 47, 0)] == [
        State.PASSED,
        State.PASSED,
        State.FAILED,
        State.FAILED,
    ]


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
