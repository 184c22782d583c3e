"""``brittle attack``: search for adversarial images with one attack."""

import sys
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from jobs.examples import examples
from jobs.exits import Exit
from jobs.launch import Selection, Where, WorkerHost, launch
from jobs.progress import say
from jobs.subject import SubjectOptions, load_subject, numbers
from workers.attacks import ATTACKS, Attack
from workers.errors import WrongInput, first_problem
from workers.places import Place
from workers.results import Status

__all__ = ["app"]

app = App(
    name="attack",
    help="""Search for adversarial images with one attack, on Ray, into a folder of Parquet parts.

    An interrupted search is resumed by the same command. SPEC.yaml holds `attack: NAME` and any of that
    attack's flags, without the dashes; flags on the command line override it.
    """,
    help_epilogue=examples(
        "brittle attack ifgsm --model MODEL --data mnist --label 2 --correct --limit 200 --target 6 --out RUN",
        "brittle attack jsma --model package.module:function --data images.npz --target all --gamma 0.145 --out RUN",
        "brittle attack SPEC.yaml --limit 10",
    ),
)

_IMAGES, _TOWARDS, _PARAMETERS = Group("Model and images"), Group("Which images, towards what"), Group("Attack")


def _flags(kind: type[Attack]) -> type[BaseModel]:
    """The parameters as the command line takes them: the budget as text, which may name several values."""
    if kind.BUDGET is None:
        return kind
    known = kind.model_fields[kind.BUDGET]
    default = Field(
        None if known.default is None else str(known.default),
        description=f"{known.description} Several, as {'1,3,5' if known.annotation is int else '0.1,0.2'}, "
        "are searched in one run.",
    )
    fields: dict[str, Any] = {
        name: (field.annotation, Field(field.default, description=field.description))
        for name, field in kind.model_fields.items()
    }
    fields[kind.BUDGET] = (str if known.default is not None else str | None, default)
    return create_model(f"{kind.__name__}Flags", __config__=ConfigDict(extra="forbid"), **fields)


def _attacks(kind: type[Attack], flags: BaseModel | None) -> tuple[Attack, ...]:
    """The attack at each of its budgets."""
    parameters = dict(flags or {})
    if kind.BUDGET and isinstance(text := parameters.get(kind.BUDGET), str):
        number = int if kind.model_fields[kind.BUDGET].annotation is int else float
        parameters[kind.BUDGET] = numbers(text, number, f"--{kind.BUDGET}")
    return kind.at_each_budget(parameters)


def _command(kind: type[Attack]) -> Any:
    def run(
        *,
        subject: Annotated[SubjectOptions, Parameter(name="*", group=_IMAGES)],
        out: Annotated[str, Parameter(group=_IMAGES)],
        attack: Annotated[Any, Parameter(name="*", group=_PARAMETERS)] = None,
        selection: Annotated[Selection | None, Parameter(name="*", group=_TOWARDS)] = None,
        where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
        retry_failed: Annotated[bool, Parameter(negative="", group=_IMAGES)] = False,
    ) -> int:
        selection, where = selection or Selection(), where or Where()
        place, attacks = Place.of(out), _attacks(kind, attack)
        loaded = load_subject(subject)
        with WorkerHost(where) as host:
            summaries = launch(attacks, loaded, selection, place, host, retry_failed=retry_failed)
        print(f"results in {place}; check them with: brittle verify {place}")
        failed = max(summary.counts.get(Status.FAILED, 0) for summary in summaries)
        if failed:
            say(f"{failed} rows failed; the same command with --retry-failed searches them again")
        return Exit.FAILED if failed else Exit.DONE

    shown = Parameter(name="*", group=_PARAMETERS) if kind.model_fields else Parameter(parse=False)
    run.__annotations__["attack"] = Annotated[_flags(kind), shown]
    run.__doc__ = f"""{kind.__doc__}

    Args:
        out: Folder for the results, or its URI (s3://bucket/folder); a run that is there already is resumed.
        retry_failed: Search the rows of that run again whose search failed.
    """
    return run


for _name, _kind in ATTACKS.items():
    _example = f"brittle attack {_name} --model MODEL --data mnist --correct --limit 100 --out RUN"
    _more = {"epsilon": ["--epsilon 0.05,0.1,0.2"], "pixels": ["--pixels 1,3,5"]}.get(_kind.BUDGET or "", [])
    _more += ["--target random --seed 1"]
    app.command(_command(_kind), name=_name, help_epilogue=examples(_example, *(f"{_example} {x}" for x in _more)))


@app.default
def from_file(
    name: Annotated[str, Parameter(name="NAME | SPEC.yaml")],
    *flags: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
) -> int:
    """Runs the attack that a YAML file describes.

    Args:
        name: An attack's name, or a YAML file with an attack's name and flags.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise WrongInput(f"unknown attack {name}: expected one of {', '.join(ATTACKS)}, or a .yaml file")
    try:
        return int(app(_tokens(path, list(flags)), exit_on_error=False, print_error=False) or 0)
    except CycloptsError as error:
        cause = error.__cause__
        said = first_problem(cause) if isinstance(cause, ValidationError) else " ".join(str(error).split())
        raise WrongInput(f"{path}: {said}") from error


def _tokens(path: Path, flags: list[str]) -> list[str]:
    """The command line that a YAML file stands for, less what the given flags override."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise WrongInput(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongInput(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("attack"), str):
        raise WrongInput(f"{path}: expected 'attack: NAME' and that attack's flags")
    attack = content.pop("attack")
    if attack not in ATTACKS:
        raise WrongInput(f"{path}: unknown attack {attack}: expected one of {', '.join(ATTACKS)}")
    given = {flag.split("=")[0] for flag in flags if flag.startswith("--")}
    tokens = [attack]
    for key, value in content.items():
        if key in ("help", "version"):
            raise WrongInput(f"{path}: unknown key {key}")
        flag = "--" + str(key).replace("_", "-")
        if flag in given or flag.replace("--", "--no-", 1) in given or value is None:
            continue
        if isinstance(value, bool):
            tokens.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            tokens.append(f"{flag}={','.join(map(str, value))}")
        elif isinstance(value, dict):
            raise WrongInput(f"{path}: {key} must be a value or a list, got a mapping")
        else:
            tokens.append(f"{flag}={value}")
    return tokens + flags


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["attack", *sys.argv[1:]]))
