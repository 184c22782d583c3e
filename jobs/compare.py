"""``brittle compare``: two runs or two evaluations of the same images, row by row."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, Token

from jobs.evaluation import EvaluationFolder
from jobs.examples import examples
from jobs.exits import Exit
from jobs.frozen import on_disk
from jobs.progress import say
from jobs.recorded import RecordedRun, open_run
from jobs.typed import word
from workers.budgets import number
from workers.errors import WrongInput
from workers.files import require_place, write_whole
from workers.parquet import read_table
from workers.places import Place
from workers.remedies.checks import LOOK, State
from workers.results import Status

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.comparison import Comparison
    from workers.attacks import Attack

__all__ = ["app"]

COLUMNS = ["image_id", "label", "target", "status", "success", "l0", "l2", "linf", "queries"]
"""Of a run's rows, what is compared: the images themselves are not read."""

SIGNIFICANT = 0.05
"""McNemar's p below which it tells two searches apart."""

VERDICT = "comparison.json"
"""Written last; a folder that has it may be written over."""

_NAMES = {"l0": "L0", "l2": "L2", "linf": "L∞", "queries": "queries"}

app = App(
    name="compare",
    help="""Compare two runs, or two evaluations, of the same images: two models, two versions or two attacks.

    Each row is set beside that of the same image and target, runs at several budgets at each budget that both have.
    Only rows that both were asked about count: an image that one of the models misclassifies is left out, but --require
    counts it as broken. A search that failed counts both ways.

    Two evaluations compare when they asked the same: threat, images, seed and attacks; an evaluation that is invalid or
    unfinished compares with nothing: exit code 1. Which of two is better is decided by the interval of the difference,
    which is no narrower than McNemar's exact test.
    """,
    help_epilogue=examples(
        "brittle compare RUN_OF_MODEL RUN_OF_DEFENDED",
        "brittle compare RUN_A RUN_B --out COMPARISON",
        "brittle compare EVALUATION_OF_LAST_WEEK EVALUATION --require no-worse --margin 0.01",
    ),
)


def _share(kind: type[float], tokens: Sequence[Token]) -> float:
    return number(tokens[0].value)


