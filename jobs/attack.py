"""``brittle attack``: search for adversarial images with one attack."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_origin

import yaml
from cyclopts import App, CycloptsError, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field, create_model

from jobs.examples import examples
from jobs.exits import PARAMETERS, Exit, one_line
from jobs.first_look import require_one_model
from jobs.interruption import keeping
from jobs.launch import Selection, Where, WorkerHost, launch, require_fit, resolve
from jobs.look import look
from jobs.progress import say
from jobs.recorded import open_run
from jobs.subject import SubjectOptions, load_subject, numbers
from jobs.threat import said_of
from jobs.typed import command as typed
from jobs.typed import path, word
from workers.attacks import ATTACKS, TOOLKITS, Attack, attack_named
from workers.errors import WrongInput, in_one_line
from workers.places import Place
from workers.remedies.remedies import NONE
from workers.results import Status

__all__ = ["add_named", "app", "app_for", "flag_of"]

app = App(
    name="attack",
    help="""Search for adversarial images with one attack, on Ray, into a folder of Parquet parts.

    An interrupted search is resumed by the same command. SPEC.yaml holds `attack: NAME` and any of that
    attack's flags, without the dashes; flags on the command line override it. Any attack of torchattacks or foolbox
    is torchattacks:NAME or foolbox:NAME, by its class's name.
    """,
    help_epilogue=examples(
        "brittle attack ifgsm --model MODEL --data mnist --label 2 --correct --limit 200 --target 6 --out RUN",
        "brittle attack jsma --model package.module:function --data images.npz --target all --gamma 0.145 --out RUN",
        "brittle attack torchattacks:PGD --help",
        "brittle attack SPEC.yaml --limit 10",
    ),
)

_IMAGES, _TOWARDS, _PARAMETERS = Group("Model and images"), Group("Which images, towards what"), Group(PARAMETERS)

_TAKEN = {"out", "as_given", *SubjectOptions.model_fields, *Selection.model_fields, *Where.model_fields}
"""What the flags of every attack's command are called."""


def flag_of(parameter: str) -> str:
    """The flag of an attack's parameter."""
    return f"--attack-{parameter}" if parameter in _TAKEN else f"--{parameter.replace('_', '-')}"


def _flags(kind: type[Attack]) -> type[BaseModel]:
    """The parameters as the command line takes them.

    The budget is text, which may name several values. A toolkit's parameter that is called like a flag of the command
    has ``--attack-`` before its name.
    """
    clashing = kind.model_fields.keys() & _TAKEN
    if kind.BUDGET is None and not clashing:
        return kind
    fields: dict[str, Any] = {
        name: (
            Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation,
            Field(field.default, description=field.description),
        )
        for name, field in kind.model_fields.items()
    }
    for name in clashing:
        fields[name] = (Annotated[fields[name][0], Parameter(name=flag_of(name))], fields[name][1])
    if kind.BUDGET is not None:
        known = kind.model_fields[kind.BUDGET]
        optional = known.default is None
        default = Field(
            known.default if optional or known.is_required() else word(known.default),
            description=f"{known.description} Several, as {'1,3,5' if known.annotation is int else '2/255,4/255'}, "
            "are searched in one run.",
        )
        fields[kind.BUDGET] = (str | None if optional else str, default)
    return create_model(f"{kind.__name__}Flags", __config__=ConfigDict(extra="forbid"), **fields)


