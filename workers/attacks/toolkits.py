"""Any attack of torchattacks or foolbox by its class's name, on the queue, schema and rules of brittle's own.

Neither toolkit is a dependency; `requirements-toolkits.txt` says how to install them. What an attack takes is read
from its constructor.
"""

import importlib
import inspect
import os
import random
import types
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import docstring_parser
import numpy as np
from pydantic import BeforeValidator, Field, create_model

from workers.attacks.attack import Attack
from workers.budgets import Amount, Number, read, spelled
from workers.errors import WrongInput, in_one_line
from workers.threat import Ball

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["TOOLKITS", "FoolboxAttack", "ToolkitAttack", "TorchattacksAttack", "toolkit_attack"]

_OURS = {"model", "seed", "n_classes", "verbose"}
"""Arguments of constructors that a search fills in by itself, or that only make the toolkit talk."""

_SCALARS = (bool, int, float, str)


class ToolkitAttack(Attack):
    """An attack of another toolkit, run image by image.

    The toolkits draw from the global streams of torch, numpy and Python, and stop, average or compare over the batch
    that they are given, so that an image's result would depend on its neighbours. Here a call has one image, and the
    streams (and the attack's own ``seed``, where it has one) are set by that image's key.

    What comes back is rounded to 8 bits, for an attack with a budget within it on whole levels, and scored as for
    every attack; what the toolkit says of success is not asked. Queries are the images that the toolkit puts through
    the model, its own clean predictions and checks included; gradients are the images for which a derivative passes
    back through the logits, once a pass. Generations are not known and stay 0.
    """

    JOINT: ClassVar[bool] = False
    BY_GRADIENTS: ClassVar[bool] = True  # nearly all do, and none says so
    CARRIES: ClassVar[bool] = False  # a row at ε is what the toolkit makes of that image at that ε
    METHOD: ClassVar[Any]
    """The toolkit's class."""

    @classmethod
    @abstractmethod
    def _find(cls, toolkit: Any, name: str) -> Any:
        """The class of that name in the toolkit's module; None when there is none."""

    @classmethod
    @abstractmethod
    def _budget(cls, kind: Any, fields: dict[str, Any]) -> str | None:
        """The budget among an attack's parameters, which may be added here."""

    @property
    @abstractmethod
    def ball(self) -> Ball | None:
        """The budget; None for an attack without one."""

    @abstractmethod
    def _attack(self, model: "nn.Module", task: "_Task") -> Any:
        """What the toolkit makes of one image: float ``[1, C, H, W]`` in [0, 1]."""

    def __reduce__(self) -> tuple[Any, ...]:  # the class is made when it is asked for, so it travels by its name
        return _remade, (self.NAME, self.model_dump())

    @property
    def shard_size(self) -> int:
        return 16

    def check(self, shape: tuple[int, int, int], classes: int) -> "ToolkitAttack":
        ball = self.ball  # refuses an unknown norm
        flag = f"--{str(self.BUDGET).replace('_', '-')}"
        if ball is not None and ball.norm == "linf" and ball.epsilon > 1:
            raise WrongInput(f"{flag}: must be at most 1 in L∞, got {spelled(ball.epsilon)}")
        if ball is not None and ball.limit < 1:
            raise WrongInput(f"{flag}: must be a level (1/255) at least, got {spelled(ball.epsilon)}")
        return self

    def check_goal(self, targeted: bool) -> None:
        """Starts the attack on a model that only says that it was asked.

        Raises:
            WrongInput: when the toolkit refuses before: this goal, or its parameters.
        """
        import torch

        label = torch.zeros(1, dtype=torch.int64)
        task = _Task(torch.full((1, 3, 32, 32), 0.5), label, label + 1 if targeted else None, seed=0, classes=10)
        try:
            with _own_randomness(task):
                self._attack(_model_that_is_only_asked(), task)
        except _AskedError:
            return
        except Exception as error:  # whatever a toolkit raises for what it cannot do
            said = in_one_line(error)
            if "criterion" in said or "argeted mode" in said:
                raise WrongInput(
                    f"--target: {self.NAME} cannot be targeted"
                    if targeted
                    else f"--target: {self.NAME} is only targeted, and needs one"
                ) from None
            raise WrongInput(f"{self.NAME} cannot be started: {said}") from None

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.linf >= 0 if self.ball is None else self.ball.within(moved)

    def _search(self, batch: "Batch") -> None:
        import torch

        targets, ball = batch.goal.targets, self.ball
        with _frozen(batch.model):
            for row, stream in enumerate(batch.draws(batch.all_rows)):
                one = slice(row, row + 1)
                clean = torch.zeros_like(batch.images[one], dtype=torch.float32).copy_(batch.images[one])
                target, seed = None if targets is None else targets[one], int(stream.integers(2**31))
                task = _Task(clean / 255, batch.goal.labels[one], target, seed=seed, classes=batch.classes)
                model = _counted(batch.model)
                with _own_randomness(task):
                    found = self._attack(model, task)
                batch.queries[row], batch.gradients[row] = model.queries, model.gradients
                batch.unanswered[row], batch.not_finite[row] = model.unanswered, model.not_finite
                if found.shape != clean.shape or not bool(found.isfinite().all()):
                    raise ValueError(f"{self.NAME} returned no image of finite numbers")
                levels = found.detach().float() * 255
                if ball is None:
                    batch.adversarial[one] = levels.round().clamp(0, 255).to(torch.uint8)
                else:
                    batch.adversarial[one] = ball.rounded(ball.project(levels, clean), clean)


