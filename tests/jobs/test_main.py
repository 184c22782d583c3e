"""The command line itself: what it loads, how it ends, what it says."""

import os
import pty
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from jobs.main import COMMANDS, main

HEAVY = {"torch", "ray", "sklearn", "scipy", "pandas", "pyarrow", "numpy", "numba", "matplotlib", "fsspec"}


def loaded_by(*arguments: str) -> set[str]:
    """What is imported by a command, of the libraries that take long."""
    script = f"import sys; from jobs.main import main; main({list(arguments)}); print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return HEAVY & set(ended.stderr.split())


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ()])
def test_no_library_is_loaded_to_say_what_there_is(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*arguments) == set()


@pytest.mark.parametrize("command", ["data", "status", "report", "attack", "verify", "train", "detect", "transfer"])
def test_the_help_of_a_command_loads_no_search(command: str) -> None:
    assert loaded_by(command, "--help") <= {"numpy", "pyarrow", "fsspec"}


def test_every_command_is_listed_with_its_own_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for name, summary in COMMANDS.items():
        module = import_module(f"jobs.{name}")
        app = module.app_for(()) if hasattr(module, "app_for") else module.app
        assert app.name[0] == name
        assert " ".join(app.help.split("\n\n")[0].split()) == summary
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes a command fail as no code of brittle's foresees."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("jobs.status.open_run", fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LookupError("a fault\nof two lines"), "LookupError: a fault of two lines"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("mat1 and mat2"), "RuntimeError: mat1 and mat2"),
        (
            BrokenPipeError(32, "Broken pipe"),
            "BrokenPipeError: [Errno 32] Broken pipe",
        ),  # not of standard output
    ],
)
def test_what_nobody_foresaw_is_one_line(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("BRITTLE_DEBUG", raising=False)
    fails(monkeypatch, error)
    assert main(["status", "RUN"]) == 1
    assert capsys.readouterr().err == f"brittle: failed: {said}; --debug shows where\n"


@pytest.mark.parametrize("how", ["before", "behind", "environment"])
def test_debug_shows_where(how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fails(monkeypatch, LookupError("a fault"))
    if how == "environment":
        monkeypatch.setenv("BRITTLE_DEBUG", "1")
    words = {"before": ["--debug", "status", "RUN"], "behind": ["status", "RUN", "--debug"]}
    assert main(words.get(how, ["status", "RUN"])) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "in fail" in told
    assert told.endswith("brittle: failed: LookupError: a fault; --debug shows where\n")


def test_output_that_has_no_room_is_said_and_one_that_nobody_reads_is_not() -> None:
    for_reading, for_writing = os.pipe()
    os.close(for_reading)
    command = [sys.executable, "-m", "jobs.main", "--help"]
    with Path("/dev/full").open("w") as full, os.fdopen(for_writing, "w") as unread:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert "No space left on device" in ended.stderr
        ended = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


def test_words_that_are_no_text_are_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", os.fsdecode(b"\xff")]) == 2
    assert capsys.readouterr().err == "brittle: '\\udcff': expected UTF-8; rename what it names, or change the locale\n"


def test_a_terminal_without_epsilon_shows_what_it_can() -> None:
    command = [sys.executable, "-m", "jobs.main", "attack", "pgd", "--help"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, env=ascii_only, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


WAITING = """
import signal, sys, time
from jobs.interruption import keeping
import jobs.status
class Slow:
    @staticmethod
    def open_run(place):
        with keeping(place.path):
            try:
                print("at work", flush=True)
                time.sleep(60)
            finally:  # others while it ends
                print("ending", flush=True)
                time.sleep(1)
jobs.status.open_run = Slow.open_run
from jobs.main import main
sys.exit(main(["status", sys.argv[1]]))
"""


@pytest.fixture(params=["SIGINT", "SIGTERM", "SIGHUP"])
def number(request: pytest.FixtureRequest) -> signal.Signals:
    return signal.Signals[request.param]


@pytest.mark.parametrize("kept", [False, True])
def test_signals_end_a_command_once_and_it_says_what_is_kept(
    number: signal.Signals, kept: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "evaluation.json").touch()  # a frozen plan alone is nothing that was finished
    if kept:
        (out / "runs").mkdir()
        (out / "runs" / "part").touch()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WAITING, str(out)], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        assert process.stdout.readline() == "ending\n"
        for again in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(again)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    if kept:
        assert said == f"interrupted: {out} keeps what is finished; run the same command again to go on\n"
    else:
        assert said == "interrupted before anything was finished; run the same command again\n"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    script = WAITING.replace("time.sleep(60)", "time.sleep(3)")
    command = ["nohup", sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGHUP)
        assert "ending" in process.communicate(timeout=60)[0]
    assert process.returncode != 130


def test_a_terminal_that_is_closed_ends_a_command_in_order(tmp_path: Path) -> None:
    """Its output leads nowhere then: whatever is said must not raise."""
    done = tmp_path / "done"
    script = WAITING.replace("sys.exit(main", "code = main").replace("sys.argv[1]]))", "sys.argv[1]])")
    script += f"\nopen({str(done)!r}, 'w').write(str(int(code)))\n"
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a command interrupted in this process has left it ignored
        os.execv(sys.executable, [sys.executable, "-c", script, str(tmp_path)])
    assert b"at work" in os.read(terminal, 100)
    os.close(terminal)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert done.read_text() == "130"
