"""Figures of runs: from which class to which, success against queries and budgets, distances, vulnerable pixels."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.curves import success_by_queries
from analysis.exhibits import Drawing, Exhibit, row_key
from analysis.figures.heat import heat_map
from analysis.figures.style import BAD, CLASSES, STYLES, WIDTH, new_figure, styled
from analysis.statistics import Rate, median
from analysis.summary import asked_rows, failed_rows, searched_rows, success_rate
from workers.budgets import spelled
from workers.results import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.run_view import RunView
    from workers.images import Dataset

__all__ = ["run_exhibits"]

LINKED = 500
"""Dots of single rows in a figure, at most."""

SINGLES = 6
"""Images whose vulnerable pixels are shown one by one."""

FEW = 50
"""Searches below which a run says little."""

ENOUGH = 10
"""Searches of a pair of classes from which on it is named as the one that succeeds most or least often."""

_GREY = CLASSES[-1]  # rasterised, so of no colour that the page swaps
_NORMS = {"l0": "L0 (pixels changed)", "l2": "L2 (pixels in 0 to 1)", "linf": "L∞ (pixels in 0 to 1)"}
_SHORT = {"l0": "L0", "l2": "L2", "linf": "L∞"}


@dataclass(frozen=True, eq=False)
class _Searches:
    """A run at one budget, its rows that were asked about, and those of them whose search came to an end."""

    view: "RunView"
    label: str
    asked: pa.Table
    rows: pa.Table

    @classmethod
    def of(cls, view: "RunView", label: str) -> "_Searches":
        return cls(view, label, asked_rows(view.table), searched_rows(view.table))

    @cached_property
    def successes(self) -> pa.Table:
        return self.rows.filter(self.rows["success"])

    @property
    def rate(self) -> Rate:
        return success_rate(self.asked)

    @property
    def targeted(self) -> bool:
        return self.view.target is not None

    @property
    def named(self) -> dict[str, Any]:
        """The columns that begin each row of a table."""
        return {"run": self.view.name, "attack": self.view.attack.title, "towards": self.view.target}


def run_exhibits(runs: "Sequence[RunView]", dataset: "Dataset") -> list[Exhibit]:
    """All that these runs can support; none of what they cannot.

    Args:
        runs: of one model, each at one budget; those of one place together, the smallest budget first.
        dataset: their images.
    """
    searches = [each for each in map(_Searches.of, runs, _labels(runs)) if len(each.rows)]
    if not searches:
        return []
    largest = _most_successful(searches)
    classes = int(dataset.labels.max()) + 1
    exhibits = [
        _source_target([each for each in searches if each.targeted], largest, classes),
        _label_prediction([each for each in searches if not each.targeted], largest, classes),
        _by_queries(searches, largest),
        _by_budget(searches),
        _distances(searches, largest),
        *(_vulnerable_pixels(each, dataset) for each in largest),
    ]
    return [exhibit for exhibit in exhibits if exhibit is not None]


def _most_successful(searches: Sequence[_Searches]) -> list[_Searches]:
    """Each run at the budget at which most succeeded, of several such the largest.

    The largest of all where a search keeps what a smaller budget found; where each budget is searched by itself a
    larger one may break less.
    """
    best: dict[Any, _Searches] = {}
    for each in searches:
        before = best.get(each.view.place)
        if before is None or len(each.successes) >= len(before.successes):
            best[each.view.place] = each
    return list(best.values())


def _labels(runs: "Sequence[RunView]") -> list[str]:
    """What each is called in figures; with the run's name where two are called alike."""
    names = [f"{run.attack.title} → {run.target}" if run.target is not None else run.attack.title for run in runs]
    return _told_apart(names, runs)


def _told_apart(names: Sequence[str], runs: "Sequence[RunView]") -> list[str]:
    count = Counter(names)
    return [f"{name} ({run.name})" if count[name] > 1 else name for name, run in zip(names, runs, strict=True)]


