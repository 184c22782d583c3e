"""What an attacker may do to an image, and the attacks that an evaluation of it consists of."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.subject import Subject
from workers.attacks import (
    APGD,
    DDN,
    FGSM,
    JSMA,
    PGD,
    Adaptive,
    Attack,
    DifferentialEvolution,
    IterativeFGSM,
    Noise,
    OnePixelExact,
    PixelBeam,
    RandomPixels,
    RayS,
    SparseRS,
    Square,
)
from workers.attacks.adaptive import Form
from workers.attacks.norm_ball import require_radius
from workers.budgets import Amount, Norm, default_epsilon, defaults
from workers.errors import WrongInput
from workers.remedies.checks import UNPROBED, Probe
from workers.threat import Ball, Pixels, Threat

__all__ = [
    "BallFlags",
    "DetectorThreatFlags",
    "Role",
    "Search",
    "Stage",
    "ThreatFlags",
    "adaptive_searches",
    "beam",
    "fitting",
    "naive_searches",
    "said_of",
    "stages_within",
]

EACH = f"linf {defaults('linf')}; l2 {defaults('l2')}"

RATIO = 1.5
"""The default threat reaches so many times the median L2 distance at which the undefended classifier falls."""


class Role(StrEnum):
    """What a stage is for.

    ``search``: to break images. ``deeper``: more of the same, on some of those left. ``deeper-all``: on all, where
    that broke any. ``noise``, ``transfer`` and ``black-box``: to break what is left without the model's gradient,
    which should be hard. ``larger`` and ``unbounded``: outside the threat, where more images should be broken.
    ``hard-label``: to break by the predicted classes alone what is left, where a check has failed.
    """

    SEARCH = "search"
    DEEPER = "deeper"
    DEEPER_ALL = "deeper-all"
    NOISE = "noise"
    TRANSFER = "transfer"
    BLACK_BOX = "black-box"
    LARGER = "larger"
    UNBOUNDED = "unbounded"
    HARD_LABEL = "hard-label"

    @property
    def counts(self) -> bool:
        """Whether what it breaks is broken within the threat."""
        return self not in (Role.LARGER, Role.UNBOUNDED)


@dataclass(frozen=True)
class Stage:
    """One attack of an evaluation.

    Attributes:
        name: in the table, and of the run's folder.
        attack: the search.
        certifies: whether its certificates are about the whole threat.
        role: what it is for.
        as_given: whether it searches the model as it was given; under no remedy but those for answers that are not the
            image's alone.
    """

    name: str
    attack: Attack
    certifies: bool = False
    role: Role = Role.SEARCH
    as_given: bool = False


class BallFlags(BaseModel):
    """How far an attacker may move an image."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    USUAL: ClassVar[Norm] = "linf"

    norm: Norm | None = Field(None, description="Norm of the ball: linf or l2; linf when absent.")
    epsilon: Amount | None = Field(None, ge=1 / 255, description=f"ε, for pixels in [0, 1]. When absent: {EACH}.")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.epsilon is not None:
            require_radius(self.norm or self.USUAL, self.epsilon)
        return self

    def ball(self, shape: tuple[int, int, int]) -> Ball:
        """The ball around images ``(C, H, W)``."""
        norm = self.norm or self.USUAL
        return Ball(norm, default_epsilon(norm, shape) if self.epsilon is None else self.epsilon)


