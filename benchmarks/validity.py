"""The evaluator tried on a zoo: does it flag or break broken defenses, and let genuine models pass?

    python benchmarks/validity.py --out FOLDER [--limit 100] [--epsilon 0.3] [--only NAME…] [--workers 2]
    python benchmarks/validity.py --train
    python benchmarks/validity.py --list

Every model is evaluated by `brittle evaluate`, and the same command goes on where it was stopped. A broken defense
counts as caught when its evaluation is invalid or leaves it at most 5 % robust accuracy; a genuine model counts as
flagged when its evaluation is invalid. What the models stand on is trained first, minutes, and kept in ``$BRITTLE_ZOO``
or the user's cache. The shares carry 95 % Wilson intervals.
"""

import argparse
import contextlib
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
import workers  # noqa: F401 - before torch: it sets what OpenMP and MKL read when they start

# isort: split

from torch import nn

from analysis.statistics import Rate
from workers.errors import WrongInput
from workers.sources import load_data
from zoo import bases, broken, genuine

HERE = Path(__file__).resolve().parent

BROKEN_AT = 0.05
"""A model with at most this robust accuracy is broken, whatever its checks say."""

INVALID = "evaluation invalid"


@dataclass(frozen=True)
class Model:
    """One of the zoo.

    Attributes:
        kind: ``broken`` or ``genuine``.
        function: what makes it.
    """

    kind: str
    function: Callable[[], nn.Module]

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.__name__

    @property
    def reference(self) -> str:
        """As ``--model`` takes it, from this folder."""
        return f"{self.function.__module__}:{self.name}"


@dataclass(frozen=True)
class Found:
    """What an evaluation came to.

    Attributes:
        model: that was evaluated.
        verdict: ``verdict.json``; empty when the command failed.
        seconds: that the evaluation took, all its starts together.
        error: the command's last line when it failed.
    """

    model: Model
    verdict: dict[str, Any]
    seconds: float
    error: str = ""

    @property
    def flagged(self) -> bool:
        """Whether the evaluation says of itself that its number is void."""
        return self.verdict.get("verdict") == INVALID

    @property
    def caught(self) -> bool:
        """Whether it is flagged, or shown to have next to no robust accuracy."""
        return self.flagged or (not self.error and self.verdict["robust_accuracy"]["value"] <= BROKEN_AT)

    @property
    def as_it_should(self) -> bool:
        """Whether a broken defense is caught, a genuine model not flagged."""
        return not self.error and (self.caught if self.model.kind == "broken" else not self.flagged)

    def checks(self, state: str) -> list[str]:
        """The names of the checks in a state."""
        return [check["name"] for check in self.verdict.get("checks", ()) if check["state"] == state]

    def line(self) -> str:
        """Its row of the table."""
        start = f"{'' if self.as_it_should else '!':<1} {self.model.name:<27} {self.model.kind:<8}"
        if self.error:
            return f"{start} {self.error[:150]}"
        low, high = self.verdict["robust_accuracy"]["interval"]
        robust = f"{self.verdict['robust_accuracy']['value']:.0%} ({low:.0%}–{high:.0%})"
        told = [f"{', '.join(names)} {state}" for state in ("failed", "remedied") if (names := self.checks(state))]
        return (
            f"{start} {self.verdict['clean_accuracy']['value']:>6.1%} {robust:>16} {self.seconds:>7.1f}  "
            f"{self.verdict['verdict']:<18}  {'; '.join(told)}"
        ).rstrip()


