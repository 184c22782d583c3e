"""Changes of activations from layer to layer, as exhibits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from analysis.activations import GROUPS, Changes, Growth, growths
from analysis.exhibits import Drawing, Exhibit, each_run
from analysis.figures.style import BAD, LINE, OTHER, QUIET, WIDTH, new_figure, settled, styled
from analysis.pairs import Pairs
from analysis.sprites import picture
from analysis.statistics import Estimate, by_image, percent, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Changed", "Pictured", "change_exhibit", "map_of_changes_exhibit"]

_LOOKS = {
    "success": (BAD, "o", "-"),
    "failure": (OTHER, "s", "-"),
    "noise of success": (BAD, "o", ":"),
    "noise of failure": (OTHER, "s", ":"),
}


@dataclass(frozen=True)
class Changed:
    """The changes of one run's images.

    Attributes:
        slug: names its figure's files.
    """

    slug: str
    pairs: Pairs
    changes: Changes


@dataclass(frozen=True)
class Pictured:
    """Some images of one run with their maps of change.

    Attributes:
        slug: names its figure's files.
        pairs: the run's.
        rows: int64 ``[n]``, which of them.
        maps: float32 ``[n, H, W]`` by the layer's name, the input first.
    """

    slug: str
    pairs: Pairs
    rows: np.ndarray
    maps: Mapping[str, np.ndarray]


def change_exhibit(runs: Sequence[Changed]) -> Exhibit:
    """The relative change of every layer, for successes, failures and noise of the same size; one figure a run."""
    layers, estimated = runs[0].changes.layers, [_layered(run) for run in runs]
    weighted = [one.name for one in layers if one.kind in ("convolution", "linear")]
    size = np.concatenate([run.changes.size for run in runs])
    met = np.concatenate([run.changes.noise_size for run in runs]) / size[:, None]
    draws = met.shape[1]
    image = np.concatenate([run.pairs.image for run in runs])
    fools = np.concatenate([run.changes.noise_fools for run in runs]).astype(np.float64)
    least, most = (by_image(np.nan_to_num(fools, nan=end).mean(axis=1), image) for end in (0.0, 1.0))
    changes = with_interval(least)
    if unknown := int(np.isnan(fools).sum()):
        changes = f"{percent(least.value)} to {percent(most.value)} ({unknown} of {fools.size} have no finite answer)"
    notes = [
        "Relative change: ‖a(x′) − a(x)‖₂ / ‖a(x)‖₂ of a layer's output a for the clean image x and the changed x′.",
        "Noise: a random direction on all pixels with the L2 norm of the adversarial change, clipped to [0, 1] and "
        f"rounded to 8 bits, {draws} draws an image; the norm it came to is {met.min():.1%} to {met.max():.1%} of "
        f"the wanted one (median {np.median(met):.1%}), and it changes the prediction of {changes}.",
        "A failure's image is the best or last that its search had.",
    ]
    grown = {run.pairs.run: growths([run.changes], [run.pairs.success], [run.pairs.image]) for run in runs}
    by_run = {run: _finding(found, weighted) for run, found in grown.items()}
    if left := sum(run.pairs.left_out for run in runs):
        notes.append(f"{left} images whose search changed nothing are left out.")
    return Exhibit(
        key="activation-change",
        title="How an adversarial change grows through the layers",
        finding=each_run(by_run) or _verdicts(grown, weighted),
        drawings=[
            Drawing(
                key=f"activation-change-{run.slug}",
                caption=(
                    "Median relative change (no unit, log axis) of each layer's output, from the image to the last "
                    f"layer, under {run.pairs.title}: successes, failures, and noise of the same L2 norm as each; "
                    "bands are 95% intervals."
                ),
                figure=_curves(run, found),
            )
            for run, found in zip(runs, estimated, strict=True)
        ],
        table=pa.concat_tables([_table(run, found) for run, found in zip(runs, estimated, strict=True)]),
        notes=notes,
        by_run=by_run,
    )


def _times(factor: Estimate) -> str:
    low, high = factor.interval
    return (
        f"×{factor.value:.2f} ({low:.2f} to {high:.2f})" if np.isfinite([low, high]).all() else f"×{factor.value:.2f}"
    )


def _finding(grown: Mapping[str, Growth], weighted: Sequence[str]) -> str:
    """Whether changes of one run taper off in failures, as the seed says, by themselves and beside noise."""
    if not grown:
        return "No image's change could be followed from the first layer to the last."
    told = [
        f"{_times(grown[group].factor)} in {grown[group].rows} {words}, {_times(grown[noise].factor)} under noise of "
        "the same size"
        for group, noise, words in (
            ("success", "noise of success", "successes"),
            ("failure", "noise of failure", "failures"),
        )
        if group in grown
    ]
    start = f"From {weighted[0]} to {weighted[-1]} the relative change becomes " + "; ".join(told)
    if "failure" not in grown:
        return f"{start}; there are no failures to look at."
    failed = grown["failure"]
    assert failed.beside_noise is not None
    tapers = with_interval(failed.tapers)
    return (
        f"{start}: in failures {_TAPERS[_side(failed.factor)]} (it is smaller at the last layer in {tapers} of them); "
        f"{_BESIDE[_side(failed.beside_noise)]}, {_times(failed.beside_noise)}."
    )


_TAPERS = {-1: "it tapers off", 0: "whether it tapers off is not decided", 1: "it does not taper off"}
_BESIDE = {
    -1: "it grows less than noise of the same size",
    0: "whether it grows more or less than noise of the same size is not decided",
    1: "it grows more than noise of the same size",
}


def _side(factor: Estimate) -> int:
    """−1 where a factor is shown to be below 1, 1 where above, 0 where neither."""
    low, high = factor.interval
    return int(low > 1) - int(high < 1)


def _verdicts(grown: Mapping[str, Mapping[str, Growth]], weighted: Sequence[str]) -> str:
    """Of many runs, which come to what."""
    failed = {run: found["failure"] for run, found in grown.items() if "failure" in found}
    if not failed:
        return "There are no failures to look at in any of the runs."
    told = []
    for words, sides in (
        (_TAPERS, {run: _side(one.factor) for run, one in failed.items()}),
        (_BESIDE, {run: _side(one.beside_noise) for run, one in failed.items() if one.beside_noise}),
    ):
        for side, said in words.items():
            if those := [run for run, found in sides.items() if found == side]:
                told.append(f"{said} in {_runs(those, len(failed))}")
    without = f"; {len(grown) - len(failed)} have no failures" if len(failed) < len(grown) else ""
    start = f"From {weighted[0]} to {weighted[-1]} the relative change in failures, run by run: "
    return f"{start}{'; '.join(told)}{without}."


def _runs(those: Sequence[str], of: int) -> str:
    return f"all {of} runs" if len(those) == of else f"{len(those)} of {of} runs ({', '.join(those)})"


@dataclass(frozen=True)
class _Layered:
    """Of one group of images and each layer: the images that have a relative change, its median and quartiles."""

    total: int
    images: Sequence[int]
    medians: Sequence[Estimate | None]
    quartiles: Sequence[tuple[float | None, float | None]]


def _layered(run: Changed) -> dict[str, _Layered]:
    """By group, those without images absent."""
    won, noise = run.pairs.success, np.median(run.changes.noise, axis=2)
    whole = {
        "success": (run.changes.adversarial, won),
        "failure": (run.changes.adversarial, ~won),
        "noise of success": (noise, won),
        "noise of failure": (noise, ~won),
    }
    found = {}
    for group in GROUPS:
        values, chosen = whole[group]
        if not chosen.any():
            continue
        counts, medians, quartiles = list[int](), list[Estimate | None](), list[tuple[float | None, float | None]]()
        for column in values[chosen].T:
            usable = np.isfinite(column)
            counts.append(int(usable.sum()))
            if usable.any():
                medians.append(by_image(column[usable], run.pairs.image[chosen][usable], "median"))
                low, high = np.quantile(column[usable], [0.25, 0.75])
                quartiles.append((float(low), float(high)))
            else:
                medians.append(None)
                quartiles.append((None, None))
        found[group] = _Layered(int(chosen.sum()), counts, medians, quartiles)
    return found


def _table(run: Changed, found: Mapping[str, _Layered]) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for group, one in found.items():
        each = zip(run.changes.layers, one.images, one.medians, one.quartiles, strict=True)
        for layer, count, estimate, (quarter, three) in each:
            low, high = estimate.interval if estimate else (None, None)
            rows.append(
                {"run": run.pairs.run, "layer": layer.name, "kind": layer.kind, "group": group, "images": count}
                | {"median": estimate.value if estimate else None, "low": low, "high": high}
                | {"quartile_1": quarter, "quartile_3": three}
            )
    kinds = {"run": pa.string(), "layer": pa.string(), "kind": pa.string(), "group": pa.string(), "images": pa.int64()}
    names = (*kinds, "median", "low", "high", "quartile_1", "quartile_3")
    return pa.Table.from_pylist(rows, pa.schema([(name, kinds.get(name, pa.float64())) for name in names]))


def _curves(run: Changed, found: Mapping[str, _Layered]) -> "Figure":
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    layers = run.changes.layers
    with styled():
        figure = new_figure(width=WIDTH, height=3.4 + 0.02 * max(len(layer.name) for layer in layers))
        axes = figure.subplots()
        ends = []
        for group, one in found.items():
            colour, marker, line = _LOOKS[group]
            at = [n for n, estimate in enumerate(one.medians) if estimate and estimate.value > 0]
            middle = np.array([estimate.value for estimate in one.medians if estimate and estimate.value > 0])
            band = np.array([estimate.interval for estimate in one.medians if estimate and estimate.value > 0])
            band = np.where(np.isfinite(band) & (band > 0), band, middle[:, None])
            axes.fill_between(at, *band.T, color=colour, alpha=0.18, linewidth=0)
            axes.plot(at, middle, color=colour, marker=marker, linestyle=line, markersize=3.5, linewidth=1.4,
                      markerfacecolor=colour if line == "-" else "none", label=f"{group} ({one.total})")  # fmt: skip
            ends += band.ravel().tolist()
        axes.set_yscale("log")
        decades = np.log10(max(ends) / min(ends)) if ends else 0.0
        marks = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if decades < 1 else (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=marks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        every = -(-len(layers) // 16)  # of more names than this some are left out
        axes.set_xticks(range(0, len(layers), every), [layer.name for layer in layers[::every]], rotation=45,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        axes.set_xlabel("layer, in the order executed")
        axes.set_ylabel("relative change ‖Δa‖₂ / ‖a‖₂")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        figure.legend(loc="outside upper center", ncols=2, columnspacing=1.2)
    return settled(figure)


def map_of_changes_exhibit(runs: Sequence[Pictured]) -> Exhibit:
    """The seed's pictures: where each convolution's output changed; one figure a run."""
    shares = []
    for run in runs:
        names = list(run.maps)
        shares.append([(run.maps[name] > 0).reshape(len(run.rows), -1).mean(axis=1) for name in (names[0], names[-1])])
    first, last = (np.concatenate(parts) for parts in zip(*shares, strict=True))
    images = np.concatenate([run.pairs.image[run.rows] for run in runs])
    names = list(runs[0].maps)
    return Exhibit(
        key="activation-maps",
        title="Where in each layer an adversarial change arrives",
        finding=(
            f"Of the positions of a map, {with_interval(by_image(first, images))} change in the {names[0]} and "
            f"{with_interval(by_image(last, images))} in {names[-1]} (mean of the {len(first)} images shown)."
        ),
        drawings=[
            Drawing(
                key=f"activation-maps-{run.slug}",
                caption=(
                    f"Images attacked by {run.pairs.title}: the adversarial image, then the largest |Δ| over channels "
                    "at each position of "
                    + ", ".join(run.maps)
                    + "; dark is 0, bright the largest of that map, whose value stands below it."
                ),
                figure=_grid(run),
            )
            for run in runs
        ],
        notes=["Convolutions are shown behind their rectifier where they have one. Each map has a scale of its own."],
    )


def _grid(run: Pictured) -> "Figure":
    names, count = list(run.maps), len(run.rows)
    columns = 1 + len(names)
    with styled():
        cell = (WIDTH - 0.6) / max(columns, 5)
        figure = new_figure(width=0.6 + cell * columns, height=0.3 + count * (cell + 0.22))
        grid = figure.subplots(count, columns, squeeze=False)
        for line, row in enumerate(run.rows):
            adversarial = run.pairs.adversarial[row]
            grid[line, 0].imshow(picture(adversarial), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            for axes, name in zip(grid[line, 1:], names, strict=True):
                shown = run.maps[name][line]
                axes.imshow(shown, cmap="inferno", vmin=0, vmax=max(float(shown.max()), 1e-12), interpolation="nearest")
                axes.set_xlabel(f"{shown.max():.2g}", fontsize=8, labelpad=1, color=QUIET)
            won = run.pairs.success[row]
            grid[line, 0].set_xlabel(f"{run.pairs.label[row]} → {run.pairs.prediction[row]}", fontsize=8, labelpad=1)
            grid[line, 0].set_ylabel("success" if won else "failure", fontsize=8, color=BAD if won else OTHER)
            for axes in grid[line]:
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
        for axes, name in zip(grid[0], ("adversarial", *names), strict=True):
            axes.set_title(name.replace(" ", "\n", 1), fontsize=8)
    return settled(figure)