def _attacks(kind: type[Attack], flags: BaseModel | None) -> tuple[Attack, ...]:
    """The attack at each of its budgets."""
    parameters = dict(flags or {})
    if kind.BUDGET and isinstance(text := parameters.get(kind.BUDGET), str):
        whole = kind.model_fields[kind.BUDGET].annotation is int
        parameters[kind.BUDGET] = numbers(text, int if whole else float, f"--{kind.BUDGET.replace('_', '-')}")
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
        as_given: Annotated[bool, Parameter(negative="", group=_IMAGES)] = False,
    ) -> int:
        selection, where = selection or Selection(), where or Where()
        place, attacks = Place.of(out), _attacks(kind, attack)
        loaded = load_subject(subject)
        there = require_fit(attacks, loaded, selection, place).exists
        if not there:
            resolve(loaded, selection)  # refuses what leaves no image, before Ray starts
            require_one_model(loaded)
        budgets = []
        for asked in attacks:
            within = asked.for_images(loaded.dataset.shape)
            budgets += said_of(within.ball, given=within == asked) if within.ball else []
        with keeping(place), WorkerHost(where) as host:
            probe = open_run(place).probe if there else look(loaded, host, gradients=kind.BY_GRADIENTS)
            remedies = NONE if as_given else probe.remedies
            if kind.CERTIFIES:  # what is proved of another view of the model is not proved of it
                remedies = remedies.answering
            if not there:  # nothing stands against the search any more: a refusal has one line to say
                for line in budgets:
                    say(line)
            summaries = launch(
                attacks,
                loaded.searched_as(remedies),
                selection,
                place,
                host,
                retry_failed=retry_failed,
                probe=probe,
            )
        if there:
            for line in budgets:
                say(line)
        for sentence in probe.told(remedies):
            say(sentence)
        print(f"results in {place}; check them with: {typed('verify', path(place))}")
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
        as_given: Search the model as it is, even if it hides gradients or logits; else in a form that shows them.
    """
    return run


def _add(kind: type[Attack]) -> None:
    example = f"brittle attack {kind.NAME} --model MODEL --data mnist --correct --limit 100 --out RUN"
    more = {"pixels": ["--pixels 1,3,5"], None: []}.get(
        kind.BUDGET, [f"--{kind.BUDGET} 2/255,4/255,8/255".replace("_", "-")]
    )
    more += ["--target random --seed 1"]
    app.command(_command(kind), name=kind.NAME, help_epilogue=examples(example, *(f"{example} {x}" for x in more)))


for _kind in ATTACKS.values():
    _add(_kind)


def app_for(arguments: Sequence[str]) -> App:
    """The command, with that of the toolkit's attack that its arguments name.

    Raises:
        WrongInput: when there is no such attack, or its toolkit is not installed.
    """
    if arguments:
        add_named(arguments[0])
    return app


def add_named(name: str) -> None:
    """Adds the command of a toolkit's attack, whose flags are known only once the toolkit is imported.

    Raises:
        WrongInput: when there is no such attack, or its toolkit is not installed.
    """
    if name.partition(":")[0] in TOOLKITS and name not in app:
        _add(attack_named(name))


@app.default
def from_file(
    name: Annotated[str, Parameter(name="NAME | TOOLKIT:NAME | SPEC.yaml")],
    *flags: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
) -> int:
    """Runs the attack that a YAML file describes.

    Args:
        name: An attack's name, or a YAML file with an attack's name and flags.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        attack_named(name)  # says what there is
    try:
        return int(app(_tokens(path, list(flags)), exit_on_error=False, print_error=False) or 0)
    except CycloptsError as error:
        raise WrongInput(f"{path}: {one_line(error)}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value).replace("_", "-") for key, _ in node.value]
        for at, key in enumerate(keys):
            if key in keys[:at]:
                mark = node.value[at][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"{key} is given twice", mark)
        return super().construct_mapping(node, deep)


def _tokens(path: Path, flags: list[str]) -> list[str]:
    """The command line that a YAML file stands for, less what the given flags override."""
    try:
        content = yaml.load(path.read_text(), _Loader)  # noqa: S506  a safe one
    except OSError as error:
        raise WrongInput(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongInput(f"{path}: not YAML: {in_one_line(error)}") from None
    if not isinstance(content, dict) or not isinstance(content.get("attack"), str):
        raise WrongInput(f"{path}: expected 'attack: NAME' and that attack's flags")
    attack = content.pop("attack")
    try:
        kind = attack_named(attack)
    except WrongInput as error:
        raise WrongInput(f"{path}: {error}") from None
    add_named(attack)
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
            field = kind.model_fields.get(str(key).replace("-", "_"))
            # --flag 2 5 for a tuple; --flag=2,5 for several budgets
            pair = field is not None and get_origin(field.annotation) is tuple
            tokens += [flag, *map(str, value)] if pair else [f"{flag}={','.join(map(str, value))}"]
        elif isinstance(value, dict):
            raise WrongInput(f"{path}: {key} must be a value or a list, got a mapping")
        else:
            tokens.append(f"{flag}={value}")
    return tokens + flags


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["attack", *sys.argv[1:]]))
