"""The command line: gathers the commands, and turns what they raise into exit codes."""

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

from cyclopts import App, CycloptsError
from pydantic import ValidationError

from jobs.exits import Exit, Interrupted, one_line
from jobs.progress import say
from workers.errors import WrongInput

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0 done; 1 it ran and something failed; 2 wrong input, told in one line on standard error; 130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` and schedulers send it: end as for Ctrl-C
    given = _joined(sys.argv[1:] if arguments is None else arguments)
    try:
        return _app(given)(given, exit_on_error=False, print_error=False) or Exit.DONE
    except (CycloptsError, ValidationError, WrongInput) as error:
        say(f"brittle: {one_line(error)}")
        return Exit.WRONG_INPUT
    except Interrupted as interruption:
        say(str(interruption))
        return Exit.INTERRUPTED
    except KeyboardInterrupt:
        say("interrupted")
        return Exit.INTERRUPTED
    except BrokenPipeError:  # who reads the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return Exit.DONE
    except Exception as error:
        if not isinstance(error, RuntimeError | OSError) and not _is_from_ray(error):
            raise  # a fault of brittle's own, whose traceback is wanted
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            say(f"brittle: {one_line(error)}")
            return Exit.WRONG_INPUT
        say(f"brittle: failed: {one_line(error)}")
        return Exit.FAILED


def _app(arguments: Sequence[str]) -> App:
    from jobs import (
        analyze,
        attack,
        compact,
        compare,
        data,
        detect,
        evaluate,
        report,
        run,
        status,
        train,
        transfer,
        verify,
    )

    app = App(
        name="brittle",
        help="Adversarial-attack search and detector evaluation for image classifiers, spread over Ray.",
        version=_version,
        result_action="return_value",
    )
    for module in (data, attack, evaluate, detect, transfer, verify, status, analyze, report, compare, compact, run):
        app.command(module.app)
    app.command(train.app_for(arguments[1:] if arguments[:1] == ["train"] else ()))
    if len(arguments) > 1 and arguments[0] == "attack":
        attack.add_named(arguments[1])
    return app


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments, each negative quotient joined to its flag: ``-1/255`` would be taken for a flag itself."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch("--[^=]+", joined[-1]) and re.fullmatch(r"-[\d.e-]+/[\d.e-]+", argument, re.ASCII):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _version() -> str:
    try:
        return version("brittle")
    except PackageNotFoundError:
        return "from a source tree"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _is_from_ray(error: Exception) -> bool:
    """Whether Ray itself failed: a node that died, an object that was lost."""
    ray = sys.modules.get("ray")
    return ray is not None and isinstance(error, ray.exceptions.RayError)


if __name__ == "__main__":
    sys.exit(main())