class ThreatFlags(BallFlags):
    """What an attacker may do to an image: move it within ε in a norm, or change k pixels."""

    norm: Norm | None = Field(None, description="Norm of the ball: linf or l2; linf when --pixels is absent.")
    pixels: int | None = Field(None, ge=1, description="k pixels may change, to anything, instead of a norm and ε.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.pixels is not None and (self.norm, self.epsilon) != (None, None):
            raise WrongInput("--pixels: is a threat of its own, without --norm and --epsilon")
        return self

    def threat(self, shape: tuple[int, int, int]) -> Ball | Pixels:
        """The threat to images ``(C, H, W)``."""
        return Pixels(self.pixels) if self.pixels else self.ball(shape)


class DetectorThreatFlags(ThreatFlags):
    """What an attacker may do to an image; without a norm and ε, move it as far as the undefended classifier needs."""

    USUAL: ClassVar[Norm] = "l2"

    norm: Norm | None = Field(None, description="Norm of the ball: linf or l2; l2 when absent.")
    epsilon: Amount | None = Field(
        None,
        ge=1 / 255,
        description=f"ε, for pixels in [0, 1]. When absent: l2 {RATIO} times the median distance at which the "
        f"undefended classifier falls; linf {defaults('linf')}.",
    )

    def known(self, shape: tuple[int, int, int]) -> Ball | Pixels | None:
        """The threat to images ``(C, H, W)``; None where the undefended classifier is to tell."""
        is_open = self.norm != "linf" and (self.epsilon, self.pixels) == (None, None)
        return None if is_open else self.threat(shape)


def said_of(threat: Threat, *, given: bool) -> list[str]:
    """What a user is told of an ε before the search: the default that was taken, the levels that are searched.

    Args:
        threat: the threat.
        given: whether the user gave its ε.
    """
    if not isinstance(threat, Ball):
        return []
    default = [] if given else [f"{threat}: the default for such images; --epsilon takes another"]
    return default + [threat.note] * bool(threat.note)


def stages_within(threat: Ball | Pixels, probe: Probe = UNPROBED) -> tuple[Stage, ...]:
    """The attacks, from cheap to dear; order and sizes were measured (``benchmarks/anytime.py``).

    Args:
        threat: what they keep to.
        probe: what was found out about the model: one that hides its gradients is searched as it was given by the
            first attacks, under remedies by the others; one that cannot be made to have any, by none of those.

    Raises:
        WrongInput: for an ε or k that no attack takes.
    """
    if threat == Pixels(1):
        return (
            Stage("random-pixels", RandomPixels(pixels=1, max_queries=100)),
            Stage("pixel-beam", PixelBeam(pixels=1)),
            Stage("one-pixel-exact", OnePixelExact(), certifies=True, as_given=True),
            Stage("de", DifferentialEvolution(pixels=1, population=400, generations=75)),
        )
    if isinstance(threat, Pixels):
        k = threat.count
        return (
            Stage("random-pixels", RandomPixels(pixels=k, max_queries=100)),
            Stage("pixel-beam-1", PixelBeam(pixels=k, width=1, candidates=max(200, k))),
            Stage("pixel-beam", PixelBeam(pixels=k, candidates=max(200, k))),
            Stage("sparse-rs", SparseRS(pixels=k, max_queries=5000)),
            Stage("de", DifferentialEvolution(pixels=k, population=400, generations=75)),
        )
    norm, epsilon = cast("Norm", threat.norm), threat.epsilon
    first = probe.differentiable
    by_gradients: tuple[Stage, ...] = (
        *((Stage("fgsm", FGSM(epsilon=epsilon), as_given=first),) if norm == "linf" else ()),
        Stage("pgd", PGD(epsilon=epsilon, norm=norm, steps=10), as_given=first),
        Stage("apgd-ce-20", APGD(epsilon=epsilon, norm=norm, steps=20)),
        Stage("apgd-ce", APGD(epsilon=epsilon, norm=norm, steps=100)),
        Stage("apgd-dlr", APGD(epsilon=epsilon, norm=norm, steps=100, loss="dlr")),
    )
    deep = APGD(epsilon=epsilon, norm=norm, steps=200, restarts=2)
    deeper: tuple[Stage, ...] = (
        Stage("more-steps", deep, role=Role.DEEPER),
        Stage("more-steps-all", deep, role=Role.DEEPER_ALL),
    )
    queries = 1000 if probe.remedies.draws else 5000  # each is several answers
    without = (
        Stage("noise", Noise(epsilon=epsilon, norm=norm), role=Role.NOISE, as_given=True),
        Stage("transfer", APGD(epsilon=epsilon, norm=norm, steps=50), role=Role.TRANSFER),
        Stage("square", Square(epsilon=epsilon, norm=norm, max_queries=queries), role=Role.BLACK_BOX),
    )
    beyond = _beyond(norm, epsilon)
    last: tuple[Stage, ...] = ()
    if norm == "linf":
        last = (Stage("rays", RayS(epsilon=epsilon, max_queries=queries), role=Role.HARD_LABEL, as_given=True),)
    if not probe.searchable:
        by_gradients, deeper, beyond = (), (), ()
    return (*by_gradients, *deeper, *without, *beyond, *last)


def _beyond(norm: Norm, epsilon: float) -> tuple[Stage, ...]:
    """Searches outside the ball, which must break the more for it."""
    # An L2 ball that holds all images would shrink every step to nothing beside the first; this one is far enough.
    most = 1.0 if norm == "linf" else max(10.0, 4 * epsilon)
    return (
        Stage("larger", APGD(epsilon=min(2 * epsilon, most), norm=norm, steps=20), role=Role.LARGER),
        Stage("unbounded", APGD(epsilon=most, norm=norm, steps=40), role=Role.UNBOUNDED),
    )


def fitting(stages: Sequence[Stage], subject: Subject) -> tuple[tuple[Stage, ...], dict[str, str]]:
    """The stages whose attack fits model and images, and why each of the others does not.

    Raises:
        WrongInput: when none does: the reason of the first.
    """
    fit, refused = [], {}
    for stage in stages:
        try:
            stage.attack.check(subject.dataset.shape, subject.classes)
            if stage.role == Role.TRANSFER and min(subject.dataset.shape[1:]) < 7:
                raise WrongInput("transfer: its surrogate, the seed's CNN, needs images of at least 7×7")
        except WrongInput as error:
            refused[stage.name] = error
        else:
            fit.append(stage)
    if not fit:
        raise next(iter(refused.values()))
    return tuple(fit), {name: f"left out: {str(error).split(': ', 1)[-1]}" for name, error in refused.items()}


def beam(threat: Threat | None, width: int = 1) -> PixelBeam:
    """The few-pixel search of a detector's evaluation: of k pixels, of five where the threat is another."""
    pixels = threat.count if isinstance(threat, Pixels) else 5
    return PixelBeam(pixels=pixels, width=width, candidates=max(200, pixels))


@dataclass(frozen=True)
class Search:
    """An attack of a detection's evaluation.

    Attributes:
        name: in the table, and of the run's folder.
        kind: ``naive``, ``minimal-norm`` or ``few-pixel`` on the classifier alone; ``adaptive`` on both.
        attack: the method.
        targeted: towards a random class.
        dear: whether it is made on some of the images only.
        lenient: whether an adaptive one is to stay under the threshold of 1 % of false alarms, not of 5 %.
    """

    name: str
    kind: str
    attack: Attack
    targeted: bool = False
    dear: bool = False
    lenient: bool = False


def naive_searches(threat: Ball | Pixels | None) -> list[Search]:
    """What is tried by an attacker who does not know of a detector; a threat that is open yet is None."""
    more = []
    if isinstance(threat, Ball):
        norm, epsilon = cast("Norm", threat.norm), threat.epsilon
        more.append(Search(f"pgd-{norm}", "naive", PGD(norm=norm, epsilon=epsilon, steps=40)))
    return [
        Search("ifgsm", "naive", IterativeFGSM(steps=300, full=True)),
        *more,
        Search("jsma", "few-pixel", JSMA(gamma=0.145), targeted=True),
        Search("ddn", "minimal-norm", DDN(steps=100)),
        Search("ddn-targeted", "minimal-norm", DDN(steps=100), targeted=True),
        Search("pixel-beam", "few-pixel", beam(threat)),
    ]


def adaptive_searches(threat: Ball | Pixels | None, steps: int, *, few_pixel: bool = True) -> list[Search]:
    """What is tried by one who does.

    Args:
        threat: the norm, L2 where it has none, or the pixels.
        steps: of gradient searches.
        few_pixel: whether pixels are searched as well, some thousand queries an image.
    """
    norm: Norm = cast("Norm", threat.norm) if isinstance(threat, Ball) else "l2"
    forms: tuple[Form, ...] = ("joint", "selective", "orthogonal", "matching")
    if norm == "l2":
        forms += ("penalty",)
    found = [
        *(Search(f"adaptive-{form}", "adaptive", Adaptive(form=form, norm=norm, steps=steps)) for form in forms),
        Search("adaptive-targeted", "adaptive", Adaptive(norm=norm, steps=steps), targeted=True, dear=True),
    ]
    if few_pixel:
        de = DifferentialEvolution(pixels=beam(threat).pixels, population=50, generations=40)
        dear = not isinstance(threat, Pixels)
        found.append(Search("adaptive-beam", "adaptive", beam(threat), dear=dear))
        found.append(Search("adaptive-de", "adaptive", de, dear=dear))
    return found
