"""What is known of each image after several attacks, and the verdict."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from analysis.robustness import Robustness, StageRows, Standing, Verdict, judge
from analysis.statistics import Rate
from workers.results import Status


def stage(name: str, found: dict[int, Status], *, certifies: bool = False, label: int = 3) -> StageRows:
    """A stage's rows: 10 queries, 4 gradients and half a second an image that was searched."""
    searched = [status in (Status.SUCCESS, Status.EXHAUSTED, Status.CERTIFIED) for status in found.values()]
    clean = {Status.ALREADY_WRONG: label + 1, Status.FAILED: None}
    columns = {
        "image_id": pa.array(list(found), pa.int64()),
        "status": pa.array([str(status) for status in found.values()]).dictionary_encode(),
        "success": pa.array([status == Status.SUCCESS for status in found.values()]),
        "l0": pa.array(
            [
                int(was) if status != Status.FAILED else None
                for status, was in zip(found.values(), searched, strict=True)
            ],
            pa.int32(),
        ),
        "clean_prediction": pa.array([clean.get(status, label) for status in found.values()], pa.int32()),
        "queries": pa.array([10 * was for was in searched], pa.int64()),
        "gradients": pa.array([4 * was for was in searched], pa.int64()),
        "seconds": pa.array([0.5 * was for was in searched]),
        "error": pa.array(["it broke" if status == Status.FAILED else None for status in found.values()], pa.string()),
    }
    return StageRows(name, certifies, pa.table(columns))


IDS = np.array([7, 2, 9, 4, 1, 8])
FIRST = stage(
    "first",
    {
        7: Status.SUCCESS,
        2: Status.EXHAUSTED,
        9: Status.ALREADY_WRONG,
        4: Status.FAILED,
        1: Status.CERTIFIED,
        8: Status.EXHAUSTED,
    },
)


def known(*stages: StageRows) -> Robustness:
    return Robustness(IDS, np.full(len(IDS), 3), stages)


def test_without_rows_everything_is_possible() -> None:
    nothing = known()
    assert nothing.at_most == nothing.at_least == nothing.clean == Rate(0, 0)  # no share of what was not asked about
    for require, verdict in ((None, Verdict.NONE_ASKED), (0.5, Verdict.UNDECIDED), (0.0, Verdict.UNDECIDED)):
        judgement = judge(nothing.at_most, nothing.at_least, require)
        assert judgement.verdict == verdict
        assert judgement.reasons == ("nothing was searched: nothing is known of the robust accuracy",)
    assert nothing.left().tolist() == IDS.tolist()
    assert nothing.to_table()["clean_prediction"].null_count == 6


def test_a_clean_image_that_is_rejected_is_neither_robust_nor_certified() -> None:
    rejected = np.isin(IDS, (7, 1, 8))  # broken, certified and exhausted else
    found = Robustness(IDS, np.full(len(IDS), 3), [replace(FIRST, certifies=True)], rejected)
    plain = known(replace(FIRST, certifies=True))
    assert (plain.at_most, plain.at_least, plain.clean) == (Rate(4, 6), Rate(1, 6), Rate(4, 6, unknown=1))
    assert (found.at_most, found.at_least, found.clean) == (Rate(2, 6), Rate(0, 6), Rate(1, 6, unknown=1))
    assert found.left().tolist() == [2, 4]
    assert found.left(broken_too=True).tolist() == [2, 4]


def test_an_image_is_broken_by_the_first_that_breaks_it() -> None:
    both = known(FIRST, stage("second", {7: Status.SUCCESS, 8: Status.SUCCESS, 2: Status.EXHAUSTED}))
    assert both.broken_by.tolist() == ["first", None, None, None, None, "second"]
    assert both.at_most == Rate(3, 6)
    assert both.left().tolist() == [2, 4, 1]
    assert both.left(broken_too=True).tolist() == [7, 2, 4, 1, 8]
    assert both.queries.tolist() == [20, 20, 0, 0, 10, 20]
    assert both.gradients.tolist() == [8, 8, 0, 0, 4, 8]
    assert both.seconds.tolist() == [1, 1, 0, 0, 0.5, 1]
    second = both.tallies["second"]
    assert (second.searched, second.successes, second.broken, second.queries, second.seconds) == (3, 2, 1, 30, 1.5)
    assert [both.tallies[name].remaining for name in ("first", "second")] == [4, 3]


