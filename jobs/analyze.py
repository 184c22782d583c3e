"""``brittle analyze``: what adversarial images do inside a model, as figures, tables and a page."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import App, Parameter
from pydantic import BaseModel, ConfigDict, Field

from jobs.examples import examples
from jobs.interruption import keeping
from jobs.progress import Parts, progress, say
from jobs.recorded import RecordedRun, open_runs, require_one_subject, require_runs
from jobs.report import run_views, write_page
from jobs.subject import Subject, load_training
from jobs.typed import changed, path
from jobs.typed import command as typed
from workers.budgets import Number
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.files import exclusive, require_place, write_whole
from workers.images import Dataset, hash_of_images
from workers.remedies.remedies import NONE
from workers.versions import versions

if TYPE_CHECKING:
    from analysis.array_cache import ArrayCache
    from analysis.exhibits import Exhibit
    from analysis.pairs import Pairs

__all__ = ["AnalysisOptions", "analysed", "app"]

PICTURED = 6
"""Images of a run whose maps of change are drawn, as many failures as successes where there are."""

app = App(
    name="analyze",
    help="""Look at what adversarial images do inside a model: maps of its representations, changes of activations.

    t-SNE and PCA are made of training images alone, as the last linear layer of the model is given them; clean and
    adversarial images are placed on the map that stays as it is. What was computed is kept in OUT/cache, and the same
    command takes seconds again.
    """,
    help_epilogue=examples(
        "brittle analyze RUN_A RUN_B --out ANALYSIS",
        "brittle analyze RUN --points 60000 --out ANALYSIS",
        "brittle analyze RUN --refit --limit 50 --out ANALYSIS",
    ),
)


class AnalysisOptions(BaseModel):
    """How much is looked at."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    points: int = Field(
        10_000, ge=10, description="Training images that the maps are made of, at random; all if fewer."
    )
    refit: bool = Field(False, description="Make the t-SNE of training, clean and adversarial images together.")
    neighbours: int = Field(10, ge=1, le=1000, description="Nearest training images that are counted.")
    perplexity: Number = Field(30, ge=2, le=1000, description="Of t-SNE; at most a third of the training images.")
    limit: int = Field(200, ge=1, description="Images of a run, at random; half of them failures where there are.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of every draw.")
    training_data: str | None = Field(
        None, description="What the maps are made of; the train split of the runs' data when absent."
    )


@app.default
def analyze(
    runs: list[str], /, *, out: Path, options: Annotated[AnalysisOptions | None, Parameter(name="*")] = None
) -> int:
    """
    Args:
        runs: Folders of runs, or their URIs; all of one model and one data set.
        out: Folder for figures, tables, the page and what is kept for the next start.
    """
    from analysis.exhibits import write_exhibits

    options, parts = options or AnalysisOptions(), Parts()
    if out.exists() and not out.is_dir():
        raise WrongInput(f"--out {out}: is not a folder")
    require_place(out)
    recorded = open_runs(require_runs(runs))
    require_one_subject(recorded)
    parts.begin("loading")
    subject = recorded[0].subject()
    with keeping(out), exclusive(out):
        exhibits = analysed(recorded, subject, out, options, parts)
        parts.begin("figures and tables")
        write_exhibits(exhibits, out)
        parts.begin("page")
        findings = ["Inside the model", *(exhibit.finding for exhibit in exhibits)]
        write_page(
            recorded, subject, out / "page.html", command=exhibits[0].command, findings=findings, exhibits=exhibits
        )
        parts.end()
        _publish(out, subject, options, exhibits, parts)
    for exhibit in exhibits:
        print(f"{exhibit.title}: {exhibit.finding}")
    took = ", ".join(f"{name} {part.wall:.1f} s" for name, part in parts.seconds.items())
    say(f"{took}; {sum(part.cpu for part in parts.seconds.values()):.0f} s of CPU in all")
    print(f"page in {out / 'page.html'}, figures and tables beside it")
    return 0


