"""Two searches compared: against loops over rows, and the exact test by hand."""

from math import comb

import numpy as np
import pyarrow as pa
import pytest

from analysis.comparison import compare, to_json, to_table
from analysis.statistics import Rate


def searched(seed: int, ids: list[int], targets: list[int | None], chance: float) -> pa.Table:
    rng, count = np.random.default_rng(seed), len(ids)
    success = rng.random(count) < chance
    status = np.where(success, "success", "exhausted").astype(object)
    status[:2] = "already_wrong", "failed"
    success[:2] = False
    return pa.table(
        {
            "image_id": pa.array(ids, pa.int64()), "target": pa.array(targets, pa.int32()),
            "status": pa.array(status.tolist()).dictionary_encode(), "success": success,
            "l0": pa.array(rng.integers(1, 50, count), pa.int32()), "l2": rng.random(count).astype(np.float32),
            "linf": rng.random(count).astype(np.float32), "queries": rng.integers(1, 1000, count),
        }
    )  # fmt: skip


@pytest.mark.parametrize("targeted", [False, True])
def test_against_a_loop(targeted: bool) -> None:
    ids = np.random.default_rng(1).permutation(60).tolist()
    first = searched(2, ids, [None] * 60, 0.8)
    second = searched(3, ids[::-1][:50], [None] * 50, 0.5)
    if targeted:
        first = searched(2, ids * 3, [0] * 60 + [1] * 60 + [2] * 60, 0.8)
        second = searched(3, ids * 2, [1] * 60 + [2] * 60, 0.5)
    found = compare(first, second, name="here")
    sides = []
    for table in (first, second):
        rows = table.to_pylist()
        sides.append({(r["image_id"], r["target"]): r for r in rows if r["status"] != "already_wrong"})
    keys = sorted(sides[0].keys() & sides[1].keys(), key=str)
    beside = [(sides[0][key], sides[1][key]) for key in keys]
    pairs = [pair for pair in beside if "failed" not in (pair[0]["status"], pair[1]["status"])]
    unknown = len(beside) - len(pairs)
    assert found.unknown == unknown
    assert found.unpaired == (len(sides[0]) - len(keys), len(sides[1]) - len(keys))
    counts = [sum((a["success"], b["success"]) == outcome for a, b in pairs) for outcome in
              ((True, True), (True, False), (False, True), (False, False))]  # fmt: skip
    assert [found.both, found.only_first, found.only_second, found.neither] == counts
    count = len({key[0] for key in keys}) if targeted else None
    hits = [sum(pair[side]["success"] for pair in beside) for side in (0, 1)]
    failed = [sum(pair[side]["status"] == "failed" for pair in beside) for side in (0, 1)]
    assert found.first == Rate(hits[0], len(keys), count, failed[0])
    assert found.second == Rate(hits[1], len(keys), count, failed[1])
    assert found.apart == Rate(counts[1] + counts[2], len(keys), count, unknown)
    assert found.difference.low == pytest.approx((hits[1] - hits[0] - failed[0]) / len(keys))
    assert found.difference.high == pytest.approx((hits[1] + failed[1] - hits[0]) / len(keys))
    assert (found.difference.value is None) == (unknown > 0)
    assert found.difference.interval[0] <= found.difference.low <= found.difference.high
    assert found.difference.high <= found.difference.interval[1]
    assert found.difference.images == len({key[0] for key in keys})
    images = {a["image_id"] for a, _ in pairs}
    gains = {image: sum(b["success"] - a["success"] for a, b in pairs if a["image_id"] == image) for image in images}
    better = [sum(gain < 0 for gain in gains.values()), sum(gain > 0 for gain in gains.values())]
    assert targeted or better == counts[1:3]
    assert found.p == pytest.approx(
        min(1.0, 2 * sum(comb(sum(better), k) for k in range(min(better) + 1)) / 2 ** sum(better))
    )
    for name in ("l0", "l2", "linf", "queries"):
        chosen = [(a, b) for a, b in pairs if name == "queries" or (a["success"] and b["success"])]
        by_image: dict[int, list[float]] = {}
        for a, b in chosen:
            by_image.setdefault(a["image_id"], []).append(b[name] - a[name])
        one = found.paired[name]
        assert one.images == len(by_image)
        assert one.difference.value == pytest.approx(
            np.median([np.median(each) for each in by_image.values()]), abs=1e-6
        )
        assert one.first == pytest.approx(np.median([a[name] for a, _ in chosen]))
        assert one.second == pytest.approx(np.median([b[name] for _, b in chosen]))
        assert one.difference.interval[0] <= one.difference.value <= one.difference.interval[1]
    described, (record,) = to_json(found), to_table([found]).to_pylist()
    assert described["first"]["images"] == found.first.hits
    assert described["apart"]["images"] == found.only_first + found.only_second
    assert record["difference"] == described["difference"]["value"]
    assert record["l2_difference_low"] == described["paired"]["l2"]["interval"][0]
    assert record["at"] == "here"


def test_swapped_it_turns_around() -> None:
    first, second = (searched(seed, list(range(40)), [None] * 40, 0.6) for seed in (4, 5))
    one, other = compare(first, second), compare(second, first)
    assert one.p == other.p
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)
    assert (one.difference.low, one.difference.high) == (-other.difference.high, -other.difference.low)
    assert one.paired["l2"].difference.value == pytest.approx(-other.paired["l2"].difference.value)


def test_without_a_success_there_are_no_distances() -> None:
    none = searched(6, list(range(20)), [None] * 20, 0)
    found = compare(none, none)
    assert set(found.paired) == {"queries"}
    assert (found.p, found.neither, found.unknown) == (1.0, 18, 1)
    assert to_table([found]).to_pylist()[0]["l2_difference"] is None


def test_refuses_what_cannot_be_paired() -> None:
    one, other = searched(7, [1, 2, 3, 4], [None] * 4, 1), searched(7, [5, 6, 7, 8], [None] * 4, 1)
    with pytest.raises(ValueError, match="at least 2 images"):
        compare(one, other)
    with pytest.raises(ValueError, match="more than once"):
        compare(pa.concat_tables([one, one]), one)