class TorchattacksAttack(ToolkitAttack):
    """An attack of torchattacks (Kim, 2020, "Torchattacks: a PyTorch repository for adversarial attacks")."""

    PACKAGE: ClassVar[str | None] = "torchattacks"
    _NORMS: ClassVar[dict[str, Literal["linf", "l2", "l1"]]] = {"Linf": "linf", "L2": "l2", "L1": "l1"}

    @classmethod
    def _find(cls, toolkit: Any, name: str) -> Any:
        found = getattr(toolkit, name, None)
        return found if inspect.isclass(found) and issubclass(found, toolkit.attack.Attack) else None

    @classmethod
    def _budget(cls, kind: Any, fields: dict[str, Any]) -> str | None:
        budget = next((name for name in ("eps", "max_epsilon") if name in fields), None)
        if budget is not None:
            fields[budget] = (Amount, fields[budget][1])
        return budget

    @property
    def ball(self) -> Ball | None:
        if self.BUDGET is None:
            return None
        named = getattr(self, "norm", "L2" if self.METHOD.__name__.endswith("L2") else "Linf")
        if named not in self._NORMS:
            raise WrongInput(f"--norm: expected one of {', '.join(self._NORMS)}, got {named}")
        return Ball(self._NORMS[named], getattr(self, self.BUDGET))

    def _attack(self, model: "nn.Module", task: "_Task") -> Any:
        filled = {"seed": task.seed, "n_classes": task.classes}
        wanted = {name: filled[name] for name in filled if name in inspect.signature(self.METHOD).parameters}
        attack = self.METHOD(model, **self.model_dump(), **wanted)
        attack.set_device(task.image.device)
        if task.target is None:
            return attack(task.image, task.label)
        attack.set_mode_targeted_by_label(quiet=True)
        return attack(task.image, task.target)


