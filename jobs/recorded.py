"""Runs that are already on disk, with what they name loaded again."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.store import Plan, RunFolder
from jobs.subject import Subject, SubjectOptions, load_subject
from workers.attacks import Attack, attack_named
from workers.errors import WrongInput
from workers.places import Place
from workers.remedies.checks import UNPROBED, Probe
from workers.remedies.remedies import Remedies

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RecordedRun", "open_run", "open_runs", "require_one_subject", "require_runs", "runs_below"]

_FROZEN = {"attack", "parameters", "target", "split", "model", "data", "block", "batch"}
_RECORDED = {"model", "weights", "mean", "std", "data"}


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder and plan; its attack, subject and rows are read when asked for, the rows once.

    Attributes:
        name: what it is called, which no run that was opened with it is: its folder's name, or its path's end.
        key: likewise, for names of files and drawings: lower case, digits and hyphens.
    """

    folder: RunFolder
    plan: Plan
    name: str
    key: str

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The attack with the run's parameters, at each of its budgets.

        Raises:
            WrongInput: when this version does not know it.
        """
        try:
            kind = attack_named(str(self.plan.frozen["attack"]))
        except WrongInput as error:
            raise WrongInput(f"{self.folder.place}: made by an attack that is not here: {error}") from None
        return kind.at_each_budget(self.plan.frozen["parameters"])

    def of(self, what: str) -> str:
        """The run's ``data`` or ``model`` as a hash, or ``split``; of a model as it was given, whatever searched it."""
        frozen = str(self.plan.frozen[what])
        return str(self.plan.recorded.get("given", frozen)) if what == "model" else frozen

    @cached_property
    def tables(self) -> "list[tuple[Attack, pa.Table]]":
        """The rows that are done, for each budget, images included.

        Raises:
            WrongInput: when there are none.
        """
        return list(zip(self.attacks, self.folder.tables(self.plan), strict=True))

    @cached_property
    def by_products(self) -> "list[pa.Table | None]":
        """For each budget what the attack left beside the rows, by the same key; None where it leaves nothing."""
        return self.folder.beside(self.plan)

    @property
    def probe(self) -> Probe:
        """What was found out about the model before the search.

        Raises:
            WrongInput: when that is of another version.
        """
        try:
            return Probe.of(self.plan.recorded["probe"]) if "probe" in self.plan.recorded else UNPROBED
        except (KeyError, TypeError, ValueError) as error:
            raise self._stranger(error) from None

    @property
    def remedies(self) -> Remedies:
        """Under which the model was searched.

        Raises:
            WrongInput: when they are of another version.
        """
        try:
            return Remedies.of(self.plan.recorded.get("remedies", {}))
        except TypeError as error:
            raise self._stranger(error) from None

    @property
    def checks(self) -> list[str]:
        """What was found out about the model and what was done about it in this run, a sentence each.

        Raises:
            WrongInput: when that is of another version.
        """
        return self.probe.told(self.remedies)

    def _stranger(self, error: Exception) -> WrongInput:
        return WrongInput(f"{self.folder.place}: its run.json has remedies or checks that are not here: {error}")

    def subject(self, model: str | None = None, weights: Path | None = None, data: str | None = None) -> Subject:
        """Loads the model and data of the run, from where it names them or from elsewhere.

        The model answers as it did there; what was searched in its place is not needed again.

        Raises:
            WrongInput: when they are absent, or not those of the run.
        """
        recorded, frozen = self.plan.recorded, self.plan.frozen
        split = None if frozen["split"] == "all" else frozen["split"]
        options = SubjectOptions(
            model=model or recorded["model"],
            weights=weights or (Path(recorded["weights"]) if recorded["weights"] else None),
            data=data or recorded["data"],
            split=split,
            layout=recorded.get("layout"),
            mean=recorded["mean"],
            std=recorded["std"],
        )
        subject = load_subject(options)
        for what, have, want in (
            ("model", subject.recipe.content_hash, recorded.get("given", frozen["model"])),
            ("data", subject.data_hash, frozen["data"]),
        ):
            if have != want:
                name = options.model if what == "model" else options.data
                hint = " (a function that draws new weights at each call needs --weights)" * (what == "model")
                raise WrongInput(
                    f"{self.folder.place}: {what} {name} is not the one of this run: its content changed{hint}"
                )
        return subject.searched_as(self.remedies)