def test_a_failed_row_breaks_nothing_and_is_told() -> None:
    one = known(FIRST)
    assert one.failed == 1
    assert one.error.tolist() == [None, None, None, "first: it broke", None, None]
    assert one.standing[3] == Standing.ROBUST
    assert one.clean == Rate(4, 6, unknown=1)
    assert one.tallies["first"].success == Rate(1, 5, unknown=1)
    assert one.to_table()["error"].to_pylist()[3] == "first: it broke"
    later = known(FIRST, stage("second", {4: Status.SUCCESS}))
    assert later.standing[3] == Standing.BROKEN
    assert later.clean == Rate(5, 6)


def test_robust_accuracy_is_never_above_clean_accuracy() -> None:
    """Before all images were asked about both are of all, so that neither speaks of other images than the other."""
    assert not known(FIRST).tallies["first"].unchanged
    rng = np.random.default_rng(5)
    for count in range(1, 7):
        some = rng.permutation(IDS)[:count]
        kinds = rng.choice(np.array([Status.SUCCESS, Status.EXHAUSTED, Status.ALREADY_WRONG, Status.FAILED]), count)
        cut = known(stage("first", {int(image): Status(kind) for image, kind in zip(some, kinds, strict=True)}))
        assert cut.asked.sum() == count
        assert cut.at_most.total == cut.clean.total == 6
        assert cut.at_most.high is not None
        assert cut.clean.high is not None
        assert cut.at_most.high <= cut.clean.high


def test_images_that_come_back_unchanged_are_counted() -> None:
    rows = stage("first", {1: Status.EXHAUSTED, 2: Status.EXHAUSTED, 4: Status.SUCCESS, 7: Status.CERTIFIED}).rows
    place = rows.column_names.index("l0")
    still = StageRows("first", False, rows.set_column(place, "l0", pa.array([0, 3, 0, 0], pa.int32())))
    assert known(still).tallies["first"].unchanged == 1


def test_only_a_certificate_of_the_whole_threat_counts() -> None:
    assert known(FIRST).at_least == Rate(0, 6)
    whole = known(stage("exact", {1: Status.CERTIFIED, 7: Status.SUCCESS}, certifies=True))
    assert whole.at_least == Rate(1, 6)
    assert whole.at_most == Rate(5, 6)
    assert 1 not in whole.left()
    assert whole.to_table()["status"].to_pylist() == ["broken", "robust", "robust", "robust", "certified", "robust"]


@pytest.mark.parametrize("certificate_first", [True, False])
def test_a_counterexample_outweighs_a_certificate(certificate_first: bool) -> None:
    attack = stage("attack", {7: Status.SUCCESS, 8: Status.SUCCESS, 2: Status.EXHAUSTED, 1: Status.EXHAUSTED})
    exact = stage(
        "exact",
        {7: Status.CERTIFIED, 8: Status.SUCCESS, 2: Status.CERTIFIED, 1: Status.EXHAUSTED},
        certifies=True,
    )
    both = known(*((exact, attack) if certificate_first else (attack, exact)))
    assert both.standing.tolist() == ["broken", "certified", "robust", "robust", "robust", "broken"]
    assert (both.at_least, both.at_most) == (Rate(1, 6), Rate(4, 6))
    assert both.contradicted.tolist() == [7]
    assert both.broken_by[0] == "attack"
    assert not len(known(attack).contradicted)


def test_rows_of_strangers_are_refused() -> None:
    with pytest.raises(ValueError, match="first: has rows of images that are not evaluated"):
        known(stage("first", {3: Status.SUCCESS}))


@pytest.mark.parametrize(
    ("left", "certified", "require", "verdict"),
    [
        (100, 0, None, Verdict.NONE_ASKED),
        (100, 0, 0.9, Verdict.UNDECIDED),
        (100, 0, 0.0, Verdict.HOLDS),  # nothing is asked of it
        (85, 0, 0.9, Verdict.UNDECIDED),  # 0.767 to 0.907
        (80, 0, 0.9, Verdict.BROKEN),  # 0.711 to 0.867
        (0, 0, 0.01, Verdict.UNDECIDED),  # 0 to 0.037
        (0, 0, 0.05, Verdict.BROKEN),
        (97, 97, 0.9, Verdict.HOLDS),  # 0.915 to 0.990
        (97, 95, 0.9, Verdict.UNDECIDED),  # 0.888 to 0.978
    ],
)
def test_verdicts(left: int, certified: int, require: float | None, verdict: Verdict) -> None:
    judgement = judge(Rate(left, 100), Rate(certified, 100), require)
    assert judgement.verdict == verdict
    assert judgement.reasons
    assert judgement.because("more").reasons[-1] == "more"
