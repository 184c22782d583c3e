"""``brittle detect``: whether detectors hold, attacked by searches that know them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from jobs.examples import examples
from jobs.exits import Exit
from jobs.frozen import FrozenFolder
from jobs.launch import Where, WorkerHost
from jobs.progress import say
from jobs.subject import SubjectOptions, load_subject
from jobs.threat import DetectorThreat
from workers.errors import WrongInput
from workers.files import write_whole
from workers.sources import load_data
from workers.versions import versions

if TYPE_CHECKING:
    from analysis.detection import DetectorReport
    from jobs.detection import Detection

__all__ = ["Question", "app"]

app = App(
    name="detect",
    help="""Judge detectors of adversarial images, each attacked by searches that know it.

    Each detector is trained where it needs to be, calibrated on clean images, met with naive attacks on the classifier
    alone and with adaptive ones on both together, and judged: broken, holds or undecided, with the reasons, in
    verdict.json and on a page. Ended by a crash or Ctrl-C, the same command goes on; nothing finished is done again.

    A detector is vae-kl (the seed's), vae-normalised-kl, vae-bernoulli-kl, vae-error, classifier-kl, classifier-jsd,
    magnet, defense-gan, feature-squeezing or lid; a control: random, median-filter or max-softmax; with parameters as
    vae-kl,code_size=8,epochs=5. Or it is yours: module:function, called with the classifier, that returns an object
    with score(images) -> [n].
    """,
    help_epilogue=examples(
        "brittle detect vae-kl --model MODEL --data mnist --out D",
        "brittle detect vae-kl magnet vae-error,code_size=16 --model MODEL --data mnist --networks NETWORKS --out D",
        "brittle detect my_module:my_detector --model MODEL --data mnist --norm linf --epsilon 0.1 --out D",
        "brittle detect magnet --model MODEL --data mnist --require holds --out D",
    ),
)


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
    from jobs.detection import Detection
    from jobs.guard import Named, split_images

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
    for one in named:  # what cannot take this classifier and these images is refused before anything is done
        one.recipe.build(loaded.model, loaded.dataset.shape)
    training = load_data(training_data or subject.data, None if training_data else "train", say=say)
    if training.shape != loaded.dataset.shape:
        raise WrongInput(
            f"--training-data: images are {training.shape}, those of {loaded.dataset.name} are {loaded.dataset.shape}"
        )
    split = split_images(len(loaded.dataset), question.seed)
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
        detection = Detection(
            loaded, training, split, folder, networks or out / "networks", host, threat, question, foreign
        )
        detection.attack_naively()
        reports = [detection.report(one) for one in named]
    return conclude(folder, reports, detection)


def conclude(folder: FrozenFolder, reports: "Sequence[DetectorReport]", detection: "Detection") -> int:
    """Writes verdict and page, tells both, and says how the command ends."""
    from analysis.detection import to_json
    from analysis.page.detection import render_detection

    question = detection.question
    verdict = {"threat": detection.threat.describe(), "detectors": [to_json(report) for report in reports]}
    write_whole(folder.path / "verdict.json", (json.dumps(verdict, indent=1) + "\n").encode())
    page = render_detection(reports, model=detection.subject.recipe.reference, data=detection.subject.dataset.name)
    write_whole(folder.page, page.encode())
    for report in reports:
        print(f"{report.name}: {report.judgement.verdict}")
        for reason in report.judgement.reasons:
            print(f"  {reason}")
        print(f"  {'attack':<20} {'success':>8} {'L2':>6} {'TPR at 5 %':>11} {'at 1 %':>7} {'fooled, unflagged':>18}")
        for found in report.cells:
            tprs = [f"{at.tpr.value:.1%}" if at.tpr else "–" for at in found.at]
            length = "–" if found.l2 is None else f"{found.l2:.2f}"
            evaded = found.at[0].evaded.value
            print(
                f"  {found.name:<20} {found.success.value or 0:>8.1%} {length:>6} {tprs[0]:>11} {tprs[1]:>7} "
                f"{'–' if evaded is None else f'{evaded:.1%}':>18}"
            )
    print(f"verdict in {folder.path / 'verdict.json'}, page in {folder.page}")
    holds = all(report.judgement.verdict == "holds" for report in reports)
    return Exit.FAILED if question.require and not holds else Exit.DONE


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["detect", *sys.argv[1:]]))