def analysed(
    runs: Sequence[RecordedRun], subject: Subject, out: Path, options: AnalysisOptions, parts: Parts | None = None
) -> "list[Exhibit]":
    """What the representations and activations of a model show of its runs.

    Args:
        runs: all of one model and one data set.
        subject: theirs.
        out: folder of what is kept for the next time, in ``cache``.
        options: how much is looked at.
        parts: told what each part takes.

    Raises:
        WrongInput: when no run has an image to show, the model has no representation, or the training images are
            missing or too few.
    """
    import joblib
    import torch

    from analysis.array_cache import ArrayCache

    model, cache = subject.searched_as(NONE).model, ArrayCache(out / "cache")
    pairs = _pairs(runs, subject.dataset, options)
    work = _Work(subject, model, cache, options, parts or Parts(), joblib.cpu_count())
    torch.set_num_threads(work.jobs)
    command = _command(runs, out, options)
    try:
        found = [*work.maps(pairs, _training(runs[0], subject, options)), *work.activations(pairs)]
        return [replace(exhibit, command=command) for exhibit in found]
    finally:
        torch.set_num_threads(1)  # as in an actor of the default size
        work.parts.end()


def _command(runs: Sequence[RecordedRun], out: Path, options: AnalysisOptions) -> str:
    """What was typed, or what comes to the same."""
    return typed("analyze", *(path(run.folder.place) for run in runs), *changed(options), "--out", path(out))


def _pairs(runs: Sequence[RecordedRun], dataset: Dataset, options: AnalysisOptions) -> "dict[str, Pairs]":
    """Images of every run that has some, by its key; of one at several budgets, at the largest."""
    from analysis.pairs import Pairs

    found: dict[str, Pairs] = {}
    for run in runs:
        view = run_views([run])[-1]
        title = f"{view.title} ({run.name})" if len(runs) > 1 else view.title
        one = Pairs.drawn(run.name, title, view.table, dataset, limit=options.limit, seed=options.seed)
        if not len(one):
            say(f"{run.folder.place}: no image was searched and changed; it is left out")
            continue
        found[run.key] = one
    if not found:
        raise WrongInput("no image was searched and changed in any of the runs: there is nothing to look at")
    return found


def _training(run: RecordedRun, subject: Subject, options: AnalysisOptions) -> Dataset:
    if options.training_data is None and run.plan.frozen["split"] == "train":
        return subject.dataset  # the attacked images are left out where the sample is drawn
    return load_training(options.training_data, str(run.plan.recorded["data"]), subject.dataset)