class FoolboxAttack(ToolkitAttack):
    """An attack of foolbox (Rauber et al., 2020, "Foolbox Native").

    Attacks of a fixed size take ``--epsilon``, in their own distance; those that look for the smallest change take
    none.
    """

    PACKAGE: ClassVar[str | None] = "foolbox"

    @classmethod
    def _find(cls, toolkit: Any, name: str) -> Any:
        found = getattr(toolkit.attacks, name, None)
        usable = inspect.isclass(found) and issubclass(found, toolkit.attacks.Attack) and not inspect.isabstract(found)
        return found if usable else None

    @classmethod
    def _budget(cls, kind: Any, fields: dict[str, Any]) -> str | None:
        base = importlib.import_module("foolbox.attacks.base")
        if not issubclass(kind, base.FixedEpsilonAttack):
            return None
        fields["epsilon"] = (Amount, Field(ge=1 / 255, description="ε, the size of the change, pixels in [0, 1]."))
        return "epsilon"

    @property
    def ball(self) -> Ball | None:
        if self.BUDGET is None:
            return None
        norms: dict[float, Literal["linf", "l2", "l1"]] = {np.inf: "linf", 2: "l2", 1: "l1"}
        return Ball(norms[self._made().distance.p], getattr(self, self.BUDGET))

    def _made(self) -> Any:
        with _silent():
            return self.METHOD(**self.model_dump(exclude={"epsilon"}))

    def _attack(self, model: "nn.Module", task: "_Task") -> Any:
        foolbox = importlib.import_module("foolbox")
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=task.image.device)
        if task.target is None:
            criterion = foolbox.criteria.Misclassification(task.label)
        else:
            criterion = foolbox.criteria.TargetedMisclassification(task.target)
        _, found, _ = self._made()(wrapped, task.image, criterion, epsilons=getattr(self, "epsilon", None))
        return found


TOOLKITS: dict[str, type[ToolkitAttack]] = {"torchattacks": TorchattacksAttack, "foolbox": FoolboxAttack}
"""The adapters by the name before the colon, which is also that of the toolkit's module."""


@cache
def toolkit_attack(name: str) -> type[ToolkitAttack]:
    """Makes the attack of a name such as ``torchattacks:PGD``, its parameters those of the toolkit's constructor.

    Raises:
        WrongInput: when the toolkit is not installed, has no attack of that name, or one that needs what no
            command line can give.
    """
    prefix, _, method = name.partition(":")
    adapter = TOOLKITS[prefix]
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # foolbox's zoo wants git, which no attack needs
    try:
        with _silent():
            toolkit = importlib.import_module(prefix)
    except ImportError as error:
        raise WrongInput(
            f"{name}: cannot import {prefix} ({error}); pip install --no-deps -r requirements-toolkits.txt installs it"
        ) from None
    kind = adapter._find(toolkit, method)
    if kind is None:
        raise WrongInput(f"{name}: {prefix} {version(prefix)} has no attack {method!r}")
    said = docstring_parser.parse(kind.__doc__ or "")
    fields = _fields(name, kind, said)
    budget = adapter._budget(kind, fields)
    made = _subclass(adapter, kind.__name__, fields)
    made.NAME, made.METHOD, made.BUDGET = name, kind, budget
    made.__doc__ = f"{name}: {(said.short_description or method).rstrip('.')}.\n\n    {adapter.__doc__}"
    return made


def _subclass(adapter: type[ToolkitAttack], name: str, fields: dict[str, Any]) -> type[ToolkitAttack]:
    return create_model(name, __base__=adapter, __module__=__name__, **fields)


def _remade(name: str, parameters: dict[str, Any]) -> ToolkitAttack:
    return toolkit_attack(name)(**parameters)


def _fields(name: str, kind: Any, said: docstring_parser.Docstring) -> dict[str, Any]:
    """What a constructor takes and the command line can give, as pydantic fields."""
    documented = {parameter.arg_name.strip(): parameter for parameter in said.params}
    fields: dict[str, Any] = {}
    for argument in inspect.signature(kind).parameters.values():
        if argument.name in _OURS or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        text = documented.get(argument.name)
        accepted = _type_of(argument, (text.type_name or "") if text else "")
        if accepted is None:
            if argument.default is argument.empty:
                raise WrongInput(f"{name}: needs {argument.name}, which cannot be given here")
            continue
        default = ... if argument.default is argument.empty else argument.default
        if accepted is float and default is not ...:
            default = float(default)  # foolbox writes 0: as hashed, it must be what --confidence 0 gives
        description = " ".join((text.description or "").split()) if text else ""
        field = Field(default, description=description or f"As of {kind.__name__}.")
        fields[argument.name] = (_of_text(accepted), field)
    return fields


def _type_of(argument: inspect.Parameter, documented: str) -> Any:
    """The type of an argument by its annotation, else by its default; None for one that text cannot give."""
    if argument.annotation is not argument.empty:
        return _plain(argument.annotation)
    default = argument.default
    if type(default) is int and "float" in documented:
        return int | float  # not float: some are documented so and count iterations
    if isinstance(default, tuple) and default and all(type(part) in _SCALARS for part in default):
        return tuple[tuple(type(part) for part in default)]  # type: ignore[misc]
    return type(default) if type(default) in _SCALARS else None


