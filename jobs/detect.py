"""``brittle detect``: whether detectors hold, attacked by searches that know them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.store import RunFolder
from jobs.examples import examples
from jobs.exits import Exit
from jobs.frozen import FrozenFolder
from jobs.guard import Guard, Named, Split, guard, score, split_images
from jobs.launch import Selection, Where, WorkerHost, launch
from jobs.progress import progress, say
from jobs.subject import Subject, SubjectOptions, load_subject
from jobs.threat import Threat
from workers.attacks import DDN, PGD, Adaptive, Attack, IterativeFGSM, PixelBeam
from workers.attacks.norm_ball import Norm
from workers.errors import WrongInput
from workers.files import write_whole
from workers.images import Dataset
from workers.places import Place
from workers.results import Status
from workers.sources import load_data
from workers.versions import versions

if TYPE_CHECKING:
    from analysis.detection import AttackRows, DetectorReport

__all__ = ["app"]

app = App(
    name="detect",
    help="""Judge detectors of adversarial images, each attacked by searches that know it.

    Each detector is trained where it needs to be, calibrated on clean images, met with naive attacks on the classifier
    alone and with adaptive ones on both together, and judged: broken, holds or undecided, with the reasons, in
    verdict.json and on a page. Ended by a crash or Ctrl-C, the same command goes on; nothing finished is done again.

    A detector is a name (NAMES), with parameters as vae-kl,code_size=8,epochs=5; or module:function, called with the
    classifier, that returns an object with score(images) -> [n].
    """,
    help_epilogue=examples(
        "brittle detect vae-kl --model MODEL --data mnist --out D",
        "brittle detect vae-kl magnet classifier-kl,code_size=16 --model MODEL --data mnist --networks NETWORKS --out D",
        "brittle detect my_module:my_detector --model MODEL --data mnist --norm linf --epsilon 0.1 --out D",
        "brittle detect magnet --model MODEL --data mnist --require holds --out D",
    ),
)

SHIFTED = 1000
"""Test images that harmless shifts are tried on."""

RATIO = 1.5
"""The default threat reaches so many times the median L2 distance at which the undefended classifier falls."""


class Question(BaseModel):
    """What is asked, and how much is tried."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    limit: int = Field(200, ge=1, description="Attacked images: correctly classified test images, at random.")
    steps: int = Field(100, ge=10, le=100_000, description="Steps of the adaptive gradient searches.")
    tolerance: float = Field(
        0.1, gt=0, lt=1, description="Largest acceptable share of attempts that are fooled and not flagged."
    )
    require: str | None = Field(None, pattern="^holds$", description="holds: exit code 1 unless every detector does.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the split of images and of every draw.")


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
        return self

    @property
    def ball(self) -> tuple[Norm, float]:
        assert self.epsilon is not None
        return self.norm or "l2", self.epsilon


@dataclass(frozen=True)
class Search:
    """An attack of a detection's evaluation.

    Attributes:
        name: in the table, and of the run's folder.
        kind: ``naive``, ``minimal-norm`` or ``few-pixel`` on the classifier alone; ``adaptive`` on both.
        attack: the method.
    """

    name: str
    kind: str
    attack: Attack


def naive_searches(threat: DetectorThreat) -> list[Search]:
    """What is tried by an attacker who does not know of a detector."""
    more = []
    if threat.epsilon is not None:
        norm, epsilon = threat.ball
        more.append(Search(f"pgd-{norm}", "naive", PGD(norm=norm, epsilon=epsilon, steps=40)))
    return [
        Search("ifgsm", "naive", IterativeFGSM(steps=300)),
        *more,
        Search("ddn", "minimal-norm", DDN(steps=100)),
        Search("pixel-beam", "few-pixel", PixelBeam(pixels=threat.pixels or 5, width=1)),
    ]


def adaptive_searches(threat: DetectorThreat, steps: int) -> list[Search]:
    """What is tried by one who does."""
    norm = threat.norm or "l2"
    return [
        *(
            Search(f"adaptive-{form}", "adaptive", Adaptive(form=form, norm=norm, steps=steps))
            for form in ("joint", "selective", "orthogonal", "matching")
        ),
        Search("adaptive-beam", "adaptive", PixelBeam(pixels=threat.pixels or 5, width=1)),
    ]