# From which class to which


def _source_target(searches: Sequence[_Searches], largest: Sequence[_Searches], classes: int) -> Exhibit | None:
    from analysis.matrix import source_target_matrix

    if not searches:
        return None
    drawings, records, findings = [], [], []
    for each in searches:
        matrix = source_target_matrix(each.asked)
        size = max(classes, len(matrix.totals))
        matrix = source_target_matrix(each.asked, size)
        for source, target in np.argwhere(matrix.totals > 0).tolist():
            rate = matrix.rate(source, target)
            share = float(matrix.features[source, target])
            cell = {"source": source, "target": target, **_rate(rate, "searches")}
            records.append(each.named | cell | {"changed": None if np.isnan(share) else share})
        if each not in largest:
            continue
        names = [str(name) for name in range(size)]
        figure = heat_map(matrix.rates, names, names, row_axis="source: label", column_axis="target")
        caption = f"{each.label}: searches that reached the target, in per cent, by the image's label and the target."
        drawings.append(Drawing(f"source-target-{each.view.key}", caption, figure))
        known = np.where(matrix.failed > 0, 0, matrix.totals)
        findings.append(f"{each.label} reaches {each.rate}{_extremes(matrix.successes, known)}")
    kinds = {"source": pa.int64(), "target": pa.int64(), **_RATE("searches"), "changed": pa.float64()}
    return Exhibit(
        "source-target",
        "From which class to which",
        f"{'; '.join(findings)}.",
        drawings,
        _table(records, kinds),
        [*_cells(records, "searches"), "changed: the mean share of an image's values that a success changed."],
    )


def _label_prediction(searches: Sequence[_Searches], largest: Sequence[_Searches], classes: int) -> Exhibit | None:
    if not any(len(each.successes) for each in searches):
        return None
    drawings, records, findings = [], [], []
    for each in searches:
        label, prediction = each.successes["label"].to_numpy(), each.successes["adversarial_prediction"].to_numpy()
        asked, failed = each.asked["label"].to_numpy(), failed_rows(each.asked)
        size = max(classes, int(max(asked.max(), prediction.max(initial=0))) + 1)
        counts = np.zeros((size, size), np.int64)
        np.add.at(counts, (label, prediction), 1)
        totals = np.repeat(np.bincount(asked, minlength=size)[:, None], size, axis=1)
        unknown = np.bincount(asked[failed], minlength=size)
        for source, target in np.argwhere(counts > 0).tolist():
            rate = Rate(int(counts[source, target]), int(totals[source, target]), unknown=int(unknown[source]))
            records.append(each.named | {"label": source, "prediction": target, **_rate(rate, "searches")})
        if each not in largest or not len(label):
            continue
        names = [str(name) for name in range(size)]
        np.fill_diagonal(totals, 0)
        totals[unknown > 0] = 0  # of such a label no share is known
        shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
        figure = heat_map(shares, names, names, row_axis="label", column_axis="prediction of the adversarial image")
        caption = (
            f"{each.label}: of the searches of each label, those that ended in each other class, in per cent; "
            "a row without numbers had no search."
        )
        drawings.append(Drawing(f"label-prediction-{each.view.key}", caption, figure))
        most = _pair(counts, totals, most=True)
        findings.append(f"{each.label} turns {each.rate} into another class" + (f", most often {most}" if most else ""))
    kinds = {"label": pa.int64(), "prediction": pa.int64(), **_RATE("searches")}
    return Exhibit(
        "label-prediction",
        "What each class is turned into, untargeted",
        f"{'; '.join(findings)}.",
        drawings,
        _table(records, kinds),
        [*_cells(records, "searches"), "The table has no row for a class that no success ended in."],
    )


def _extremes(successes: np.ndarray, totals: np.ndarray) -> str:
    most, least = (_pair(successes, totals, most=way) for way in (True, False))
    return f", most often {most}, least often {least}" if most and least and most != least else ""


