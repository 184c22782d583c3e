"""The command line: finds the command, and turns what it raises into exit codes."""

import errno
import os
import re
import select
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper, UnsupportedOperation
from pathlib import Path

from cyclopts import App, CycloptsError
from pydantic import ValidationError

from jobs.contained import contained
from jobs.exits import Exit, one_line
from jobs.interruption import interruptible
from jobs.progress import say
from workers.errors import Failed, Interrupted, StorageError, WrongInput

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "analyze": "Look at what adversarial images do inside a model: maps of its representations, changes of "
    "activations.",
    "attack": "Search for adversarial images with one attack, on Ray, into a folder of Parquet parts.",
    "compact": "Merge a run's many small parts into few large ones.",
    "compare": "Compare two runs, or two evaluations, of the same images: two models, two versions or two attacks.",
    "data": "Fetch, verify and cache a named data set: mnist, fashion-mnist or digits.",
    "detect": "Judge detectors of adversarial images, each attacked by searches that know it.",
    "evaluate": "Bound the robust accuracy of a model within a threat, by attacks from cheap to dear.",
    "report": "Write runs of one model and data set as one self-contained HTML page.",
    "run": "The seed's experiment on real data, from training to the page.",
    "status": "Show how far a run is and what it has found so far; of an evaluation, a detection or an experiment, "
    "all of its runs.",
    "train": "Train the seed's CNN, by a defense or by none, and keep a checkpoint after every epoch.",
    "transfer": "Try the adversarial images of each model on every other.",
    "verify": "Replay every stored image of a run through its model and compare each row.",
}
"""The commands, each ``jobs.NAME``, and the first sentence of its help: no other module is loaded to list them."""

_DEBUG = "--debug"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0 done; 1 it ran and something failed; 2 wrong input, told in one line on standard error; 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in given or os.environ.get("BRITTLE_DEBUG", "") not in ("", "0")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no ε is no fault
    given = _joined(word for word in given if word != _DEBUG)
    with contained(), interruptible():
        try:
            if stray := [word for word in given if not _is_text(word)]:
                raise WrongInput(f"{stray[0]!r}: expected UTF-8; rename what it names, or change the locale")
            code = _app(given)(given, exit_on_error=False, print_error=False) or Exit.DONE
            if sys.stdout is not None:
                sys.stdout.flush()
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if debug:
                traceback.print_exc()
            return _told(error)
    return code


def _told(error: BaseException) -> Exit:
    """Says what ended a command, in one line; returns the exit code."""
    met: BaseException | None = error
    while met is not None and not isinstance(met, Interrupted | KeyboardInterrupt):
        met = met.__context__
    error = met or error  # what fails while an interrupted command ends, since its terminal is closed, ends nothing
    match error:
        case Interrupted():
            say(str(error))
            return Exit.INTERRUPTED
        case KeyboardInterrupt():
            say("interrupted; run the same command again")
            return Exit.INTERRUPTED
        case CycloptsError() | ValidationError() | WrongInput() | OSError(errno=errno.ENAMETOOLONG):
            say(f"brittle: {one_line(error)}")
            return Exit.WRONG_INPUT
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # rich's
        return Exit.DONE
    if isinstance(error, OSError) and (reason := _output_is_lost()):
        if reason == errno.EPIPE:  # who reads it has had enough
            return Exit.DONE
        say(f"brittle: failed: standard output: {os.strerror(reason)}")
        return Exit.FAILED
    if isinstance(error, SystemExit):
        say(f"brittle: failed: code of yours, the model's perhaps, ended the process with code {error.code}")
    elif isinstance(error, Failed | StorageError):
        say(f"brittle: failed: {one_line(error)}")
    else:  # nobody foresaw it
        said, kind = one_line(error), type(error).__name__
        say(f"brittle: failed: {kind if said == kind else f'{kind}: {said}'}; {_DEBUG} shows where")
    return Exit.FAILED


def _output_is_lost() -> int:
    """The number of the error that standard output gives, 0 when it is well; it is given up then."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout, select.POLLOUT)
        reason = errno.EPIPE if any(events & select.POLLERR for _, events in poll.poll(0)) else 0
    except UnsupportedOperation:  # no file: a test's
        return 0
    except OSError as error:
        reason = error.errno or errno.EIO
    if reason:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
    return reason


def _app(arguments: Sequence[str]) -> App:
    """The commands, of which only the one that the arguments name is loaded."""
    app = App(
        name="brittle",
        help="Adversarial-attack search and detector evaluation for image classifiers, spread over Ray.",
        help_epilogue=f"{_DEBUG} behind any command, or BRITTLE_DEBUG=1, shows where in the code it failed.",
        version=_version,
        result_action="return_value",
    )
    named = arguments[0] if arguments else ""
    for name, summary in COMMANDS.items():
        if name != named:
            app.command(f"jobs.{name}:app", name=name, help=summary)
            continue
        module = import_module(f"jobs.{name}")
        app.command(module.app_for(arguments[1:]) if hasattr(module, "app_for") else module.app)
    return app


def _joined(arguments: Iterable[str]) -> list[str]:
    """The arguments, each negative quotient joined to its flag: ``-1/255`` would be taken for a flag itself."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch("--[^=]+", joined[-1]) and re.fullmatch(r"-[\d.e-]+/[\d.e-]+", argument, re.ASCII):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _is_text(word: str) -> bool:
    """Whether a word of the command line is not bytes that the locale could not read."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _version() -> str:
    try:
        return version("brittle")
    except PackageNotFoundError:
        return f"from a source tree in {Path(__file__).parent.parent}"


if __name__ == "__main__":
    sys.exit(main())