@app.default
def compare(
    first: str,
    second: str,
    /,
    *,
    out: str | None = None,
    require: str | None = None,
    margin: Annotated[float, Parameter(negative="", converter=_share)] = 0.0,
) -> int:
    """
    Args:
        first: A, a folder of brittle attack, or its URI, or of brittle evaluate.
        second: B, another of the same kind.
        out: Folder for comparison.json, the table as Parquet and CSV, and the figures.
        require: no-worse: exit code 1 when B is shown to be more brittle, more often broken or less robust, than A, or
            more often broken or misclassified, and when that cannot be told: a run is unfinished, failed, was blind, or
            has rows of images that the other has none of. Both must have searched alike.
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
    a.require_same(b)
    warnings = a.differences(b)
    if require and warnings:
        raise WrongInput(f"--require: {a.place} and {b.place} did not search alike: {'; '.join(warnings)}")
    if void := [*a.void, *b.void]:
        for reason in void:
            print(f"nothing to compare: {reason}")
        return Exit.FAILED
    found = _compared(a, b)
    for warning in [*warnings, *a.doubts, *b.doubts]:
        say(f"note: {warning}")
    print(f"A  {a.title}\nB  {b.title}")
    for one in found:
        for line in _lines(one, a.what):
            print(line)
    if folder is not None:
        _write(folder, found, a, b, warnings)
        print(f"comparison in {folder / VERDICT}")
    return _judge(found, a, b, margin) if require else Exit.DONE


def _judge(found: "Sequence[Comparison]", a: "_Side", b: "_Side", margin: float) -> int:
    """Whether B is no worse than A, said; the exit code.

    B is worse where it is more often broken on the images that both were asked about, or more often broken or
    misclassified on those that both have a row of: else a model passes that has lost its accuracy.
    """
    from analysis.comparison import compare, with_misclassified
    from analysis.statistics import percent

    by = f" by more than {percent(margin)}" * bool(margin)
    whole = [compare(*map(with_misclassified, tables), name=name) for name, *tables in _pairs(a, b)]
    broken = [one.name for one in found if a.worse(one, margin)]
    lost = [one for one in whole if a.worse(one, margin) and one.name not in broken]
    if broken or lost:
        if where := ", ".join(filter(None, broken)):
            print(f"B is worse than A{by}, at {where}")
        elif broken:
            print(f"B is worse than A{by}")
        for one in lost:
            at = f", at {one.name}" * bool(one.name)
            print(f"B is worse than A{by}{at}: broken or misclassified, B less A {one.difference}")
        return Exit.FAILED
    open_ = [*a.doubts, *b.doubts]
    if failed := sum(max(one.unknown, other.unknown) for one, other in zip(found, whole, strict=True)):
        open_.append(f"{failed} rows failed in A or B; the same commands with --retry-failed search them again")
    for side, alone in zip((a, b), zip(*(one.unpaired for one in whole), strict=True), strict=True):
        if rows := sum(alone):
            open_.append(f"{rows} rows of {side.place} are of an image and target that the other was not asked about")
    for reason in open_:
        print(f"whether B is worse than A cannot be told: {reason}")
    if not open_:
        print(f"B is not shown to be worse than A{by}")
    return Exit.FAILED if open_ else Exit.DONE


@dataclass(frozen=True)
class _Side:
    """One of the two.

    Attributes:
        place: as the user named it.
        title: what was done to which model.
        what: a row may have: ``success`` of a search, or ``robust accuracy``.
        same: what must be the same of both, by name.
        asked: how it was searched; may differ, which is told, but where one of both is to be found worse.
        void: why there is no number that could be compared, a sentence each.
        doubts: why it does not show that something is no worse, a sentence each.
        tables: rows for each budget, with the name and value of the budget; None where there is none.
    """

    place: str
    title: str
    what: str
    same: dict[str, Any]
    asked: dict[str, Any]
    tables: "list[tuple[tuple[str, float] | None, str, pa.Table]]"
    void: Sequence[str] = ()
    doubts: Sequence[str] = ()

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
        doubts = []
        if len(done) < run.plan.shards:
            doubts.append(f"{text}: {run.plan.shards - len(done)} of {run.plan.shards} shards are not done")
        if blinding := run.probe.blinding(run.remedies):
            doubts.append(f"{text}: a search that may have been blind: {', '.join(blinding)}")
        towards = "untargeted" if frozen["target"] is None else f"towards {frozen['target']}"
        asked = {
            "attack": frozen["attack"],
            **{f"--{name.replace('_', '-')}": value for name, value in _parameters(run).items()},
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
            doubts=doubts,
        )

    @classmethod
    def of_evaluation(cls, text: str) -> "_Side":
        """Reads an evaluation.

        Raises:
            WrongInput: when it has no results yet, or is of another version.
        """
        import numpy as np
        import pyarrow as pa

        from analysis.robustness import Standing

        folder = EvaluationFolder(Place.of(text).path)
        asked = folder.read("evaluation.json")
        try:
            same = {"data": asked["data"], "split": asked["split"]}
            same |= {name: asked.get(name) for name in ("norm", "pixels", "correct", "seed")}
            same["ε in levels"] = asked.get("levels", asked.get("squared_levels"))
            same["attacks"] = frozenset(asked["attacks"].items())
            rows = read_table(folder.path / "images.parquet")
            same["images"] = frozenset(rows["image_id"].to_pylist())
            verdict = folder.read("verdict.json")
            model = str(asked["model"])[:12]
            standing = np.array(rows["status"].to_pylist(), dtype=object)
            robust = np.isin(standing, (Standing.ROBUST, Standing.CERTIFIED))
            status = np.where(robust, Status.SUCCESS, Status.EXHAUSTED).astype(object)
            status[(standing == Standing.ROBUST) & rows["error"].is_valid().to_numpy()] = Status.FAILED
            void = _void(text, verdict)
            unlooked = [x["reason"] for x in verdict["checks"] if (x["name"], x["state"]) == (LOOK, State.NOT_RUN)]
            doubts = [f"{text}: searches that may have been blind: its model {reason}" for reason in unlooked]
            table = pa.table(
                {
                    "image_id": rows["image_id"],
                    "label": rows["label"],
                    "target": pa.nulls(len(rows), pa.int32()),
                    "status": pa.array([str(one) for one in status]),
                    "success": status == Status.SUCCESS,
                    "queries": rows["queries"],
                }
            )
        except FileNotFoundError:
            raise WrongInput(f"{text}: has no results yet") from None
        except (KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
            raise WrongInput(f"{text}: its results cannot be read: {str(error).splitlines()[0]}") from None
        return cls(text, f"{text}: model {model}", "robust accuracy", same, {}, [(None, "", table)], void, doubts)

    def require_same(self, other: "_Side") -> None:
        """Refuses two that are of other images, and evaluations that asked something else.

        Raises:
            WrongInput: naming what differs.
        """
        for name, mine in self.same.items():
            theirs = other.same[name]
            if mine == theirs:
                continue
            if isinstance(mine, frozenset):  # of images, or of attacks with their parameters
                count = f"{len(mine & theirs)} of {len(mine)} and {len(theirs)} are the same"
                raise WrongInput(
                    f"{other.place}: other {name} than {self.place} ({count}): their numbers do not compare"
                )
            why = "their numbers do not compare"
            if name in ("data", "split"):
                why = "no row of one has its like in the other"
            short = [str(one)[:12] for one in (mine, theirs)]
            raise WrongInput(f"{other.place}: another {name} than {self.place} ({short[1]}, not {short[0]}): {why}")

    def differences(self, other: "_Side") -> list[str]:
        """What else is not the same, so that a difference may be due to it; a sentence each."""
        if self.asked.get("attack") != other.asked.get("attack"):  # whose parameters say nothing of one another
            said = [" ".join(f"{name} {_shown(v)}" for name, v in side.asked.items()) for side in (self, other)]
            return [f"two attacks: A {said[0]}, B {said[1]}"]
        budgets = [budget for side in (self, other) for budget, *_ in side.tables if len(side.tables) > 1 and budget]
        paired = {f"--{name.replace('_', '-')}" for name, _ in budgets}  # at each value that both have
        found = [(x, self.asked.get(x), other.asked.get(x)) for x in self.asked | other.asked if x not in paired]
        return [f"{name} differs: A {_shown(one)}, B {_shown(two)}" for name, one, two in found if one != two]

    def worse(self, found: "Comparison", margin: float) -> bool:
        """Whether B is shown to be more brittle than A."""
        low, high = found.difference.interval
        return low > margin if self.what == "success" else high < -margin


def _void(text: str, verdict: dict[str, Any]) -> list[str]:
    """Why the robust accuracy of an evaluation compares with nothing; none where it does."""
    found = []
    if verdict["robust_accuracy"]["void"] or verdict["verdict"] == "evaluation invalid":
        failed = [check["name"] for check in verdict["checks"] if check["state"] == "failed"]
        found.append(f"{text}: its robust accuracy is void ({', '.join(failed) or verdict['verdict']})")
    if contradicted := verdict["images"]["contradicted"]:
        found.append(f"{text}: {contradicted} images are both broken and certified")
    if unfinished := verdict["unfinished"]:
        found.append(f"{text}: its evaluation is unfinished: {', '.join(unfinished)} not run to their end")
    return found


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
    from analysis.statistics import percent

    if one.name:
        yield f"{one.name}:"
    rows = f"{one.first.total} rows of {one.difference.images} images that both were asked about"
    failed = f", {one.unknown} of them failed in A or B and count both ways" * bool(one.unknown)
    left = f"; left out {one.unpaired[0]} of A and {one.unpaired[1]} of B" if any(one.unpaired) else ""
    yield f"  {rows}{failed}{left}"
    yield f"  {what} of A {one.first}"
    yield f"  {what} of B {one.second}"
    if one.only_first or one.only_second or one.unknown:
        yield f"  B less A {one.difference}"
        low, high = one.difference.interval
        if low <= 0 <= high and one.p < SIGNIFICANT:
            yield "  the interval decides, and leaves room for none: McNemar's p counts images, whatever they gain"
    else:
        _, most = one.apart.interval or (0.0, 1.0)
        yield f"  B less A +0.0 points: no row tells them apart (95%: at most {percent(most)} of such rows would)"
    p = f"; McNemar's exact p{' by image' * one.first.clustered} {one.p:.3g}"
    yield f"  both {one.both}, only A {one.only_first}, only B {one.only_second}, neither {one.neither}{p}"
    for name, found in one.paired.items():
        where = "where both succeed" if name != "queries" else "a row"
        digits = ",.0f" if name in ("l0", "queries") else ".3g"
        first, second, apart = (format(v, digits) for v in (found.first, found.second, found.difference.value))
        sign = "+" if found.difference.value >= 0 else ""
        least, largest = (format(end, digits) for end in found.difference.interval)
        around = f"{least} to {largest}, {found.images} images" if found.images > 1 else "1 image"
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