def _of_text(accepted: Any) -> Any:
    """A type whose numbers may be given as ``2/255``."""
    if accepted is float:
        return Number
    if get_origin(accepted) is tuple:
        return tuple[tuple(map(_of_text, get_args(accepted)))]  # type: ignore[misc]
    parts = get_args(accepted)
    if get_origin(accepted) is Literal or float not in parts:
        return accepted
    return Annotated[accepted, BeforeValidator(_quotient)]


def _quotient(given: Any) -> Any:
    """Text with a stroke as the number that it says; a number alone may be whole, which is for pydantic to see."""
    return read(given) if isinstance(given, str) and "/" in given else given


def _plain(annotation: Any) -> Any:
    """An annotation of scalars, literals and None; None for another."""
    if annotation in _SCALARS:
        return annotation
    if get_origin(annotation) is Literal:
        return annotation if all(isinstance(value, str) for value in get_args(annotation)) else None
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if all(get_origin(part) is Literal for part in parts):
        found = _plain(Literal[tuple(value for part in parts for value in get_args(part))])
    else:
        found = _plain(parts[0]) if len(parts) == 1 else None
    return found | None if found is not None and len(parts) < len(get_args(annotation)) else found


@dataclass(frozen=True)
class _Task:
    """One image as a toolkit is given it.

    Attributes:
        image: float32 ``[1, C, H, W]`` in [0, 1].
        label: int64 ``[1]``.
        target: int64 ``[1]``, None when untargeted.
        seed: the image's own.
        classes: the model's number of classes.
    """

    image: "Tensor"
    label: "Tensor"
    target: "Tensor | None"
    seed: int
    classes: int


class _AskedError(Exception):
    """A model was asked: its attack has begun."""


def _model_that_is_only_asked() -> "nn.Module":
    import torch

    class Asked(torch.nn.Linear):  # with parameters: torchattacks asks them for the device
        def forward(self, images: "Tensor") -> "Tensor":
            raise _AskedError

    return Asked(1, 1).eval()


def _counted(model: "nn.Module") -> Any:
    """The model, counting images forward and derivatives back in ``queries`` and ``gradients``.

    ``unanswered`` and ``not_finite`` count as in `workers.search.Batch`; a derivative that is not finite is 0.
    """
    import torch

    from workers.evaluation.scores import answered

    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.queries = self.gradients = self.unanswered = self.not_finite = 0

        def forward(self, images: "Tensor") -> "Tensor":
            self.queries += len(images)
            images = images.clone()  # the model may write to it, and the hook sees what comes out of the model alone
            known = torch.empty(len(images), dtype=torch.bool, device=images.device)
            if images.requires_grad:
                images.register_hook(partial(self.made_finite, known))  # type: ignore[no-untyped-call]
            logits = self.model(images).float()
            known.copy_(answered(logits.detach()))
            self.unanswered += int((~known).sum())
            if logits.requires_grad:
                logits.register_hook(self.passed_back)
            return logits

        def passed_back(self, gradient: "Tensor") -> None:
            self.gradients += len(gradient)

        def made_finite(self, known: "Tensor", gradient: "Tensor") -> "Tensor":
            self.not_finite += int((~gradient[known].isfinite()).sum())
            return gradient.nan_to_num(0, 0, 0)

    return Counted().eval()


@contextmanager
def _frozen(model: "nn.Module") -> Iterator[None]:
    """No gradients of the parameters, which toolkits would have computed and left in the model."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)


@contextmanager
def _own_randomness(task: _Task) -> Iterator[None]:
    """Sets every global stream that a toolkit may draw from to the task's seed, and puts the caller's back."""
    import torch

    numpys, pythons, device = np.random.get_state(), random.getstate(), task.image.device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad(), _silent():
            torch.manual_seed(task.seed)
            np.random.seed(task.seed)
            random.seed(task.seed)
            yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps back a toolkit's warnings, which are about its own code and would come once an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
