"""The documents: their examples run as they stand, their links lead somewhere, their flags are those of `--help`.

The examples of a page run in their order, in a folder of the page's own that has a trained `model`. What a block
needs said stands in a comment before it: ``<!-- not run: REASON -->``, or ``<!-- slow -->`` for one that takes
minutes; one kind runs without the other. A block of Python or YAML that begins
with a comment of a file's name is that file.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from jobs.main import main
from workers.attacks import ATTACKS, TOOLKITS
from workers.training.defenses import DEFENSES, defense_kind

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MANUAL = sorted((ROOT / "docs").glob("*.md"))
PAGES = {page.name: page.read_text() for page in (README, *MANUAL)}
LINKED = [README, *MANUAL, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"))]

BLOCK = re.compile(r"(?:^<!-- (?P<mark>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@dataclass(frozen=True)
class Example:
    """A fenced block of a page, what its comment says, and the heading it stands under."""

    page: str
    heading: str
    language: str
    text: str
    mark: str

    @property
    def file(self) -> str | None:
        found = FILE.match(self.text)
        return found[1] if found else None

    @property
    def runs(self) -> bool:
        return not self.mark.startswith("not run: ") and self.file is None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of shell, comments left out."""
        if self.language != "sh":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def examples() -> list[Example]:
    found = []
    for page, text in PAGES.items():
        for block in BLOCK.finditer(text):
            heading = re.findall(r"^#+ (.+)$", FENCED.sub("", text[: block.start()]), re.MULTILINE)[-1]
            found.append(Example(page, heading, block["language"], block["text"], block["mark"] or ""))
    return found


def runnable() -> list[object]:
    found = []
    for number, example in enumerate(examples()):
        if example.runs:
            slow = [pytest.mark.slow, pytest.mark.timeout(7200)] if example.mark == "slow" else []
            name = f"{number}-{Path(example.page).stem}-{example.heading.replace(' ', '-')}"
            found.append(pytest.param(example, marks=slow, id=name))
    return found


def anchors(page: Path) -> set[str]:
    """The headings as links name them: in small letters, blanks as hyphens, without other punctuation."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


@pytest.fixture(scope="module")
def home_of(mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A page's reader's folder: a trained `model`, the command, and the files that the page shows."""

    @cache
    def home(page: str) -> Path:
        folder = tmp_path_factory.mktemp("docs") / Path(page).stem
        shutil.copytree(mnist_folder, folder / "model")
        command = folder / "bin" / "brittle"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jobs.main "$@"\n')
        command.chmod(0o755)
        for example in examples():
            if example.page == page and example.file:
                (folder / example.file).write_text(example.text)
        return folder

    return home


@pytest.fixture
def flags_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., set[str]]:
    """The flags that a command's help shows."""

    @cache
    def flags(*arguments: str) -> set[str]:
        capsys.readouterr()
        assert main([*arguments, "--help"]) == 0
        return set(FLAG.findall(capsys.readouterr().out))

    return flags


def test_every_block_is_understood() -> None:
    for example in examples():
        place = f"{example.page}, {example.heading}"
        assert example.language in ("sh", "python", "yaml"), place
        assert re.fullmatch("|slow|not run: .{8,}", example.mark), f"{place}: {example.mark}"
        assert example.file or example.language != "yaml", f"{place}: a YAML block names its file"
    assert sum(text.count("\n```") for text in PAGES.values()) == 2 * len(examples())


def test_no_command_runs_twice() -> None:
    runs = Counter(tuple(words) for example in examples() if example.runs for words in example.commands)
    assert [" ".join(words) for words, times in runs.items() if times > 1] == []


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text()
    assert text.count("\n") <= 150
    assert {f"docs/{page.name}" for page in MANUAL} <= {target.partition("#")[0] for target in LINK.findall(text)}


@pytest.mark.parametrize("page", MANUAL, ids=lambda page: page.stem)
def test_a_page_opens_with_a_command(page: Path) -> None:
    before, fence, _ = page.read_text().partition("\n```")
    assert fence
    assert "\n#" not in before


def test_flags_are_those_of_the_help(flags_of: Callable[..., set[str]]) -> None:
    parameters = [name for kind in (*ATTACKS.values(), *map(defense_kind, DEFENSES)) for name in kind.model_fields]
    known = {"--debug"} | {f"--{name.replace('_', '-')}" for name in parameters} | flags_of("attack", "pgd")
    for example in examples():
        for words in example.commands:
            if words[0] != "brittle" or any(f"{toolkit}:" in word for word in words for toolkit in TOOLKITS):
                continue
            command = [words[1]]
            if words[1] == "attack":
                command.append(words[2] if words[2] in ATTACKS else "pgd")
            if "--defense" in words:
                command += ["--defense", words[words.index("--defense") + 1]]
            if example.runs and example.mark != "slow" and words[1] == "attack":
                continue  # which is tried when it runs
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert flags <= flags_of(*command), f"{example.page}: {' '.join(words)}"
            known |= flags_of(*command)
    for page, text in PAGES.items():
        named = {flag for span in re.findall(r"`(--[^`]+)`", FENCED.sub("", text)) for flag in FLAG.findall(span)}
        assert named <= known, page


@pytest.mark.parametrize("example", runnable())
def test_example(example: Example, home_of: Callable[[str], Path]) -> None:
    if any(f"{toolkit}:" in example.text and importlib.util.find_spec(toolkit) is None for toolkit in TOOLKITS):
        pytest.skip("needs requirements-toolkits.txt")
    home = home_of(example.page)
    runner = ["bash", "-euc"] if example.language == "sh" else [sys.executable, "-c"]
    paths = {
        "PATH": os.pathsep.join([str(home / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [*runner, example.text], cwd=home, env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{example.text}\n{done.stdout}\n{done.stderr}"