def main() -> int:
    """Evaluates the zoo and prints the table; 1 when a model is not judged as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder that keeps the evaluations, to go on there")
    parser.add_argument("--limit", type=int, default=100, help="the first so many test digits")
    parser.add_argument("--epsilon", type=float, default=0.3, help="the L∞ budget")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="these models alone; broken and genuine name all such"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="of each evaluation")
    parser.add_argument("--address", help="a Ray that runs already; one is started for each evaluation when absent")
    parser.add_argument("--train", action="store_true", help="train what the models stand on, and end")
    parser.add_argument("--list", action="store_true", help="say what the models are, and end")
    options = parser.parse_args()
    models = [model for model in zoo() if not options.only or {model.name, model.kind} & set(options.only)]
    if unknown := set(options.only or ()) - {word for model in models for word in (model.name, model.kind)}:
        parser.error(f"--only: no such model: {', '.join(sorted(unknown))}")
    if options.list:
        for model in models:
            print(f"{model.kind:<8} {model.name:<27} {inspect.cleandoc(model.function.__doc__ or '')}")
        return 0
    if not options.train and options.out is None:
        parser.error("--out FOLDER is needed")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the epochs of a training are no part of the table
            bases.train(load_data("mnist", "train"), load_data("mnist", "test"), say)
    except WrongInput as error:
        sys.exit(str(error))
    if options.train:
        return 0
    flags = ["--limit", str(options.limit), "--epsilon", str(options.epsilon), "--workers", str(options.workers)]
    flags += ["--address", options.address] if options.address else []
    print(
        f"{platform.machine()}, {options.workers} workers; {options.limit} MNIST test digits, L∞ ε = {options.epsilon}"
    )
    print(f"  {'model':<27} {'kind':<8} {'clean':>6} {'robust, at most':>16} {'s':>7}  {'verdict':<18}  checks")
    found = []
    for number, model in enumerate(models, 1):
        say(f"{number} of {len(models)}: {model.name}")
        found.append(evaluated(model, options.out / model.name, flags))
        print(found[-1].line(), flush=True)
    print("\n".join(summary(found)))
    return 0 if all(one.as_it_should for one in found) else 1


def zoo() -> Iterator[Model]:
    """All models, in the order of their modules."""
    for kind, module in (("broken", broken), ("genuine", genuine)):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__ and _makes(function):
                yield Model(kind, function)


def evaluated(model: Model, out: Path, flags: Sequence[str]) -> Found:
    """Evaluates a model in a process of its own, so that nothing that it does reaches the next one."""
    command = [sys.executable, "-m", "jobs.evaluate", "--model", model.reference, "--data", "mnist"]
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    began = time.monotonic()
    ended = subprocess.run(
        [*command, "--out", str(out.resolve()), *flags],
        cwd=HERE,  # where the workers look the zoo up
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.monotonic() - began
    if ended.returncode == 130:
        raise KeyboardInterrupt
    verdict = out / "verdict.json"
    if ended.returncode == 2 or not verdict.exists():
        lines = ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"]
        return Found(model, {}, took, lines[-1])
    read = json.loads(verdict.read_text())
    error = f"{failed} images failed" if (failed := read["images"]["failed"]) else ""
    return Found(model, read, read["spent"]["seconds"], error)


def summary(found: Sequence[Found]) -> Iterator[str]:
    """The two shares, which models are not judged as they should be, and what each check cost."""
    broken_ones, genuine_ones = ([one for one in found if one.model.kind == kind] for kind in ("broken", "genuine"))
    caught = Rate(sum(one.caught for one in broken_ones), len(broken_ones))
    flagged = Rate(sum(one.flagged for one in genuine_ones), len(genuine_ones))
    yield f"\nbroken, flagged or at most {BROKEN_AT:.0%} robust: {caught}"
    yield f"genuine, flagged: {flagged}"
    if wrong := [one.model.name for one in found if not one.as_it_should]:
        yield f"not judged as they should be (!): {', '.join(wrong)}"
    cost: Counter[str] = Counter()
    states: dict[str, Counter[str]] = {}
    for one in found:
        for check in one.verdict.get("checks", ()):
            cost[check["name"]] += check.get("seconds") or 0.0
            states.setdefault(check["name"], Counter())[check["state"]] += 1
    total = sum(one.seconds for one in found)
    yield f"{total:.0f} s in all" + (", of which for each check:" if cost else "")
    for name, seconds in cost.most_common():
        counted = ", ".join(f"{count} {state}" for state, count in states[name].most_common())
        yield f"  {name:<28} {seconds:>8.1f} s {seconds / total if total else 0:>6.1%}  {counted}"


def _makes(function: Callable[..., Any]) -> bool:
    """Whether a function makes a model: it takes nothing, and says that it returns one."""
    signature = inspect.signature(function)
    return not signature.parameters and signature.return_annotation is nn.Module


def say(line: str) -> None:
    """A line of progress, beside the table."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
