"""What an attacker may do to an image, and the attacks that an evaluation of it consists of."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

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
from workers.attacks.norm_ball import Ball, Norm
from workers.errors import WrongInput
from workers.remedies.checks import UNPROBED, Probe

__all__ = ["DetectorThreat", "Role", "Search", "Stage", "Threat", "adaptive_searches", "fitting", "naive_searches"]

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


class Threat(BaseModel):
    """What an attacker may do to an image: move it within ε in a norm, or change k pixels."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    norm: Norm | None = Field(None, description="Norm of the ball: linf or l2; linf when --pixels is absent.")
    epsilon: float | None = Field(None, description="ε, for pixels in [0, 1]; 0.1 with linf when absent.")
    pixels: int | None = Field(None, ge=1, description="k pixels may change, to anything, instead of a norm and ε.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.pixels is not None and (self.norm, self.epsilon) != (None, None):
            raise WrongInput("--pixels: is a threat of its own, without --norm and --epsilon")
        if self.norm == "l2" and self.epsilon is None:
            raise WrongInput("--epsilon: must be given with --norm l2")
        return self

    @property
    def ball(self) -> tuple[Norm, float]:
        """Norm and ε of a threat that is not one of pixels."""
        return self.norm or "linf", 0.1 if self.epsilon is None else self.epsilon

    def describe(self) -> dict[str, Any]:
        """As ``verdict.json`` has it."""
        return {"pixels": self.pixels} if self.pixels else dict(zip(("norm", "epsilon"), self.ball, strict=True))

    def __str__(self) -> str:
        if self.pixels:
            return f"{self.pixels} changed pixel{'s' * (self.pixels > 1)}"
        return str(Ball(*self.ball))

    def stages(self, probe: Probe = UNPROBED) -> tuple[Stage, ...]:
        """The attacks, from cheap to dear; order and sizes were measured (``benchmarks/anytime.py``).

        Args:
            probe: what was found out about the model: one that hides its gradients is searched as it was given by the
                first attacks, under remedies by the others; one that cannot be made to have any, by none of those.

        Raises:
            WrongInput: for an ε or k that no attack takes.
        """
        if self.pixels == 1:
            return (
                Stage("random-pixels", RandomPixels(pixels=1, max_queries=100)),
                Stage("pixel-beam", PixelBeam(pixels=1)),
                Stage("one-pixel-exact", OnePixelExact(), certifies=True, as_given=True),
                Stage("de", DifferentialEvolution(pixels=1, population=400, generations=75)),
            )
        if k := self.pixels:
            return (
                Stage("random-pixels", RandomPixels(pixels=k, max_queries=100)),
                Stage("pixel-beam-1", PixelBeam(pixels=k, width=1, candidates=max(200, k))),
                Stage("pixel-beam", PixelBeam(pixels=k, candidates=max(200, k))),
                Stage("sparse-rs", SparseRS(pixels=k, max_queries=5000)),
                Stage("de", DifferentialEvolution(pixels=k, population=400, generations=75)),
            )
        norm, epsilon = self.ball
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
        beyond = self._beyond()
        last: tuple[Stage, ...] = ()
        if norm == "linf":
            last = (Stage("rays", RayS(epsilon=epsilon, max_queries=queries), role=Role.HARD_LABEL, as_given=True),)
        if not probe.searchable:
            by_gradients, deeper, beyond = (), (), ()
        return (*by_gradients, *deeper, *without, *beyond, *last)

    def _beyond(self) -> tuple[Stage, ...]:
        """Searches outside the ball, which must break the more for it."""
        norm, epsilon = self.ball
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


class DetectorThreat(Threat):
    """What an attacker may do to an image; without a norm and ε, move it as far as the undefended classifier needs."""

    norm: Norm | None = Field(None, description="Norm of the ball: linf or l2; l2 when absent.")
    epsilon: float | None = Field(
        None,
        gt=0,
        description=f"ε, for pixels in [0, 1]; {RATIO} times the median distance at which the undefended classifier "
        "falls when absent, in L2.",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.pixels is not None and (self.norm, self.epsilon) != (None, None):
            raise WrongInput("--pixels: is a threat of its own, without --norm and --epsilon")
        if self.norm == "linf" and self.epsilon is None:
            raise WrongInput("--epsilon: must be given with --norm linf")
        if self.norm == "linf" and self.epsilon is not None and not 1 / 255 <= self.epsilon <= 1:
            raise WrongInput(f"--epsilon: must lie in 1/255 to 1 with --norm linf, got {self.epsilon}")
        return self

    @property
    def ball(self) -> tuple[Norm, float]:
        assert self.epsilon is not None
        return self.norm or "l2", self.epsilon

    def beam(self, width: int = 1) -> PixelBeam:
        """The few-pixel search: of k pixels, of five where the threat is another."""
        pixels = self.pixels or 5
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


def naive_searches(threat: DetectorThreat) -> list[Search]:
    """What is tried by an attacker who does not know of a detector."""
    more = []
    if threat.epsilon is not None:
        norm, epsilon = threat.ball
        more.append(Search(f"pgd-{norm}", "naive", PGD(norm=norm, epsilon=epsilon, steps=40)))
    return [
        Search("ifgsm", "naive", IterativeFGSM(steps=300, full=True)),
        *more,
        Search("jsma", "few-pixel", JSMA(gamma=0.145), targeted=True),
        Search("ddn", "minimal-norm", DDN(steps=100)),
        Search("ddn-targeted", "minimal-norm", DDN(steps=100), targeted=True),
        Search("pixel-beam", "few-pixel", threat.beam()),
    ]


def adaptive_searches(threat: DetectorThreat, steps: int, *, few_pixel: bool = True) -> list[Search]:
    """What is tried by one who does.

    Args:
        threat: the norm, or the pixels.
        steps: of gradient searches.
        few_pixel: whether pixels are searched as well, some thousand queries an image.
    """
    norm = threat.norm or "l2"
    forms: tuple[Form, ...] = ("joint", "selective", "orthogonal", "matching")
    if norm == "l2":
        forms += ("penalty",)
    found = [
        *(Search(f"adaptive-{form}", "adaptive", Adaptive(form=form, norm=norm, steps=steps)) for form in forms),
        Search("adaptive-targeted", "adaptive", Adaptive(norm=norm, steps=steps), targeted=True, dear=True),
    ]
    if few_pixel:
        de = DifferentialEvolution(pixels=threat.beam().pixels, population=50, generations=40)
        dear = threat.pixels is None
        found.append(Search("adaptive-beam", "adaptive", threat.beam(), dear=dear))
        found.append(Search("adaptive-de", "adaptive", de, dear=dear))
    return found
