"""The README's examples, run as they stand and in their order, in one folder that has a trained `model`.

The slow ones have another folder, where the first of them trains the model.

What a block needs said stands in a comment before it: ``<!-- not run: REASON -->``, or ``<!-- slow -->`` for one that
takes minutes. A block of Python or YAML that begins with a comment of a file's name is that file.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from workers.attacks import TOOLKITS

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?:^<!-- (?P<mark>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w-]+\.(?:py|yaml))\b")


@dataclass(frozen=True)
class Example:
    """A fenced block of the README, what its comment says, and the heading it stands under."""

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


def examples() -> list[Example]:
    readme = (ROOT / "README.md").read_text()
    found = []
    for block in BLOCK.finditer(readme):
        heading = re.findall(r"^##+ (.+)$", "## brittle\n" + readme[: block.start()], re.MULTILINE)[-1]
        found.append(Example(heading, block["language"], block["text"], block["mark"] or ""))
    return found


def parameters() -> list[object]:
    found = []
    for number, example in enumerate(examples()):
        if example.runs:
            slow = [pytest.mark.slow, pytest.mark.timeout(7200)] if example.mark == "slow" else []
            found.append(pytest.param(example, marks=slow, id=f"{number}-{example.heading.replace(' ', '-')}"))
    return found


@pytest.fixture(scope="module")
def slow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: the files that the README shows."""
    home = tmp_path_factory.mktemp("readme")
    (home / "bin").mkdir()
    command = home / "bin" / "brittle"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jobs.main "$@"\n')
    command.chmod(0o755)
    for example in examples():
        if example.file:
            (home / example.file).write_text(example.text)
    return home


@pytest.fixture(scope="module")
def home(slow_home: Path, mnist_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has a trained `model` already."""
    home = tmp_path_factory.mktemp("readme") / "home"
    shutil.copytree(slow_home, home, ignore=shutil.ignore_patterns("model", "runs", "experiment"))
    shutil.copytree(mnist_folder, home / "model")
    return home


def test_every_block_is_understood() -> None:
    for example in examples():
        assert example.language in ("sh", "python", "yaml"), example.heading
        assert re.fullmatch("|slow|not run: .{8,}", example.mark), f"{example.heading}: {example.mark}"
        assert example.file or example.language != "yaml", f"{example.heading}: a YAML block names its file"
    assert (ROOT / "README.md").read_text().count("\n```") == 2 * len(examples())


@pytest.mark.parametrize("example", parameters())
def test_example(example: Example, request: pytest.FixtureRequest) -> None:
    home = request.getfixturevalue("slow_home" if example.mark == "slow" else "home")
    if any(f"{toolkit}:" in example.text and importlib.util.find_spec(toolkit) is None for toolkit in TOOLKITS):
        pytest.skip("needs requirements-toolkits.txt")
    runner = ["bash", "-euc"] if example.language == "sh" else [sys.executable, "-c"]
    paths = {
        "PATH": os.pathsep.join([str(home / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [*runner, example.text], cwd=home, env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{example.text}\n{done.stdout}\n{done.stderr}"
