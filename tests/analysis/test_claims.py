"""The seed's claims against tables of rows made by hand."""

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from analysis.claims import Claim, claims, claims_exhibit
from analysis.statistics import Rate
from tests.analysis.test_detection_page import a_report

GOOD = {
    "ten-ifgsm": (10, 9), "ten-jsma": (10, 9), "mixed-ifgsm": (100, 70), "mixed-jsma": (100, 80),
    "ten-one-pixel-de": (10, 0), "ten-one-pixel-exact": (10, 0), "ten-five-pixel-de": (10, 1),
}  # fmt: skip


def rows(count: int, successes: int, *, l0: int, queries: int) -> pa.Table:
    success = [row < successes for row in range(count)]
    return pa.table(
        {
            "image_id": list(range(count)),
            "status": pa.array(["success" if won else "exhausted" for won in success]).dictionary_encode(),
            "success": success, "l0": [l0] * count, "l2": [1.0] * count, "linf": [1.0] * count,
            "queries": [queries] * count, "seconds": [0.1] * count, "error": pa.nulls(count, pa.string()),
        }
    )  # fmt: skip


def held(accuracy: Rate | None = None, **changed: tuple[int, int]) -> dict[str, Claim]:
    runs = {}
    for name, (count, successes) in (GOOD | {name.replace("_", "-"): made for name, made in changed.items()}).items():
        cost = {"l0": 30, "queries": 40} if "jsma" in name else {"l0": 500, "queries": 200}
        runs[name] = rows(count, successes, **cost)
    return {claim.says: claim for claim in claims(accuracy or Rate(9870, 10_000), runs, {})}


def test_what_bears_the_claims_out() -> None:
    found = held()
    assert [claim.holds for claim in found.values()] == [True, True, True, True, False, True, True]
    fewer, more = found["JSMA changes fewer pixels than FGSM"], found["JSMA computes more than FGSM"]
    assert "70 of 70" in fewer.measured  # those that both turn
    assert fewer.measured.endswith("medians 30 and 500")
    assert "0 of 70" in more.measured
    assert more.measured.endswith("medians 40 and 200")
    assert "9 of 10" in found["JSMA turns images into the target at a high rate, more than half"].measured
    assert "80 of 100" in found["JSMA turns images into the target at a high rate, more than half"].measured


@pytest.mark.parametrize(
    ("says", "changed"),
    [
        ("The network reaches 98.7% on test images", {"accuracy": Rate(9800, 10_000)}),
        ("Iterative FGSM turns images into the target at a high rate, more than half", {"mixed_ifgsm": (100, 58)}),
        ("JSMA turns images into the target at a high rate, more than half", {"mixed_jsma": (100, 20)}),
        ("One pixel is not enough on any of the ten", {"ten_one_pixel_exact": (10, 1)}),
    ],
)  # fmt: skip
def test_what_does_not(says: str, changed: dict[str, Any]) -> None:
    before, after = held(), held(**changed)
    assert before[says].holds is True
    assert after[says].holds is False
    assert {name for name in before if before[name].holds != after[name].holds} == {says}


def test_of_what_was_not_measured_nothing_is_said() -> None:
    assert [claim.says for claim in claims(Rate(99, 100), {}, {})] == ["The network reaches 98.7% on test images"]
    inside = {"neighbours": {"mixed-ifgsm": "They move.", "mixed-pgd": "Not asked."}, "activation-change": {}}
    told = claims(Rate(99, 100), {}, inside)[1:]
    assert [(claim.measured, claim.holds) for claim in told] == [("mixed-ifgsm: They move.", None)]


def test_what_no_search_found_may_still_be_possible() -> None:
    assert held(ten_five_pixel_de=(10, 0))["Five pixels can be enough"].holds is None


def test_without_the_exact_search_one_pixel_is_not_decided() -> None:
    says = "One pixel is not enough on any of the ten"
    for successes, expected in ((0, None), (1, False)):
        runs = {"ten-one-pixel-de": rows(10, successes, l0=1, queries=30_000)}
        (claim,) = claims(Rate(99, 100), runs, {})[1:]
        assert (claim.says, claim.holds) == (says, expected)


def test_the_detector() -> None:
    report = a_report()
    assert report.seed is not None
    changed = [
        replace(report, seed=replace(report.seed, flagged=Rate(flagged, 200), clean_flagged=Rate(alarms, 1000)))
        for flagged, alarms in ((199, 5), (199, 50), (180, 5))
    ]
    for judged, expected in zip(changed, (True, False, False), strict=True):
        _, reconstructed, threshold, verdict = claims(Rate(99, 100), {}, {}, judged)
        assert reconstructed.holds is None
        assert threshold.holds is expected
        assert str(judged.judgement.verdict) in verdict.measured
    assert len(claims(Rate(99, 100), {}, {}, replace(report, seed=None))) == 2


def test_the_table() -> None:
    found = [*held().values(), Claim("So it is said", "something", None)]
    exhibit = claims_exhibit(found, "brittle run --out E")
    assert exhibit.finding == "6 of the 7 claims that a number can decide hold."
    assert exhibit.table is not None
    assert exhibit.table["holds"].to_pylist() == ["yes", "yes", "yes", "yes", "no", "yes", "yes", "–"]
    assert exhibit.table["measured"].to_pylist() == [claim.measured for claim in found]