def _pair(hits: np.ndarray, totals: np.ndarray, *, most: bool) -> str:
    """The cell with the highest or lowest share, in words; how many where several have it.

    Of cells with `ENOUGH` searches; empty where all these are alike, or there are none.
    """
    cells = np.argwhere(totals >= ENOUGH).tolist()
    shares = {(source, target): hits[source, target] / totals[source, target] for source, target in cells}
    if len(set(shares.values())) < 2:
        return ""
    extreme = max(shares.values()) if most else min(shares.values())
    found = [cell for cell, share in shares.items() if share == extreme]
    if len(found) > 1:
        of = sorted({int(totals[source, target]) for source, target in found})
        searches = f"{of[0]} to {of[-1]}" if len(of) > 1 else f"{of[0]}"
        return f"in {len(found)} of {len(cells)} pairs of classes, each {extreme:.1%} of {searches} searches"
    ((source, target),) = found
    return f"{source} → {target}: {Rate(int(hits[source, target]), int(totals[source, target]))}"


def _cells(records: Sequence[Mapping[str, Any]], what: str) -> list[str]:
    counts = [record[what] for record in records]
    if not counts or min(counts) >= FEW:
        return []
    of = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{max(counts)}"
    return [f"A cell rests on {of} {what}: read it with its interval, in the table."]


# Success against what is spent and what is allowed