@app.default
def detect(
    detectors: list[str],
    /,
    *,
    subject: Annotated[SubjectOptions, Parameter(name="*", group=Group("Model and images"))],
    out: Annotated[Path, Parameter(group=Group("Model and images"))],
    networks: Annotated[Path | None, Parameter(group=Group("Model and images"))] = None,
    training_data: Annotated[str | None, Parameter(group=Group("Model and images"))] = None,
    foreign: Annotated[str | None, Parameter(group=Group("Model and images"))] = None,
    threat: Annotated[DetectorThreat | None, Parameter(name="*", group=Group("Threat"))] = None,
    question: Annotated[Question | None, Parameter(name="*", group=Group("What is asked"))] = None,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
) -> int:
    """
    Args:
        detectors: Names, with parameters behind a comma, or module:function.
        out: Folder for the verdict, the page, the runs and scores; an evaluation there is resumed.
        networks: Folder of trained networks, shared by evaluations; OUT/networks when absent.
        training_data: What detectors are trained on; the train split of --data when absent.
        foreign: Other images, of which no detector knows; fashion-mnist for mnist and the reverse when absent.
    """
    threat, question = threat or DetectorThreat(), question or Question()
    if not detectors:
        raise WrongInput("DETECTORS: expected the name of one at least")
    named = [Named.of(text) for text in detectors]
    if len({one.folder for one in named}) < len(named):
        raise WrongInput("DETECTORS: the same one is named twice")
    folder = FrozenFolder(out, "detection")
    folder.require_usable()
    host = WorkerHost(where or Where())
    loaded = load_subject(subject)
    split = split_images(len(loaded.dataset), question.seed)
    training = load_data(training_data or subject.data, None if training_data else "train", say=say)
    if training.shape != loaded.dataset.shape:
        raise WrongInput(f"--training-data: images are {training.shape}, those of {loaded.dataset.name} are {loaded.dataset.shape}")
    asked = {
        "detectors": {one.text: one.describe() for one in named},
        **threat.model_dump(mode="json"),
        **question.model_dump(mode="json", exclude={"require", "tolerance"}),
        "split": loaded.dataset.split,
        "model": loaded.recipe.content_hash,
        "data": loaded.data_hash,
        "training": training.content_hash(),
        **versions(),
    }
    if folder.exists:
        folder.compare(asked)
    with folder.locked(), host:
        if not folder.exists:
            folder.create(asked)
        detection = _Detection(
            loaded, training, split, folder, networks or out / "networks", host, threat, question, foreign
        )
        detection.attack_naively()
        reports = [detection.report(one) for one in named]
    return conclude(folder, reports, detection.threat, question)


@dataclass
class _Detection:
    """An evaluation while it runs.

    Attributes:
        threat: what is judged; its ε is known once the undefended classifier has been attacked.
    """

    subject: Subject
    training: Dataset
    split: Split
    folder: FrozenFolder
    networks: Path
    host: WorkerHost
    threat: DetectorThreat
    question: Question
    foreign: str | None

    @cached_property
    def ids(self) -> np.ndarray:
        """int64 ids of the attacked images: of the test part, classified right."""
        return self.split.test[self.subject.correct[self.split.test]][: self.question.limit]

    def attack_naively(self) -> None:
        """Attacks the classifier alone, and fixes the threat where it was left open.

        Raises:
            WrongInput: when no image is classified right, or none falls.
        """
        if not len(self.ids):
            raise WrongInput("no image is left to attack: the model classifies none of the test part correctly")
        self.naive = naive_searches(self.threat)
        for search in self.naive:
            self._launch(search, self.subject, self.folder.path / "runs" / search.name)
        if self.threat.pixels is None and self.threat.epsilon is None:
            rows = self._rows(self.folder.path / "runs" / "ddn")
            fallen = rows["l2"].to_numpy()[rows["success"].to_numpy(zero_copy_only=False)]
            if not len(fallen):
                raise WrongInput("--epsilon: must be given, as the classifier itself did not fall to a single search")
            self.threat = DetectorThreat(norm="l2", epsilon=round(float(RATIO * np.median(fallen)), 3))
            say(f"the threat: {self.threat}, {RATIO} times the median at which the classifier alone falls")

    def _launch(self, search: Search, subject: Subject, place: Path) -> None:
        """Runs a search, or what is left of it."""
        launch(
            (search.attack,),
            subject,
            Selection(seed=self.question.seed),
            Place.of(place),
            self.host,
            ids=self.ids,
            title=f"{place.parent.parent.name}: {search.name}",
        )

    def _rows(self, place: Path) -> "pa.Table":
        """The rows of a run that came to an end, their images included."""
        folder = RunFolder(Place.of(place))
        (table,) = folder.tables(folder.plan())
        return table.filter(pc.not_equal(table["status"].cast("string"), str(Status.FAILED)))