def runs_below(text: str) -> list[tuple[str, Place]]:
    """The runs of a local folder that holds several, as of an evaluation, in the order in which they were started.

    Returns:
        What each is called and where it is; the folder itself where it holds none, a run or not.
    """
    place = Place.of(text)
    if not place.local or (place.path / "run.json").exists():
        return [(text, place)]
    below = [*place.path.glob("runs/*/run.json"), *place.path.glob("*/runs/*/run.json")]
    below.sort(key=lambda path: path.stat().st_mtime_ns)
    return [(str(x.parent.relative_to(place.path)), Place.of(x.parent)) for x in below] or [(text, place)]


def require_runs(texts: Sequence[str]) -> list[Place]:
    """The folders of runs, each named by itself: those of one evaluation are of other images each.

    Raises:
        WrongInput: for a folder that holds several, naming them.
    """
    for text in texts:
        if len(below := runs_below(text)) > 1 or below[0][1] != Place.of(text):
            place = Place.of(text)
            names = ", ".join(str(run.path) for _, run in below[:3]) + ", …" * (len(below) > 3)
            own = f"its page is {place.path / 'page.html'}; " * (place.path / "page.html").exists()
            raise WrongInput(f"{text}: holds {len(below)} runs; {own}name runs of it: {names}")
    return [Place.of(text) for text in texts]


def require_one_subject(runs: Sequence[RecordedRun]) -> None:
    """Refuses runs of several models or data sets; one model under several remedies is one.

    Raises:
        WrongInput: naming the first that differs, and in what.
    """
    for other in runs[1:]:
        for what in ("model", "data", "split"):
            if other.of(what) != runs[0].of(what):
                raise WrongInput(f"{other.folder.place}: another {what} than {runs[0].folder.place}")


def open_run(place: Place) -> RecordedRun:
    """Opens a run's folder.

    Raises:
        WrongInput: when it is none, or its plan is broken.
    """
    return open_runs([place])[0]


def open_runs(places: Sequence[Place]) -> list[RecordedRun]:
    """Opens the folders of runs that are shown together.

    Raises:
        WrongInput: when one is none, or its plan is broken, or one is given twice.
    """
    from analysis.exhibits import keys_of

    names = _names(places)
    return [
        RecordedRun(folder, _plan(folder), name, key)
        for folder, name, key in zip(map(RunFolder, places), names, keys_of(names), strict=True)
    ]


def _names(places: Sequence[Place]) -> list[str]:
    """The name of each folder, with as much of the path before it as tells it from all others.

    Raises:
        WrongInput: when one is given twice.
    """
    if twice := [place for place, count in Counter(place.resolve() for place in places).items() if count > 1]:
        raise WrongInput(f"{twice[0]}: is given twice")
    paths = [(os.path.abspath(place.path) if place.local else place.uri).split("/") for place in places]  # noqa: PTH100
    ends = Counter("/".join(path[-n:]) for path in paths for n in range(1, len(path)))
    return [
        next((end for n in range(1, len(path)) if ends[end := "/".join(path[-n:])] == 1), "/".join(path))
        for path in paths
    ]


def _plan(folder: RunFolder) -> Plan:
    plan = folder.plan()
    lacking = sorted((_FROZEN - set(plan.frozen)) | (_RECORDED - set(plan.recorded)))
    if lacking:
        raise WrongInput(f"{folder.place}: its run.json lacks {', '.join(lacking)}")
    return plan
