"""Representation maps and the agreement of neighbours, as exhibits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from analysis.exhibits import Drawing, Exhibit, each_run
from analysis.figures.style import BAD, CLASSES, GROUND, INK, LINE, OTHER, QUIET, WIDTH, new_figure, settled, styled
from analysis.pairs import Pairs
from analysis.statistics import Estimate, by_image, with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Mapped", "Shares", "map_exhibit", "neighbour_exhibit"]

ARROWS = 100
"""Arrows drawn at most; more cannot be told apart."""

DOTS = 20_000
"""Training images drawn at most."""


@dataclass(frozen=True)
class Mapped:
    """Images of one run on a map.

    Attributes:
        slug: names its figure's files.
        pairs: the images.
        clean, adversarial: float ``[n, 2]``.
    """

    slug: str
    pairs: Pairs
    clean: np.ndarray
    adversarial: np.ndarray


@dataclass(frozen=True)
class Shares:
    """What share of the k nearest training images carries a class, float ``[n]`` each, in [0, 1].

    Attributes:
        clean: of a clean image, its label.
        prediction: of an adversarial image, what the model predicts of it.
        label: of an adversarial image, its label.
        target: of an adversarial image, the target; NaN where there is none.
    """

    clean: np.ndarray
    prediction: np.ndarray
    label: np.ndarray
    target: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs, clean: np.ndarray, adversarial: np.ndarray) -> "Shares":
        """From the labels of the nearest training images, int64 ``[n, k]``, of clean and adversarial images."""

        def share(nearest: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            return np.asarray((nearest == wanted[:, None]).mean(axis=1))

        return cls(
            share(clean, pairs.label),
            share(adversarial, pairs.prediction),
            share(adversarial, pairs.label),
            np.where(pairs.target < 0, np.nan, share(adversarial, pairs.target)),
        )


def map_exhibit(
    kind: str,
    training: np.ndarray,
    labels: np.ndarray,
    runs: Sequence[Mapped],
    faithful: Estimate,
    k: int,
    *,
    explained: Sequence[float] = (),
    joint: bool = False,
) -> Exhibit:
    """A map with every run's images on it, one figure a run.

    Args:
        kind: ``tsne`` or ``pca``.
        training: float ``[N, 2]``.
        labels: int64 ``[N]``.
        runs: what is placed on it.
        faithful: the share of nearest neighbours that the map keeps.
        k: how many neighbours that speaks of.
        explained: of PCA the share of the variance along each axis.
        joint: whether the images shown took part in making the map.
    """
    name = {"tsne": "t-SNE", "pca": "PCA"}[kind]
    drawings = [
        Drawing(
            key=f"{kind}-{run.slug}",
            caption=(
                f"{name} map of what the last linear layer is given: {len(training):,} training images by class "
                f"(numbers at their middles; {min(DOTS, len(training)):,} are drawn), and "
                f"{len(run.pairs)} images attacked by {run.pairs.title}; arrows, "
                f"{min(ARROWS, len(run.pairs))} at most, lead from clean to adversarial images; dots are "
                f"adversarial images that succeeded, rings ones that failed. {_axes_of(kind, explained)}"
            ),
            figure=_map(kind, training, labels, run, explained),
            rows={
                f"{kind}-{run.slug}-{group}": [
                    key
                    for key, won in zip(run.pairs.keys, run.pairs.success, strict=True)
                    if won == (group == "success")
                ]
                for group in ("success", "failure")
                if (run.pairs.success == (group == "success")).any()
            },
        )
        for run in runs
    ]
    won = np.concatenate([run.pairs.success for run in runs])
    notes = [
        f"The map keeps {with_interval(faithful)} of a training image's {k} nearest neighbours (mean, 95% interval): "
        "what lies near on it need not lie near in the model; the neighbours are counted in the full space below.",
        "A search that stops at its first success leaves an image just beyond the decision boundary.",
    ]
    if kind == "tsne":
        notes.append(
            "Training, clean and adversarial images made the map together (--refit), so they push one another about."
            if joint
            else "The map is made of training images alone and stays as it is; each other image is placed by itself."
        )
    return Exhibit(
        key=f"{kind}-map",
        title=f"Where adversarial images lie among the classes, by {name}",
        finding=_moved(name, training, labels, runs, k)
        if won.any()
        else f"No search succeeded among the {len(won)} images shown on the {name} map.",
        drawings=drawings,
        table=_coordinates(runs),
        notes=notes,
    )


def _moved(name: str, training: np.ndarray, labels: np.ndarray, runs: Sequence[Mapped], k: int) -> str:
    """How many adversarial images lie nearer to the middle of their new class than to that of their own."""
    middles = _middles(training, labels)
    nearer, images = [], []
    for run in runs:
        for row in np.flatnonzero(run.pairs.success):
            new, own = (middles.get(int(one[row])) for one in (run.pairs.prediction, run.pairs.label))
            if new is not None and own is not None:
                here = run.adversarial[row]
                nearer.append(np.linalg.norm(here - new) < np.linalg.norm(here - own))
                images.append(run.pairs.image[row])
    if not nearer:
        return f"No class that an adversarial image is taken for has training images on the {name} map."
    share = by_image(np.array(nearer, dtype=float), np.array(images))
    return (
        f"{with_interval(share)} of {len(nearer)} successful adversarial images lie, on the {name} map, nearer to the "
        "middle of the class they are taken for than to that of their own."
    )


def _middles(training: np.ndarray, labels: np.ndarray) -> dict[int, np.ndarray]:
    return {int(one): np.median(training[labels == one], axis=0) for one in np.unique(labels)}


def _axes_of(kind: str, explained: Sequence[float]) -> str:
    if kind == "tsne":
        return "Axes have no unit."
    return f"The axes hold {explained[0]:.0%} and {explained[1]:.0%} of the variance, in units of the representation."


def _map(kind: str, training: np.ndarray, labels: np.ndarray, run: Mapped, explained: Sequence[float]) -> "Figure":
    from matplotlib.patheffects import withStroke

    with styled():
        figure = new_figure(width=WIDTH, height=WIDTH * 0.92)
        axes = figure.subplots()
        some = np.random.default_rng(0).permutation(len(training))[:DOTS]
        colours = np.array(CLASSES)[labels[some] % len(CLASSES)]
        axes.scatter(training[some, 0], training[some, 1], s=2.0 if len(some) > 5000 else 4.0, c=colours, linewidths=0,
                     alpha=0.45, rasterized=True)  # fmt: skip
        shown = np.unique(np.linspace(0, max(len(run.pairs) - 1, 0), ARROWS).astype(int))
        move = run.adversarial[shown] - run.clean[shown]
        axes.quiver(*run.clean[shown].T, *move.T, angles="xy", scale_units="xy", scale=1, width=0.0022, headwidth=5,
                    headlength=7, color=INK, alpha=0.45)  # fmt: skip
        won = run.pairs.success
        for group, chosen, face, edge in (("success", won, BAD, GROUND), ("failure", ~won, "none", OTHER)):
            if chosen.any():
                axes.scatter(run.adversarial[chosen, 0], run.adversarial[chosen, 1], s=16, facecolors=face,
                             edgecolors=edge, linewidths=0.5 if group == "success" else 1.0, zorder=3,
                             gid=f"{kind}-{run.slug}-{group}",
                             label=f"adversarial, {group} ({int(chosen.sum())})")  # fmt: skip
        for one, (x, y) in _middles(training, labels).items():
            axes.text(x, y, str(one), color=INK, fontsize=11, fontweight="bold", ha="center", va="center", zorder=4,
                      path_effects=[withStroke(linewidth=2.5, foreground=GROUND)])  # fmt: skip
        _frame(axes, np.concatenate([training, run.clean, run.adversarial]))
        if kind == "pca":
            axes.set_xlabel(f"first component ({explained[0]:.0%} of the variance)")
            axes.set_ylabel(f"second component ({explained[1]:.0%})")
        else:
            axes.set_xlabel("t-SNE 1 (no unit)")
            axes.set_ylabel("t-SNE 2 (no unit)")
            axes.set_xticks([])
            axes.set_yticks([])
        if len(won):
            figure.legend(loc="outside lower center", ncols=2, handletextpad=0.3)
    return settled(figure)


def _frame(axes: "Axes", points: np.ndarray) -> None:
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.04 * np.maximum(high - low, 1e-9)
    axes.set_xlim(low[0] - room[0], high[0] + room[0])
    axes.set_ylim(low[1] - room[1], high[1] + room[1])


def _coordinates(runs: Sequence[Mapped]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        name: [] for name in ("row", "clean_x", "clean_y", "adversarial_x", "adversarial_y")
    }
    for run in runs:
        columns["row"] += run.pairs.keys
        for name, values in (("clean", run.clean), ("adversarial", run.adversarial)):
            columns[f"{name}_x"] += values[:, 0].tolist()
            columns[f"{name}_y"] += values[:, 1].tolist()
    return pa.table({name: pa.array(values, pa.string() if name == "row" else pa.float64())
                     for name, values in columns.items()})  # fmt: skip


def neighbour_exhibit(
    runs: Sequence[tuple[Pairs, Mapping[str, Shares]]], k: int, kept: Mapping[str, Estimate]
) -> Exhibit:
    """How many of an image's nearest training images are of which class, in the full space and on the maps.

    Args:
        runs: images with their shares by space, ``full`` among them.
        k: neighbours.
        kept: the share of nearest neighbours that each map keeps.
    """
    names = {"full": "full space", "tsne": "t-SNE map", "pca": "PCA map"}
    bars = [{space: _bars(pairs, one) for space, one in shares.items()} for pairs, shares in runs]
    by_run = {pairs.run: _told(found["full"], k) for (pairs, _), found in zip(runs, bars, strict=True)}
    return Exhibit(
        key="neighbours",
        title="Whose neighbours adversarial images are",
        finding=each_run(by_run) or _told_of_all([found["full"] for found in bars], k),
        drawings=[
            Drawing(
                key=f"neighbours-{number}",
                caption=(
                    f"Mean share (0 to 1) of an image's {k} nearest training images that carry a class, with 95% "
                    f"intervals, in the full space of representations and on each map: {pairs.title}."
                ),
                figure=_neighbours(found, names, k),
            )
            for number, ((pairs, _), found) in enumerate(zip(runs, bars, strict=True), 1)
        ],
        table=_shares_table(runs),
        notes=[
            "A map keeps of a training image's nearest neighbours: "
            + ", ".join(f"the {names[name]} {with_interval(estimate)}" for name, estimate in kept.items())
            + "."
        ],
        by_run=by_run,
    )


def _bars(pairs: Pairs, shares: Shares) -> dict[str, tuple[Estimate, int]]:
    """The mean share of each kind of image and class in one space, and of how many; kinds without images are absent."""
    found = {}
    for what, values, chosen in (
        ("clean: its label", shares.clean, np.ones(len(pairs), dtype=bool)),
        ("success: predicted class", shares.prediction, pairs.success),
        ("success: its label", shares.label, pairs.success),
        ("failure: its label", shares.label, ~pairs.success),
        ("failure: target", shares.target, ~pairs.success & (pairs.target >= 0)),
    ):
        if chosen.any():
            found[what] = by_image(values[chosen], pairs.image[chosen]), int(chosen.sum())
    return found


_WORDS = {
    "clean: its label": "carry its label when it is clean",
    "success: predicted class": "the class it is taken for after a successful attack",
    "success: its label": "still its label then",
    "failure: its label": "its label after a failed one",
}


def _told(full: Mapping[str, tuple[Estimate, int]], k: int) -> str:
    told = [f"{with_interval(full[what][0])} {words}" for what, words in _WORDS.items() if what in full]
    return f"In the full space, of the {k} training images nearest to an image, {', '.join(told)}."


def _told_of_all(runs: Sequence[Mapping[str, tuple[Estimate, int]]], k: int) -> str:
    """What holds in each of many runs."""
    told = []
    for what, words in _WORDS.items():
        if ends := [full[what][0].interval for full in runs if what in full]:
            low, high = min(low for low, _ in ends), max(high for _, high in ends)
            told.append(f"{low:.1%} to {high:.1%} {words} ({len(ends)} runs)")
    return (
        f"In the full space, of the {k} training images nearest to an image, in every run by itself, from the lowest "
        f"to the highest end of their 95% intervals, {', '.join(told)}."
    )


def _neighbours(bars: Mapping[str, Mapping[str, tuple[Estimate, int]]], names: Mapping[str, str], k: int) -> "Figure":
    whats = list(bars["full"])
    colours = {"full": BAD, "tsne": OTHER, "pca": QUIET}
    with styled():
        figure = new_figure(width=WIDTH, height=0.9 + 0.5 * len(whats))
        axes = figure.subplots()
        for number, (space, found) in enumerate(bars.items()):
            at = np.array([row for row, what in enumerate(whats) if what in found], dtype=float)
            at += (number - (len(bars) - 1) / 2) * 0.22
            values = np.array([found[what][0].value for what in whats if what in found])
            ends = np.array([found[what][0].interval for what in whats if what in found])
            reach = np.abs(ends.T - values)
            axes.errorbar(values, at, xerr=reach, fmt="osD"[number % 3], markersize=4, color=colours[space],
                          linewidth=1.2, capsize=2, label=names[space])  # fmt: skip
        axes.set_yticks(range(len(whats)), [f"{what}\n({bars['full'][what][1]} images)" for what in whats])
        axes.set_ylim(len(whats) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.set_xlabel(f"share of the {k} nearest training images")
        figure.legend(loc="outside upper center", ncols=3, handletextpad=0.3, columnspacing=1.2)
    return settled(figure)


def _shares_table(runs: Sequence[tuple[Pairs, Mapping[str, Shares]]]) -> pa.Table:
    tables = []
    for pairs, shares in runs:
        columns: dict[str, Any] = {
            "run": [pairs.run] * len(pairs),
            "row": list(pairs.keys),
            "image_id": pairs.image,
            "label": pairs.label,
            "target": pa.array(pairs.target, mask=pairs.target < 0),
            "prediction": pairs.prediction,
            "success": pairs.success,
        }
        for space, one in shares.items():
            columns[f"clean_label_{space}"] = one.clean
            columns[f"adversarial_prediction_{space}"] = one.prediction
            columns[f"adversarial_label_{space}"] = one.label
            columns[f"adversarial_target_{space}"] = pa.array(one.target, mask=np.isnan(one.target))
        columns["run"] = pa.array(columns["run"], pa.string())
        columns["row"] = pa.array(columns["row"], pa.string())
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)