def _by_queries(searches: Sequence[_Searches], largest: Sequence[_Searches]) -> Exhibit | None:
    spent = {each: int(each.rows["queries"].to_numpy().max()) for each in searches}
    shown = [each for each in searches if spent[each] > 0]
    if not shown:
        return None
    curves = {each: _curve(each, spent[each]) for each in shown}
    records = [
        each.named | {"queries": budget, **_rate(rate, "searches")} for each in shown for budget, rate in curves[each]
    ]

    def figure(some: Sequence[_Searches]) -> "Figure":
        with styled():
            drawn = new_figure(height=2.7 + 0.16 * len(some))
            axes = drawn.subplots()
            for each, (colour, dashes) in zip(some, STYLES, strict=False):
                budgets, rates = zip(*curves[each], strict=True)
                low, high = np.array([rate.interval for rate in rates]).T * 100
                value = [100 * (rate.low or 0) for rate in rates]
                axes.fill_between(budgets, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
                axes.plot(budgets, value, color=colour, linestyle=dashes, drawstyle="steps-post", label=each.label)
                axes.plot(budgets[-1], value[-1], marker="o", markersize=4, color=colour)
            _log_axis(axes)
            axes.set(xlabel="queries allowed an image", ylabel="success (% of searches)", ylim=(-2, 102))
            drawn.legend(loc="outside lower left")
        return drawn

    drawings = []
    wide = [each for each in largest if each in shown]
    for number, some in enumerate(_by(len(STYLES), wide)):
        caption = (
            "Success within a number of queries (log axis), with 95% bands; a line ends where its searches do. "
            + _list([each.label for each in some])
        )
        drawings.append(Drawing(f"queries-{number + 1}", caption, figure(some)))
    for several in _several(shown):
        caption = f"{several[0].view.attack.NAME}: success within a number of queries (log axis), at each budget."
        key = f"queries-budgets-{several[0].view.key}"
        drawings.append(Drawing(key, caption, figure(several[: len(STYLES)])))
    finding = "; ".join(map(_queries_of, wide)) + "."
    notes = ["A query is an image put through the model, the forward pass of a gradient included."]
    if len(wide) > 1:
        notes.append("Attacks with gradients see more in a query than those that only ask for scores.")
    return Exhibit(
        "queries",
        "Success against queries",
        finding,
        drawings,
        _table(records, {"queries": pa.int64(), **_RATE("searches")}),
        [*notes, *_together(wide), *_small(wide)],
    )


def _queries_of(each: _Searches) -> str:
    most = int(each.rows["queries"].to_numpy().max())
    said = f"{each.label} succeeds on {each.rate} within {most:,} queries an image"
    if not len(each.successes):
        return said
    return f"{said}, on half of these within {np.median(each.successes['queries'].to_numpy()):,.0f}"


def _curve(each: _Searches, most: int) -> list[tuple[int, Rate]]:
    """Success at budgets from 1 to the most that was spent, evenly on a log axis."""
    budgets = np.unique(np.geomspace(1, most, 50).round().astype(np.int64)).tolist()
    return list(zip(budgets, success_by_queries(each.asked, budgets), strict=True))


def _by_budget(searches: Sequence[_Searches]) -> Exhibit | None:
    several = _several(searches)
    if not several:
        return None
    records, lines = [], []
    groups: dict[str, list[list[_Searches]]] = {}
    for run in several:
        groups.setdefault(_budget_axis(run[0]), []).append(run)
        for each in run:
            budget = {"parameter": each.view.attack.BUDGET, "value": float(_budget(each))}
            records.append(each.named | budget | _rate(each.rate, "searches"))
        lines.append(_over_budgets(run))
    drawings: list[Drawing] = []
    for axis, runs in groups.items():
        for some in _by(len(STYLES), runs):
            caption = f"Success against {axis}, with 95% intervals: {_list(_names(some))}"
            drawings.append(Drawing(f"budget-{len(drawings) + 1}", caption, _budget_figure(some, axis)))
    flat = [each for run in several for each in run]
    return Exhibit(
        "budgets",
        "Success against the size of the change",
        f"{'; '.join(lines)}.",
        drawings,
        _table(records, {"parameter": pa.string(), "value": pa.float64(), **_RATE("searches")}),
        [*_together(flat), *_small(flat)],
    )


def _over_budgets(run: Sequence[_Searches]) -> str:
    """The least and the largest budget in words, and the one that breaks most where it is neither."""
    told = [run[0], run[-1]]
    most = max(run, key=lambda each: len(each.successes))
    if len(most.successes) > max(len(each.successes) for each in told):
        told.insert(1, most)
    return ", ".join(f"{each.label} {each.rate}" + ", the most" * (len(told) > 2 and each is most) for each in told)


def _budget_figure(runs: Sequence[Sequence[_Searches]], axis: str) -> "Figure":
    with styled():
        figure = new_figure(height=2.6 + 0.16 * len(runs))
        axes = figure.subplots()
        values = sorted({float(_budget(each)) for run in runs for each in run})
        gap = 0.012 * (values[-1] - values[0])
        for number, (run, name, (colour, dashes)) in enumerate(zip(runs, _names(runs), STYLES, strict=False)):
            share = np.array([100 * (each.rate.low or 0) for each in run])
            low, high = np.array([each.rate.interval for each in run]).T * 100
            beside = np.array([float(_budget(each)) for each in run]) + gap * (number - (len(runs) - 1) / 2)
            axes.errorbar(
                beside, share, (share - low, high - share), color=colour, linestyle=dashes, marker="o", markersize=4,
                capsize=3, label=name,
            )  # fmt: skip
        if len(values) <= 12:
            axes.set_xticks(values, [spelled(value) for value in values])
        axes.set(xlabel=axis, ylabel="success (% of searches)", ylim=(-2, 102))
        figure.legend(loc="outside lower left")
    return figure


def _budget(each: _Searches) -> Any:
    return getattr(each.view.attack, each.view.attack.BUDGET or "")


def _budget_axis(each: _Searches) -> str:
    """What the budget's axis is called; runs with the same are drawn on one."""
    if each.view.attack.BUDGET == "pixels":
        return "pixels that may change, k"
    if each.view.attack.BUDGET == "epsilon":
        norm = _SHORT.get(getattr(getattr(each.view.attack, "ball", None), "norm", ""), "the attack's norm")
        return f"ε in {norm}, pixels in 0 to 1"
    return str(each.view.attack.BUDGET)


def _names(runs: Sequence[Sequence[_Searches]]) -> list[str]:
    """What runs with several budgets are called; with the run's name where two are called alike."""
    views = [run[0].view for run in runs]
    names = [view.attack.NAME if view.target is None else f"{view.attack.NAME} → {view.target}" for view in views]
    return _told_apart(names, views)


def _several(searches: Sequence[_Searches]) -> list[list[_Searches]]:
    """The runs with several budgets."""
    by_place: dict[Any, list[_Searches]] = {}
    for each in searches:
        by_place.setdefault(each.view.place, []).append(each)
    return [several for several in by_place.values() if len(several) > 1 and several[0].view.attack.BUDGET]


# How far successes lie


def _distances(searches: Sequence[_Searches], largest: Sequence[_Searches]) -> Exhibit | None:
    found = [each for each in largest if len(each.successes)]
    if not found:
        return None
    medians = {
        (each, norm): median(each.successes[norm].to_numpy())
        for each in searches
        if len(each.successes)
        for norm in _NORMS
    }
    records = []
    for each in searches:
        for norm in _NORMS if len(each.successes) else ():
            middle, values = medians[each, norm], each.successes[norm].to_numpy()
            records.append(
                each.named
                | {"norm": norm, "successes": len(values), "median": middle.value}
                | dict(zip(("median_low", "median_high"), _finite(middle.interval), strict=True))
                | dict(zip(("decile", "last_decile"), map(float, np.quantile(values, [0.1, 0.9])), strict=True))
            )
    drawings = []
    for norm, axis in _NORMS.items():
        for number, some in enumerate(_by(len(STYLES), found)):
            key = f"distance-{norm}-{number + 1}"
            figure, linked = _distance_figure(some, norm, axis, key, medians)
            dots = "; each dot is one image" if linked else ""
            caption = f"Successes within a distance, {axis}, in per cent of all successes of each attack{dots}."
            drawings.append(Drawing(key, caption, figure, linked))

    def said(each: _Searches) -> str:
        parts = [f"{_SHORT[norm]} {_number(medians[each, norm].value)}" for norm in _NORMS]
        return f"{each.label} {', '.join(parts)}"

    kinds = {"norm": pa.string(), "successes": pa.int64()}
    kinds |= dict.fromkeys(("median", "median_low", "median_high", "decile", "last_decile"), pa.float64())
    notes = [
        f"{each.label} rests on {_counted(len(each.successes), 'success')}."
        for each in found
        if len(each.successes) < FEW
    ]
    if any(len(several) > 1 for several in _several(searches)):
        notes.append(
            "Of a run at several budgets the one with most successes is drawn, of several such the largest; the table "
            "has all."
        )
    return Exhibit(
        "distances",
        "How far the successes lie",
        f"Medians of the successes: {'; '.join(map(said, found))}.",
        drawings,
        _table(records, kinds),
        notes,
    )


def _finite(interval: tuple[float, float]) -> tuple[float | None, ...]:
    """The ends of an interval; None for one that a single value leaves open."""
    return tuple(end if np.isfinite(end) else None for end in interval)


def _distance_figure(
    some: Sequence[_Searches], norm: str, axis: str, key: str, medians: Mapping[tuple[_Searches, str], Any]
) -> "tuple[Figure, dict[str, list[str]]]":
    single = sum(len(each.successes) for each in some) <= LINKED
    linked: dict[str, list[str]] = {}
    with styled():
        figure = new_figure(height=2.6 + 0.16 * len(some))
        axes = figure.subplots()
        everything = np.concatenate([each.successes[norm].to_numpy() for each in some])
        start = 0.0
        low, high = np.quantile(everything, [0.05, 0.95])
        if everything.min() > 0 and high > 20 * low:
            _log_axis(axes)
            start = float(everything.min())
        for number, (each, (colour, dashes)) in enumerate(zip(some, STYLES, strict=False)):
            values = each.successes[norm].to_numpy()
            order = np.argsort(values, kind="stable")
            ascending, share = values[order], 100 * np.arange(1, len(values) + 1) / len(values)
            label = f"{each.label}: median {_number(medians[each, norm].value)}"
            x, y = np.concatenate([[start], ascending]), np.concatenate([[0], share])
            axes.plot(x, y, color=colour, linestyle=dashes, drawstyle="steps-post", label=label)
            if single:
                gid = f"{key}-{number}"
                axes.scatter(ascending, share, s=9, color=colour, linewidths=0).set_gid(gid)
                names = each.successes.select(["image_id", "target", "params_hash"]).to_pylist()
                linked[gid] = [row_key(each.view.name, names[row]) for row in order]
        axes.set(xlabel=axis, ylabel="successes within (%)", ylim=(-2, 102))
        figure.legend(loc="outside lower left")
    return figure, linked


# Pixels whose change alone turns a prediction


def _vulnerable_pixels(each: _Searches, dataset: "Dataset") -> Exhibit | None:
    beside = each.view.by_products
    if beside is None or not {"map", "successes"} <= set(beside.column_names):
        return None
    height, width = dataset.shape[1:]
    place = {key: row for row, key in enumerate(_keys(beside))}
    chosen = [place[key] for key in _keys(each.rows) if key in place]
    if len(chosen) < len(each.rows) or not chosen:
        return None  # by-products of other rows, or of other images
    maps = np.array(beside["map"].take(chosen).to_pylist(), dtype=np.int64)
    if maps.shape[1] != height * width:
        return None
    mean, turned = maps.mean(axis=0), (maps > 0).sum(axis=0)
    records = [
        each.named | {"row": pixel // width, "column": pixel % width, "mean_successes": float(mean[pixel])}
        | _rate(replace(each.rate, hits=int(turned[pixel])), "searches")
        for pixel in range(height * width)
    ]  # fmt: skip
    key = f"vulnerable-{each.view.key}"
    most = int(mean.argmax())
    caption = (
        f"{each.label}: how many changes of each pixel reach the goal, the mean of {len(maps)} searches; "
        f"row and column of the pixel."
    )
    drawings = [Drawing(f"{key}-mean", caption, _mean_map(mean.reshape(height, width)))] if maps.any() else []
    counts = maps.sum(axis=1)
    broken = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    if len(broken):
        picked = broken[np.unique(np.linspace(0, len(broken) - 1, min(SINGLES, len(broken))).round().astype(int))]
        rows = each.rows.select(["image_id", "label", "target", "adversarial_prediction"]).take(picked).to_pylist()
        caption = (
            f"{each.label}: single images (grey) and the pixels whose change reaches the goal (colour: the deeper, the "
            f"more changes do), from the image with most of them to that with fewest. "
            + _list([f"image {row['image_id']}, {row['label']}" for row in rows])
        )
        figure = _single_maps(rows, maps[picked].reshape(-1, height, width), dataset)
        drawings.append(Drawing(f"{key}-images", caption, figure))
    status = each.rows["status"].cast(pa.string()).to_pylist()
    certified = replace(each.rate, hits=status.count(str(Status.CERTIFIED)), unknown=0)
    wanted = replace(each.rate, hits=len(broken))
    goal = "the target" if each.targeted else "another class"
    finding = (
        f"{each.label}: some change leads to {goal} on {wanted}, and it is certified that none does on {certified}"
    )
    if len(broken):
        finding += (
            f"; the mean is highest at row {most // width}, column {most % width}, where "
            f"{_number(float(mean[most]))} changes do"
        )
    kinds = {"row": pa.int64(), "column": pa.int64(), "mean_successes": pa.float64(), **_RATE("searches")}
    notes = ["successes: searches in which some change of that pixel reaches the goal."]
    if status.count(str(Status.EXHAUSTED)):
        notes.append("Not all changes were tried, so that an image of which none succeeded is not certified.")
    notes += [*_together([each]), *_small([each])]
    return Exhibit(key, "Vulnerable pixels", f"{finding}.", drawings, _table(records, kinds), notes)


def _keys(table: pa.Table) -> "Iterator[tuple[int, int | None]]":
    return zip(table["image_id"].to_pylist(), table["target"].to_pylist(), strict=True)


def _mean_map(mean: np.ndarray) -> "Figure":
    with styled():
        figure = new_figure(height=3.4)
        axes = figure.subplots()
        shown = axes.imshow(mean, cmap=_fading(BAD), vmin=0, vmax=float(mean.max()) or 1, interpolation="nearest")
        bar = figure.colorbar(shown, ax=axes, label="changes that reach the goal, mean", shrink=0.9)
        assert bar.solids is not None
        bar.solids.set_rasterized(True)
        axes.set(xlabel="column", ylabel="row")
    return figure


def _single_maps(rows: Sequence[Mapping[str, Any]], maps: np.ndarray, dataset: "Dataset") -> "Figure":
    with styled():
        wide = min(3, len(rows))
        tall = -(-len(rows) // wide)
        figure = new_figure(width=WIDTH * wide / 3, height=tall * (WIDTH / 3 * maps.shape[1] / maps.shape[2] + 0.25))
        for axes, row, found in zip(figure.subplots(tall, wide, squeeze=False).flat, rows, maps, strict=False):
            clean = dataset.images[row["image_id"]].mean(axis=0) / 255
            axes.imshow(clean, cmap=_fading(_GREY), vmin=0, vmax=1.4, interpolation="nearest")
            axes.imshow(np.sqrt(found), cmap=_fading(BAD), vmin=0, interpolation="nearest")
            axes.set_title(f"image {row['image_id']}: {row['label']} → {row['adversarial_prediction']}", fontsize=8)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes in figure.axes[len(rows) :]:
            axes.set_visible(False)
    return figure


def _fading(colour: str) -> LinearSegmentedColormap:
    """From transparent to the colour: readable on any ground."""
    return LinearSegmentedColormap.from_list("fading", [(*to_rgb(colour), 0.0), (*to_rgb(colour), 1.0)])


# Tables, names and notes


def _RATE(of: str) -> dict[str, pa.DataType]:  # noqa: N802
    counts = dict.fromkeys(("successes", of, "failed"), pa.int64())
    return {**counts, **dict.fromkeys(("rate", "low", "high"), pa.float64())}


def _rate(rate: Rate, of: str) -> dict[str, Any]:
    low, high = rate.interval or (None, None)
    counts = {"successes": rate.hits, of: rate.total, "failed": rate.unknown}
    return {**counts, "rate": rate.value, "low": low, "high": high}


def _table(records: Sequence[Mapping[str, Any]], kinds: Mapping[str, pa.DataType]) -> pa.Table:
    named: dict[str, pa.DataType] = {"run": pa.string(), "attack": pa.string(), "towards": pa.string()}
    return pa.Table.from_pylist(list(records), schema=pa.schema(list({**named, **kinds}.items())))


def _log_axis(axes: "Axes") -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("es" if what.endswith("s") else "s") * (count != 1)


def _by(size: int, things: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(things), size):
        yield things[start : start + size]


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names)}."


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def _small(searches: Sequence[_Searches]) -> list[str]:
    few = dict.fromkeys(f"{each.label} has {len(each.asked)} searches" for each in searches if len(each.asked) < FEW)
    return [f"{'; '.join(few)}: few to conclude from."] if few else []


def _together(searches: Sequence[_Searches]) -> list[str]:
    """How intervals are meant where searches are not independent of one another."""
    if not any(each.rate.clustered for each in searches):
        return []
    return ["Of searches of one image towards several targets, intervals are those of as many images, not searches."]
