"""What is said of each run: verdicts that turn around with the numbers, and no pooling of runs."""

import numpy as np
import pytest

from analysis.activations import INPUT, Changes, Layer
from analysis.figures.activations import Changed, change_exhibit
from analysis.figures.embeddings import Shares, neighbour_exhibit
from analysis.pairs import Pairs
from analysis.statistics import Estimate

COUNT = 60
LAYERS = (Layer(INPUT, "input"), Layer("first", "convolution"), Layer("last", "linear"))


def pairs(run: str, success: np.ndarray) -> Pairs:
    images, zeros = np.zeros((COUNT, 1, 1, 1), dtype=np.uint8), np.zeros(COUNT, dtype=np.int64)
    keys = tuple(f"{run}/{number}" for number in range(COUNT))
    return Pairs(run, run, keys, np.arange(COUNT), images, images, zeros, zeros - 1, zeros, success, 0)


def changed(run: str, success: np.ndarray, *, failures: float, successes: float, noise: float) -> Changed:
    """Relative changes that become so many times larger from the first layer to the last, up to a tenth."""
    spread = np.random.default_rng(0).uniform(0.9, 1.1, COUNT)
    adversarial, random = np.ones((COUNT, 3)), np.ones((COUNT, 3, 2))
    adversarial[:, 2] = spread * np.where(success, successes, failures)
    random[:, 2] = (spread[::-1] * noise)[:, None]
    draws = np.ones((COUNT, 2))
    return Changed(run, pairs(run, success), Changes(LAYERS, adversarial, random, draws[:, 0], draws, draws < 0))


MIXED = np.arange(COUNT) < COUNT // 2


@pytest.mark.parametrize(
    ("failures", "noise", "tapers", "beside"),
    [
        (0.8, 0.5, "it tapers off", "it grows more than noise"),
        (0.8, 2.0, "it tapers off", "it grows less than noise"),
        (3.0, 0.5, "it does not taper off", "it grows more than noise"),
        (3.0, 9.0, "it does not taper off", "it grows less than noise"),
        (1.0, 1.0, "whether it tapers off is not decided", "whether it grows more or less than noise"),
    ],
)
def test_the_verdict_on_failures_is_of_the_factor_and_beside_noise(
    failures: float, noise: float, tapers: str, beside: str
) -> None:
    one = changed("one", MIXED, failures=failures, successes=5, noise=noise)
    said = change_exhibit([one]).finding
    assert f": in failures {tapers} (" in said
    assert f"; {beside}" in said
    factor = float(said.rsplit("×", 1)[1].split(" ")[0])
    assert factor == pytest.approx(failures / noise, rel=0.1)
    swapped = changed("one", ~MIXED, failures=5, successes=failures, noise=noise)  # successes say nothing of failures
    assert ": in failures it does not taper off" in change_exhibit([swapped]).finding


def test_runs_are_not_pooled() -> None:
    rarely, mostly = np.arange(COUNT) < 4, np.arange(COUNT) >= 4
    runs = [
        changed("down", rarely, failures=0.5, successes=0.5, noise=0.2),
        changed("up", mostly, failures=4, successes=4, noise=9),
    ]
    exhibit = change_exhibit(runs)
    first, second = exhibit.finding.split(" up: ")
    assert first.startswith("down: ")
    assert "it tapers off" in first
    assert "it grows more than" in first
    assert "it does not taper off" in second
    assert "it grows less than" in second
    assert exhibit.by_run == {"down": first.removeprefix("down: "), "up": second}
    third = changed("none", np.ones(COUNT, dtype=bool), failures=1, successes=1, noise=1)
    said = change_exhibit([*runs, third]).finding
    assert "it tapers off in 1 of 2 runs (down); it does not taper off in 1 of 2 runs (up)" in said
    assert "it grows less than noise of the same size in 1 of 2 runs (up); it grows more" in said
    assert said.endswith("1 have no failures.")
    assert "it tapers off in all 3 runs" in change_exhibit([runs[0]] + [
        Changed(name, pairs(name, rarely), runs[0].changes) for name in ("b", "c")
    ]).finding  # fmt: skip


def test_neighbours_are_told_run_by_run() -> None:
    def shares(clean: float, label: float) -> dict[str, Shares]:
        whole = np.ones(COUNT)
        return {"full": Shares(whole * clean, whole * 0.1, whole * label, whole * np.nan)}

    kept = {"tsne": Estimate(0.5, (0.4, 0.6))}
    runs = [(pairs("a", MIXED), shares(0.9, 0.7)), (pairs("b", MIXED), shares(0.8, 0.2))]
    exhibit = neighbour_exhibit(runs, 10, kept)
    first, second = exhibit.finding.split(" b: ")
    assert "90.0% (" in first
    assert "70.0% (" in first
    assert "80.0% (" in second
    assert "20.0% (" in second
    assert len(exhibit.drawings) == 2
    said = neighbour_exhibit([*runs, (pairs("c", MIXED), shares(0.5, 0.5))], 10, kept).finding
    low, high = (neighbour_exhibit([one], 10, kept).finding for one in ((pairs("c", MIXED), shares(0.5, 0.5)), runs[0]))
    ends = low.split("50.0% (")[1].split(" to ")[0], high.split("90.0% (")[1].split(" to ")[1].split(")")[0]
    assert f"{ends[0]} to {ends[1]} carry its label when it is clean (3 runs)" in said
