"""Commands that pages print, read again by the command line."""

import re
import shlex
from collections.abc import Sequence
from html import unescape
from pathlib import Path

import pytest
from cyclopts import App

from jobs import analyze, compact, detect, evaluate, run, status, transfer
from jobs.typed import changed, command, flags, path


def read(app: App, words: Sequence[str]) -> dict[str, object]:
    """The arguments that a command takes words for."""
    return dict(app.parse_args(words, exit_on_error=False, print_error=False)[1].arguments)


def require_made_by(page: Path, app: App, given: list[str]) -> None:
    """The command at the foot of a page asks for what was given, its name and then its words."""
    footer = page.read_text().split("<footer>")[1].split("</footer>")[0]
    code = re.search(r"<code>(.*?)</code>", footer)
    assert code
    words = shlex.split(unescape(re.sub("</?span>", "", code[1])))
    assert words[:2] == ["brittle", given[0]]
    assert read(app, words[2:]) == read(app, given[1:])


MODEL = ["--model", "a b/net", "--data", "mnist"]


@pytest.mark.parametrize(
    ("app", "given"),
    [
        (analyze.app, ["a b/x", "--points", "50", "--refit", "--perplexity", "1e1", "--training-data", "x$", "--out",
                       "o"]),
        (evaluate.app, [*MODEL, "--norm", "l2", "--epsilon", "0.1", "--correct", "--ids", "1,2", "--std", "-1e-3",
                        "--require", "0.9", "--accept-undecided", "--max-seconds", "60", "--weights", "w x",
                        "--cpus-per-worker", "2", "--out", "o"]),
        (evaluate.app, [*MODEL, "--pixels", "1", "--limit", "7", "--all-attacks", "--out", "o"]),
        (detect.app, ["vae-kl,epochs=5", "magnet", *MODEL, "--no-few-pixel", "--training-seeds", "3", "--foreign",
                      "none", "--networks", "n n", "--out", "o"]),
        (transfer.app, ["--models", "a b,c", "--data", "mnist", "--surrogates", "half,mlp", "--epsilon", "0.2",
                        "--out", "o"]),
        (evaluate.app, ["--model=-dash", "--data", "new\nline", "--weights", "it's \"é 😀\"", "--out", "o"]),
        (run.app, ["--full", "--sample", "9", "--detector", "vae-kl,epochs=5", "--out", "o"]),
    ],
)  # fmt: skip
def test_what_is_printed_is_read_as_what_was_given(app: App, given: list[str]) -> None:
    bound = read(app, given)
    options = [value for value in bound.values() if hasattr(value, "model_dump")]
    plain = {name: value for name, value in bound.items() if value not in options}
    words = [str(word) for name in ("runs", "detectors") for word in plain.pop(name, ())]
    printed = shlex.split(command(app.name[0], *words, *changed(*options), *flags(plain)))
    assert printed[:2] == ["brittle", app.name[0]]
    assert read(app, printed[2:]) == bound


@pytest.mark.parametrize("name", ["a b%", "new\nline", 'it\'s "q"', "-dash", "é😀", "$HOME;`x`", "--out", "-1/255"])
def test_paths_of_any_name_are_read_as_they_are(name: str) -> None:
    assert Path(str(read(status.app, shlex.split(command("status", path(name)))[2:])["run"])) == Path(name)
    words = shlex.split(command("compact", path(name)))
    assert Path(str(read(compact.app, words[2:])["run"])) == Path(name)


def test_what_needs_no_word_has_none() -> None:
    given = {"one": None, "two": "", "three": False, "fo_ur": [1, 2], "five": "x y"}
    assert flags(given) == ["--no-three", "--fo-ur", "1", "2", "--five", "x y"]
    assert command("report", *flags({"out": "x y"})) == "brittle report --out 'x y'"
