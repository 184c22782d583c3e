"""``brittle compare``: two runs or two evaluations of the same images, row by row."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from jobs.evaluation import EvaluationFolder
from jobs.examples import examples
from jobs.exits import Exit
from jobs.frozen import on_disk
from jobs.progress import say
from jobs.recorded import RecordedRun, open_run
from jobs.typed import word
from workers.errors import WrongInput
from workers.files import require_place, write_whole
from workers.parquet import read_table
from workers.places import Place
from workers.results import Status

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.comparison import Comparison
    from workers.attacks import Attack

__all__ = ["app"]

COLUMNS = ["image_id", "target", "status", "success", "l0", "l2", "linf", "queries"]
"""Of a run's rows, what is compared: the images themselves are not read."""

SIGNIFICANT = 0.05
"""McNemar's p below which one is called worse."""

VERDICT = "comparison.json"
"""Written last; a folder that has it may be written over."""

_NAMES = {"l0": "L0", "l2": "L2", "linf": "L∞", "queries": "queries"}

app = App(
    name="compare",
    help="""Compare two runs, or two evaluations, of the same images: two models, two versions or two attacks.

    Each row is set beside that of the same image and target, runs at several budgets at each budget that both have.
    Only rows that both searched to an end count: an image that one of the models misclassifies is left out.
    """,
    help_epilogue=examples(
        "brittle compare RUN_OF_MODEL RUN_OF_DEFENDED",
        "brittle compare RUN_A RUN_B --out COMPARISON",
        "brittle compare EVALUATION_OF_LAST_WEEK EVALUATION --require no-worse --margin 0.01",
    ),
)


@app.default
def compare(
    first: str,
    second: str,
    /,
    *,
    out: str | None = None,
    require: str | None = None,
    margin: Annotated[float, Parameter(negative="")] = 0.0,
) -> int:
    """
    Args:
        first: A, a folder of brittle attack, or its URI, or of brittle evaluate.
        second: B, another of the same kind.
        out: Folder for comparison.json, the table as Parquet and CSV, and the figures.
        require: no-worse: exit code 1 when B is shown to be more brittle, more often broken or less robust, than A.
        margin: By how much it may be, as a share of the images.
    """
    if require not in (None, "no-worse"):
        raise WrongInput(f"--require: expected no-worse, got {require}")
    if not 0 <= margin <= 1:
        raise WrongInput(f"--margin: expected a share from 0 to 1, got {margin:g}")
    if margin and not require:
        raise WrongInput("--margin: goes with --require")
    folder = _free(out) if out else None
    evaluations = [_is_evaluation(one) for one in (first, second)]
    if evaluations[0] != evaluations[1]:
        raise WrongInput(f"{first} and {second}: expected two runs or two evaluations, got one of each")
    a, b = (_Side.of_evaluation(one) if evaluations[0] else _Side.of_run(one) for one in (first, second))
    a.require_same_images(b)
    found, warnings = _compared(a, b), a.differences(b)
    for warning in warnings:
        say(f"note: {warning}")
    print(f"A  {a.title}\nB  {b.title}")
    for one in found:
        for line in _lines(one, a.what):
            print(line)
    worse = [one for one in found if a.worse(one, margin)]
    if folder is not None:
        _write(folder, found, a, b, warnings)
        print(f"comparison in {folder / VERDICT}")
    if require and worse:
        where = ", ".join(one.name for one in worse if one.name)
        print("B is worse than A" + f" by more than {margin:.1%}" * bool(margin) + f", at {where}" * bool(where))
        return Exit.FAILED
    return Exit.DONE