@dataclass
class _Work:
    """An analysis while it runs."""

    subject: Subject
    model: Any
    cache: "ArrayCache"
    options: AnalysisOptions
    parts: Parts
    jobs: int

    def maps(self, pairs: "Mapping[str, Pairs]", training: Dataset) -> "list[Exhibit]":
        """Both maps and the table of neighbours."""
        from analysis.embeddings import Axes, faithfulness, nearest_labels, principal_axes
        from analysis.figures.embeddings import Mapped, Shares, map_exhibit, neighbour_exhibit
        from analysis.statistics import Estimate

        options = self.options
        sample = self._sample(pairs, training)
        labels, rows = training.labels[sample], None
        if options.neighbours >= len(sample):
            raise WrongInput(
                f"--neighbours: expected less than the {len(sample)} training images, got {options.neighbours}"
            )
        if not 3 * options.perplexity <= len(sample) - 1:
            raise WrongInput(
                f"--perplexity: expected at most {(len(sample) - 1) / 3:g}, a third of the other training images, "
                f"got {options.perplexity:g}"
            )
        shown = np.concatenate([image for one in pairs.values() for image in (one.clean, one.adversarial)])
        made_from = self._made_from(
            training=hash_of_images(training.images[sample]) + _digest(labels),
            perplexity=options.perplexity,
            seed=options.seed,
        )

        def training_rows() -> np.ndarray:  # only where something must be made of them
            nonlocal rows
            if rows is None:
                rows = self._representations(training.images[sample], "representations of training images")
            return rows

        def make_axes() -> dict[str, np.ndarray]:
            full = training_rows()
            self.parts.begin("PCA")
            axes = principal_axes(full, seed=options.seed)
            return axes._asdict() | {"coordinates": axes.coordinates(full)}

        def make_shown() -> dict[str, np.ndarray]:
            new = self._representations(shown, "representations of attacked images")
            full = training_rows()
            self.parts.begin("neighbours")
            return {"coordinates": axes.coordinates(new),
                    "nearest": nearest_labels(full, labels, new, options.neighbours, jobs=self.jobs)}  # fmt: skip

        kept = self.cache.get("pca", made_from, make_axes)
        points = kept.pop("coordinates")
        axes = Axes(**kept)
        what_is_shown = made_from | {"shown": hash_of_images(shown), "neighbours": options.neighbours}
        seen = self.cache.get("shown", what_is_shown, make_shown)
        tsne, new_tsne = self._tsne(points, seen["coordinates"], made_from, what_is_shown)
        maps = {"tsne": (tsne, new_tsne), "pca": (points[:, :2], seen["coordinates"][:, :2])}

        def make_faithful() -> dict[str, np.ndarray]:
            full = training_rows()
            self.parts.begin("neighbours")
            kept = faithfulness(
                full,
                {name: old for name, (old, _) in maps.items()},
                options.neighbours,
                seed=options.seed,
                jobs=self.jobs,
            )
            return {name: np.array([one.value, *one.interval]) for name, one in kept.items()}

        whole = what_is_shown if options.refit else made_from | {"neighbours": options.neighbours}
        found = self.cache.get("faithful", whole, make_faithful)
        faithful = {name: Estimate(float(one[0]), (float(one[1]), float(one[2]))) for name, one in found.items()}
        self.parts.begin("neighbours on the maps")
        near = {"full": seen["nearest"]} | {
            name: nearest_labels(old, labels, new, options.neighbours, jobs=self.jobs)
            for name, (old, new) in maps.items()
        }
        self.parts.begin("figures and tables")
        exhibits = []
        for name, (old, new) in maps.items():
            runs = [
                Mapped(slug, one, *halves)
                for (slug, one), halves in zip(pairs.items(), _halves(new, pairs), strict=True)
            ]
            exhibits.append(
                map_exhibit(
                    name, old, labels, runs, faithful[name], options.neighbours,
                    explained=axes.explained.tolist() if name == "pca" else (), joint=options.refit and name == "tsne",
                )
            )  # fmt: skip
        parts = {name: list(_halves(values, pairs)) for name, values in near.items()}
        shares = [
            (one, {name: Shares.of(one, *halves[number]) for name, halves in parts.items()})
            for number, one in enumerate(pairs.values())
        ]
        return [*exhibits, neighbour_exhibit(shares, options.neighbours, faithful)]

    def _sample(self, pairs: "Mapping[str, Pairs]", training: Dataset) -> np.ndarray:
        """The ids of the training images that the maps are made of."""
        free = np.ones(len(training), dtype=bool)
        if training is self.subject.dataset:  # an attacked image must not be among its own neighbours
            free[np.concatenate([one.image for one in pairs.values()])] = False
        order = np.random.default_rng(self.options.seed).permutation(np.flatnonzero(free))
        return np.sort(order[: self.options.points])

    def _tsne(
        self, points: np.ndarray, new: np.ndarray, made_from: Mapping[str, Any], what_is_shown: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        from analysis.embeddings import EXAGGERATED, ITERATIONS, joint_tsne, placed, tsne

        options = self.options
        with progress(EXAGGERATED + ITERATIONS, "t-SNE", "steps") as bar:
            how: dict[str, Any] = {
                "perplexity": options.perplexity, "seed": options.seed, "jobs": self.jobs, "on_part": self.parts.begin,
                "on_steps": bar.advance,
            }  # fmt: skip
            if options.refit:
                both = self.cache.get(
                    "joint",
                    what_is_shown,
                    lambda: dict(zip(("old", "new"), joint_tsne(points, new, **how), strict=True)),
                )
                return both["old"], both["new"]
            old = self.cache.get("tsne", made_from, lambda: {"coordinates": tsne(points, **how)})["coordinates"]

        def place() -> dict[str, np.ndarray]:
            self.parts.begin("transform")
            return {"coordinates": placed(points, old, new, seed=options.seed, jobs=self.jobs)}

        return old, self.cache.get("placed", what_is_shown, place)["coordinates"]

    def activations(self, pairs: "Mapping[str, Pairs]") -> "list[Exhibit]":
        """The changes of activations, and the maps of them where the model has convolutions."""
        from analysis.figures.activations import Changed, Pictured, change_exhibit, map_of_changes_exhibit

        changed: list[Changed] = []
        pictured: list[Pictured] = []
        with progress(sum(map(len, pairs.values())), "activations") as bar:
            for slug, one in pairs.items():
                self.parts.begin("activations")
                changed.append(Changed(slug, one, self._changes(one, bar.advance)))
                won, lost = np.flatnonzero(one.success), np.flatnonzero(~one.success)
                rows = np.concatenate([
                    won[: max(PICTURED // 2, PICTURED - len(lost))], lost[: max(PICTURED // 2, PICTURED - len(won))]
                ])  # fmt: skip
                maps = self._change_maps(one, rows)
                if len(maps) > 1:
                    pictured.append(Pictured(slug, one, rows, maps))
        self.parts.begin("figures and tables")
        return [change_exhibit(changed), *([map_of_changes_exhibit(pictured)] if pictured else [])]

    def _changes(self, one: "Pairs", on_images: Callable[[int], object]) -> Any:
        from analysis.activations import Changes, Layer, activation_changes

        def make() -> dict[str, np.ndarray]:
            found = activation_changes(
                self.model, one.clean, one.adversarial, one.image, seed=self.options.seed, on_images=on_images
            )
            arrays = {name: getattr(found, name) for name in Changes.__dataclass_fields__ if name != "layers"}
            return arrays | {
                "names": np.array([layer.name for layer in found.layers]),
                "kinds": np.array([layer.kind for layer in found.layers]),
            }

        arrays = self.cache.get("activations", self._made_from(**_hashes(one), seed=self.options.seed), make)
        layers = zip(arrays.pop("names"), arrays.pop("kinds"), strict=True)
        return Changes(layers=tuple(Layer(str(name), str(kind)) for name, kind in layers), **arrays)

    def _change_maps(self, one: "Pairs", rows: np.ndarray) -> dict[str, np.ndarray]:
        from analysis.activations import change_maps

        return change_maps(self.model, one.clean[rows], one.adversarial[rows])

    def _representations(self, images: np.ndarray, title: str) -> np.ndarray:
        from analysis.embeddings import representations

        self.parts.begin("representations")
        with progress(len(images), title) as bar:
            return representations(self.model, images, bar.advance)

    def _made_from(self, **more: Any) -> dict[str, Any]:
        """What decides all that is computed here."""
        from analysis import activations, embeddings, statistics

        modules = (activations, embeddings, statistics)
        code = hashlib.sha256(b"".join(Path(str(module.__file__)).read_bytes() for module in modules))
        return {
            "model": self.subject.recipe.given_hash,
            "device": DenseEvaluator(self.model).device.type,
            "code": code.hexdigest(),
            **versions("openTSNE", "scikit-learn", "scipy"),
            **more,
        }


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def _hashes(one: "Pairs") -> dict[str, str]:
    return {
        "clean": hash_of_images(one.clean),
        "adversarial": hash_of_images(one.adversarial),
        "image": _digest(one.image),
    }


def _halves(rows: np.ndarray, pairs: "Mapping[str, Pairs]") -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Takes apart what is of all runs, one behind the other: of each its clean images, then its adversarial ones."""
    start = 0
    for one in pairs.values():
        middle, end = start + len(one), start + 2 * len(one)
        yield rows[start:middle], rows[middle:end]
        start = end


def _publish(
    out: Path,
    subject: Subject,
    options: AnalysisOptions,
    exhibits: "Sequence[Exhibit]",
    parts: Parts,
) -> None:
    """Writes ``analysis.json``."""
    found = {
        "command": exhibits[0].command,
        "model": {"reference": subject.recipe.reference, "hash": subject.recipe.given_hash},
        "data": {"name": subject.dataset.name, "split": subject.dataset.split, "hash": subject.data_hash},
        "options": options.model_dump(),
        "findings": {exhibit.key: exhibit.finding for exhibit in exhibits},
        "findings of each run": {exhibit.key: dict(exhibit.by_run) for exhibit in exhibits if exhibit.by_run},
        "notes": {exhibit.key: list(exhibit.notes) for exhibit in exhibits},
        "seconds": {name: {"wall": round(p.wall, 3), "cpu": round(p.cpu, 3)} for name, p in parts.seconds.items()},
        "versions": versions("openTSNE", "scikit-learn", "scipy"),
    }
    write_whole(out / "analysis.json", (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["analyze", *sys.argv[1:]]))