@dataclass(frozen=True)
class _Side:
    """One of the two.

    Attributes:
        place: as the user named it.
        title: what was done to which model.
        what: a row may have: ``success`` of a search, or ``robust accuracy``.
        same: what must be the same of both, by name.
        asked: what may differ, but is told.
        tables: rows for each budget, with the name and value of the budget; None where there is none.
    """

    place: str
    title: str
    what: str
    same: dict[str, Any]
    asked: dict[str, Any]
    tables: "list[tuple[tuple[str, float] | None, str, pa.Table]]"

    @classmethod
    def of_run(cls, text: str) -> "_Side":
        """Reads a run.

        Raises:
            WrongInput: when it is none, or has no rows.
        """
        run = open_run(Place.of(text))
        frozen, attacks = run.plan.frozen, run.attacks
        done, tables = run.folder.read(run.plan, COLUMNS)
        if not done:
            raise WrongInput(f"{text}: has no results yet")
        if len(done) < run.plan.shards:
            say(f"note: {text}: {run.plan.shards - len(done)} of {run.plan.shards} shards are not done")
        towards = "untargeted" if frozen["target"] is None else f"towards {frozen['target']}"
        budget = None if attacks[0].BUDGET is None else {attacks[0].BUDGET}
        asked = {
            "attack": frozen["attack"],
            **{f"--{name.replace('_', '-')}": value for name, value in _parameters(run).items() if {name} != budget},
            "--target": frozen["target"],
            "--seed": frozen.get("seed"),
        }
        return cls(
            text,
            f"{text}: {frozen['attack']} {towards} on {run.plan.recorded['model']}",
            "success",
            {"data": frozen["data"], "split": frozen["split"]},
            asked,
            [(_budget(attack), attack.title, table) for attack, table in zip(attacks, tables, strict=True)],
        )

    @classmethod
    def of_evaluation(cls, text: str) -> "_Side":
        """Reads an evaluation.

        Raises:
            WrongInput: when it has no results yet, or is of another version.
        """
        import pyarrow as pa

        from analysis.robustness import Standing

        folder = EvaluationFolder(Place.of(text).path)
        asked = folder.read("evaluation.json")
        try:
            same = {"data": asked["data"], "split": asked["split"]}
            rows = read_table(folder.path / "images.parquet")
            model = str(asked["model"])[:12]
            robust = [standing in (Standing.ROBUST, Standing.CERTIFIED) for standing in rows["status"].to_pylist()]
            table = pa.table(
                {
                    "image_id": rows["image_id"],
                    "target": pa.nulls(len(rows), pa.int32()),
                    "status": pa.array([str(Status.SUCCESS if one else Status.EXHAUSTED) for one in robust]),
                    "success": robust,
                    "queries": rows["queries"],
                }
            )
        except FileNotFoundError:
            raise WrongInput(f"{text}: has no results yet") from None
        except (KeyError, OSError, pa.ArrowException) as error:
            raise WrongInput(f"{text}: its results cannot be read: {str(error).splitlines()[0]}") from None
        told = {name: asked.get(name) for name in ("norm", "epsilon", "pixels", "attacks", "correct", "seed")}
        return cls(text, f"{text}: model {model}", "robust accuracy", same, told, [(None, "", table)])

    def require_same_images(self, other: "_Side") -> None:
        """Refuses two that are of other images.

        Raises:
            WrongInput: naming what differs.
        """
        for name, value in self.same.items():
            if value != other.same[name]:
                short = [str(one)[:12] for one in (value, other.same[name])]
                raise WrongInput(
                    f"{other.place}: another {name} than {self.place} ({short[1]}, not {short[0]}): no row of one has "
                    "its like in the other"
                )

    def differences(self, other: "_Side") -> list[str]:
        """What else is not the same, so that a difference may be due to it; a sentence each."""
        if self.asked.get("attack") != other.asked.get("attack"):  # whose parameters say nothing of one another
            said = [" ".join(f"{name} {_shown(v)}" for name, v in side.asked.items()) for side in (self, other)]
            return [f"two attacks: A {said[0]}, B {said[1]}"]
        found = [(name, self.asked.get(name), other.asked.get(name)) for name in self.asked | other.asked]
        return [f"{name} differs: A {_shown(one)}, B {_shown(two)}" for name, one, two in found if one != two]

    def worse(self, found: "Comparison", margin: float) -> bool:
        """Whether B is shown to be more brittle than A."""
        low, high = found.difference.interval
        beyond = low > margin if self.what == "success" else high < -margin
        # Of a few images that only one succeeds on, resampling alone would be too sure.
        return beyond and found.p < SIGNIFICANT


def _is_evaluation(text: str) -> bool:
    place = Place.of(text)
    return place.local and EvaluationFolder(place.path).exists


def _parameters(run: RecordedRun) -> dict[str, Any]:
    return run.attacks[0].model_dump(mode="json")


def _budget(attack: "Attack") -> tuple[str, float] | None:
    return None if attack.BUDGET is None else (attack.BUDGET, getattr(attack, attack.BUDGET))


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _compared(a: _Side, b: _Side) -> "list[Comparison]":
    """At each budget that both have; of two searches with one budget each, these.

    Raises:
        WrongInput: when there is no such budget, or hardly a row in common.
    """
    from analysis.comparison import compare

    found = []
    for name, one, other in _pairs(a, b):
        try:
            found.append(compare(one, other, name=name))
        except ValueError as error:
            at = f" at {name}" if name else ""
            raise WrongInput(f"{a.place} and {b.place}: too few rows in common{at}: {error}") from None
    return found


def _pairs(a: _Side, b: _Side) -> "Iterator[tuple[str, pa.Table, pa.Table]]":
    if len(a.tables) == len(b.tables) == 1:
        yield "", a.tables[0][2], b.tables[0][2]
        return
    theirs = {budget: table for budget, _, table in b.tables}
    both = [(budget, table) for budget, _, table in a.tables if budget is not None and budget in theirs]
    if not both:
        titles = [", ".join(title for _, title, _ in side.tables) for side in (a, b)]
        raise WrongInput(f"{a.place} and {b.place}: no budget in common: {titles[0]}; {titles[1]}")
    for budget, table in both:
        name, value = budget
        yield f"--{name.replace('_', '-')} {word(value)}", table, theirs[budget]


def _lines(one: "Comparison", what: str) -> Iterator[str]:
    """What is printed of a comparison."""
    if one.name:
        yield f"{one.name}:"
    rows = f"{one.first.total} rows of {one.difference.images} images that both searched"
    left = f"; left out {one.unpaired[0]} of A and {one.unpaired[1]} of B" if any(one.unpaired) else ""
    yield f"  {rows}{left}"
    yield f"  {what} of A {one.first}"
    yield f"  {what} of B {one.second}"
    if one.only_first or one.only_second:
        yield f"  B less A {one.difference}"
    else:
        _, most = one.apart.interval or (0.0, 1.0)
        yield f"  B less A +0.0 points: no row tells them apart (95 %: at most {most:.1%} of such rows would)"
    p = f"; McNemar's exact p{' by image' * one.first.clustered} {one.p:.3g}"
    yield f"  both {one.both}, only A {one.only_first}, only B {one.only_second}, neither {one.neither}{p}"
    for name, found in one.paired.items():
        where = "where both succeed" if name != "queries" else "a row"
        digits = ",.0f" if name in ("l0", "queries") else ".3g"
        first, second, apart = (format(v, digits) for v in (found.first, found.second, found.difference.value))
        sign = "+" if found.difference.value >= 0 else ""
        low, high = (format(end, digits) for end in found.difference.interval)
        around = f"{low} to {high}, {found.images} images" if found.images > 1 else "1 image"
        yield f"  {_NAMES[name]} {where}, median: A {first}, B {second}; B less A {sign}{apart} ({around})"


def _free(out: str) -> Path:
    """A folder to write to.

    Raises:
        WrongInput: when it holds something else.
    """
    folder = on_disk("--out", out)
    if folder.exists() and any(folder.iterdir()) and not (folder / VERDICT).is_file():
        raise WrongInput(f"--out {out}: exists and is not a comparison's folder")
    require_place(folder)
    return folder


def _write(folder: Path, found: "list[Comparison]", a: _Side, b: _Side, warnings: list[str]) -> None:
    """Writes the table and the figures, then what they rest on.

    Raises:
        WrongInput: when it cannot.
    """
    from analysis.comparison import to_json
    from analysis.exhibits import write_exhibits
    from analysis.figures.comparison import comparison_exhibits

    content = {
        "first": a.place,
        "second": b.place,
        "compared": a.what,
        "differs": warnings,
        "comparisons": [to_json(one) for one in found],
    }
    try:
        first, second = (f"{letter} ({Place.of(one.place).name})" for letter, one in (("A", a), ("B", b)))
        write_exhibits(comparison_exhibits(found, first, second, a.what), folder)
        write_whole(folder / VERDICT, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise WrongInput(f"--out {folder}: {error.strerror}") from None


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["compare", *sys.argv[1:]]))
