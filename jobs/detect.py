"""``brittle detect``: whether detectors hold, attacked by searches that know them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter
from pydantic import BaseModel, ConfigDict, Field

from jobs.examples import examples
from jobs.exits import Exit
from jobs.first_look import require_own_answers
from jobs.frozen import FrozenFolder, on_disk
from jobs.interruption import keeping
from jobs.launch import Where, WorkerHost
from jobs.progress import say
from jobs.subject import SubjectOptions, load_subject, load_training
from jobs.threat import DetectorThreatFlags, adaptive_searches, naive_searches, said_of
from jobs.typed import changed, flags
from jobs.typed import command as typed
from workers.budgets import Number
from workers.errors import Failed, WrongInput
from workers.files import write_whole
from workers.places import Place
from workers.sources import is_single_file, load_data
from workers.versions import versions

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.detection import DetectorReport, OverSeeds
    from analysis.exhibits import Exhibit
    from jobs.detection import Detection
    from jobs.guard import Named
    from jobs.subject import Subject
    from workers.images import Dataset

__all__ = ["Judged", "Question", "app", "judge"]

FOREIGN = {"mnist": "fashion-mnist", "fashion-mnist": "mnist"}

app = App(
    name="detect",
    help="""Judge detectors of adversarial images, each attacked by searches that know it.

    Each detector is trained where it needs to be, calibrated on clean images, met with naive attacks on the classifier
    alone and with adaptive ones on both together, and judged: broken, holds or undecided, with the reasons, in
    verdict.json and on a page. Ended by a crash or Ctrl-C, the same command goes on; nothing finished is done again.

    A detector is vae-kl (the seed's), vae-normalised-kl, vae-bernoulli-kl, vae-error, classifier-kl, classifier-jsd,
    magnet, defense-gan, feature-squeezing, lid, rbf-disagreement or synthesis-disagreement; a control: random,
    median-filter or max-softmax; with parameters as vae-kl,code_size=8,epochs=5. Or it is yours: module:function,
    called with the classifier, that returns an object with score(images) -> [n], finite and each image's own: the same
    in another order, among other images and alone. Yours are asked about that before any search.
    """,
    help_epilogue=examples(
        "brittle detect vae-kl --model MODEL --data mnist --out D",
        "brittle detect vae-kl magnet vae-error,code_size=16 --model MODEL --data mnist --networks NETWORKS --out D",
        "brittle detect my_module:my_detector --model MODEL --data mnist --norm linf --epsilon 0.1 --out D",
        "brittle detect magnet --model MODEL --data mnist --training-seeds 3 --require holds --out D",
    ),
)


class Question(BaseModel):
    """What is asked, and how much is tried."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    limit: int = Field(200, ge=1, description="Attacked images: correctly classified test images, at random.")
    steps: int = Field(100, ge=10, le=100_000, description="Steps of the adaptive gradient searches.")
    tolerance: Number = Field(
        0.1, gt=0, lt=1, description="Largest acceptable share of attempts that are fooled and not flagged."
    )
    few_pixel: bool = Field(
        True, description="Few-pixel searches of classifier and detector, some thousand queries an image."
    )
    training_seeds: int = Field(
        1, ge=1, le=100, description="Detectors with networks are trained and judged so often, one seed after another."
    )
    require: str | None = Field(None, pattern="^holds$", description="holds: exit code 1 unless every detector does.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the split of images and of every draw.")


@app.default
def detect(
    detectors: list[str],
    /,
    *,
    subject: Annotated[SubjectOptions, Parameter(name="*", group=Group("Model and images"))],
    out: Annotated[str, Parameter(group=Group("Model and images"))],
    networks: Annotated[str | None, Parameter(group=Group("Model and images"))] = None,
    training_data: Annotated[str | None, Parameter(group=Group("Model and images"))] = None,
    foreign: Annotated[str | None, Parameter(group=Group("Model and images"))] = None,
    retry_failed: Annotated[bool, Parameter(negative="", group=Group("Model and images"))] = False,
    threat: Annotated[DetectorThreatFlags | None, Parameter(name="*", group=Group("Threat"))] = None,
    question: Annotated[Question | None, Parameter(name="*", group=Group("What is asked"))] = None,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
) -> int:
    """
    Args:
        detectors: Names, with parameters behind a comma, or module:function.
        out: Folder for the verdict, the page, the runs and scores; an evaluation there is resumed.
        networks: Folder of trained networks, shared by evaluations; OUT/networks when absent.
        training_data: What detectors are trained on; the train split of --data when absent.
        foreign: Images that no detector knows, or none; fashion-mnist for mnist and the reverse when absent.
        retry_failed: Search the images again whose search failed.
    """
    with WorkerHost(where or Where()) as host:
        judged = judge(
            detectors,
            subject,
            out,
            host,
            networks=networks,
            training_data=training_data,
            foreign=foreign,
            retry_failed=retry_failed,
            threat=threat,
            question=question,
        )
    return tell(judged)


@dataclass(frozen=True)
class Judged:
    """Detectors that were judged.

    Attributes:
        folder: what was written.
        detection: what was done.
        named: the detectors that were asked for, each of several trainings by itself.
        reports: one for each.
    """

    folder: FrozenFolder
    detection: "Detection"
    named: "Sequence[Named]"
    reports: "Sequence[DetectorReport]"


def judge(
    detectors: Sequence[str],
    subject: SubjectOptions,
    out: str,
    host: WorkerHost,
    *,
    networks: str | None = None,
    training_data: str | None = None,
    foreign: str | None = None,
    retry_failed: bool = False,
    threat: DetectorThreatFlags | None = None,
    question: Question | None = None,
) -> Judged:
    """Trains, calibrates, attacks and judges detectors, and writes what came of it; the arguments of `detect`.

    Raises:
        WrongInput: nothing is written then.
        RuntimeError: a detector failed on its way; those before it are judged.
    """
    from analysis.exhibits import write_exhibits
    from analysis.figures.detection import detection_exhibits
    from jobs.detection import Detection
    from jobs.guard import Named, require_classes, require_fit, split_images
    from workers.detectors.guarded import Guarded

    given, question = threat or DetectorThreatFlags(), question or Question()
    places = {"networks": networks, "training_data": training_data, "foreign": foreign, "out": out}
    words = [*detectors, *changed(subject, given, question, host.where), *flags(places)]
    command = typed("detect", *words)
    if given.pixels is not None and not question.few_pixel:
        raise WrongInput("--no-few-pixel: with --pixels, those are the searches of the threat")
    if not detectors:
        raise WrongInput("DETECTORS: expected the name of one at least")
    named = [one for text in detectors for one in Named.of(text).trained_anew(question.training_seeds)]
    if question.training_seeds > 1 and len(named) == len(detectors):
        raise WrongInput(f"--training-seeds: none of {', '.join(detectors)} trains a network")
    if len({one.folder for one in named}) < len(named):
        raise WrongInput("DETECTORS: the same one is named twice")
    folder = FrozenFolder(on_disk("--out", out), "detection")
    folder.require_usable()
    trained = on_disk("--networks", networks) if networks else folder.path / "networks"
    loaded = load_subject(subject)
    if isinstance(loaded.model, Guarded):
        raise WrongInput(
            f"--model {subject.model}: rejects images itself; expected a classifier that a detector can guard"
        )
    known = given.known(loaded.dataset.shape)
    for search in [*naive_searches(known), *adaptive_searches(known, question.steps, few_pixel=question.few_pixel)]:
        search.attack.check(loaded.dataset.shape, loaded.classes)
    require_own_answers(loaded)
    for one in named:
        require_fit(one, loaded)
    training = load_training(training_data, subject.data, loaded.dataset)
    for one in named:
        require_classes(one, loaded, training)
    others = load_foreign(foreign, loaded)
    split = split_images(len(loaded.dataset), question.seed)
    asked = {
        "detectors": "; ".join(one.text for one in named),
        "detectors in full": {one.text: one.frozen() for one in named},
        **given.model_dump(mode="json"),
        **(known.describe() if known else {}),
        **question.model_dump(mode="json", exclude={"require", "tolerance", "training_seeds"}),  # they name detectors
        "split": loaded.dataset.split,
        "model": loaded.recipe.content_hash,
        "data": loaded.data_hash,
        "training": training.content_hash(),
        **versions(),
    }
    if folder.exists:
        folder.compare(asked)
    with keeping(folder.path), folder.locked():
        if fresh := not folder.exists:
            folder.create(asked)
        else:
            folder.compare(asked)
        detection = Detection(loaded, training, split, folder, trained, host, known, question, others, retry_failed)
        for line in said_of(known, given=given.epsilon is not None) if known else ():
            say(line)
        try:
            detection.attack_naively()
            attacked, failure = [], None
            for one in named:
                try:
                    attacked.append(detection.attack(one))
                except (WrongInput, RuntimeError) as error:  # those before it are judged all the same
                    failure = error
                    break
            reports: list[DetectorReport] = []
            for each in attacked:
                try:
                    reports.append(detection.report(each, attacked))
                except WrongInput as error:  # a detector that failed on its way is no wrong input
                    raise Failed(f"{error}; what is done is kept: the same command goes on") from None
                publish(folder, reports, detection, named, command)
            exhibits = detection_exhibits(reports)  # once: they take longer than a page
            write_exhibits(exhibits, folder.path / "figures")
            publish(folder, reports, detection, named, command, exhibits=exhibits)
            if failure:
                raise failure
        except WrongInput:
            if fresh and not (folder.path / "runs").exists():
                folder.forget()
            raise
    return Judged(folder, detection, named, reports)


def load_foreign(name: str | None, subject: "Subject") -> "Dataset | None":
    """Images of another kind, of the same shape; None where there are none.

    Raises:
        WrongInput: for a wrong name, or images of another shape.
    """
    wanted = name or FOREIGN.get(subject.dataset.name.partition(" ")[0], "none")
    if wanted == "none":
        return None
    try:
        split = None if is_single_file(wanted) else "test"
        found = load_data(wanted, split, layout=subject.dataset.layout, say=say)
    except WrongInput as error:
        if name:
            raise WrongInput(str(error).replace("--data", "--foreign", 1)) from None
        say(f"no foreign images: {error}")
        return None
    if found.shape != subject.dataset.shape:
        raise WrongInput(f"--foreign: images are {found.shape}, those of --data are {subject.dataset.shape}")
    return found


def several(named: "Sequence[Named]", reports: "Sequence[DetectorReport]") -> "list[OverSeeds]":
    """What the trainings of each detector that was trained several times come to together."""
    from analysis.detection import over_seeds

    groups: dict[str, list[DetectorReport]] = {}
    for one, report in zip(named, reports, strict=False):  # those that are judged
        groups.setdefault(one.untrained, []).append(report)
    return [over_seeds(name, group) for name, group in groups.items() if len(group) > 1]


def publish(
    folder: FrozenFolder,
    reports: "Sequence[DetectorReport]",
    detection: "Detection",
    named: "Sequence[Named]",
    command: str,
    *,
    exhibits: "Sequence[Exhibit]" = (),
) -> None:
    """Writes verdict, table and page of the detectors that are judged, and which of those that are asked are not."""
    from analysis.page.detection import render_detection
    from workers.results import write_part

    trainings, judged = several(named, reports), {report.name for report in reports}
    verdict = verdict_of(reports, [one.text for one in named if one.text not in judged]) | {
        "threat": detection.judged.describe(),
        "training_seeds": [asdict(found) for found in trainings],
    }
    write_part(cells_of(reports), Place.of(folder.path / "cells.parquet"))
    write_whole(folder.path / "verdict.json", (json.dumps(verdict, indent=1) + "\n").encode())
    model, data = detection.subject.recipe.reference, detection.subject.dataset.name
    page = render_detection(reports, model=model, data=data, trainings=trainings, exhibits=exhibits, command=command)
    write_whole(folder.page, page.encode())


def tell(judged: Judged) -> int:
    """Prints the verdicts, and says how the command ends."""
    from analysis.statistics import percent

    folder, detection, reports = judged.folder, judged.detection, judged.reports
    for report in reports:
        print(f"{report.name}: {report.judgement.verdict}")
        for reason in report.judgement.reasons:
            print(f"  {reason}")
        width = max(len(cell.name) for cell in report.cells)
        print(
            f"  {'attack':<{width}} {'success':>8} {'L2':>6} {'TPR at 5%':>11} {'at 1%':>7} {'fooled, unflagged':>18}"
        )
        for found in report.cells:
            tprs = [percent(at.tpr.value if at.tpr else None) for at in found.at]
            length = "–" if found.l2 is None else f"{found.l2:.3g}"
            success, evaded = found.success.share, found.at[0].evaded.share
            print(f"  {found.name:<{width}} {success:>8} {length:>6} {tprs[0]:>11} {tprs[1]:>7} {evaded:>18}")
    for each in several(judged.named, reports):
        measured = each.evaded and f", of {each.evaded.count}" * (each.evaded.count < len(each.verdicts))
        spread = each.evaded and f"; fooled and not flagged {each.evaded.low:.1%} to {each.evaded.high:.1%}{measured}"
        print(f"{each.name}, {len(each.verdicts)} trainings: {', '.join(each.verdicts)}{spread or ''}")
    print(f"verdict in {folder.path / 'verdict.json'}, page in {folder.page}")
    verdicts = {str(report.judgement.verdict) for report in reports}
    unmet = detection.question.require and verdicts != {"holds"}
    return Exit.FAILED if unmet or detection.failures or "evaluation invalid" in verdicts else Exit.DONE


def verdict_of(reports: "Sequence[DetectorReport]", unjudged: Sequence[str] = ()) -> dict[str, Any]:
    """What ``verdict.json`` holds: the worst verdict and figures over all detectors, then each detector's own.

    Detectors that are not judged yet, or cannot be, count as untested.
    """
    from analysis.detection import DetectorVerdict as Verdict
    from analysis.detection import to_json

    order = [Verdict.BROKEN, Verdict.INVALID, Verdict.UNTESTED, Verdict.UNDECIDED, Verdict.HOLDS]
    detectors = [to_json(report) for report in reports]
    verdicts = [Verdict(report.judgement.verdict) for report in reports] + [Verdict.UNTESTED] * len(unjudged)
    found: dict[str, Any] = {
        "verdict": str(min(verdicts, key=order.index)),
        "reasons": [f"{report.name}: {reason}" for report in reports for reason in report.judgement.reasons]
        + [f"{name}: not judged" for name in unjudged],
    }
    for figure in ("auroc", "worst_tpr"):
        worst = [{"detector": one["detector"]} | one[figure] for one in detectors if one[figure]]
        found[figure] = min(worst, key=lambda one: one["value"], default=None)
    return found | {"detectors": detectors}


def cells_of(reports: "Sequence[DetectorReport]") -> "pa.Table":
    """A row for each detector, attack and false-alarm rate."""
    import pyarrow as pa

    return pa.Table.from_pylist(
        [
            {
                "detector": report.name,
                "attack": cell.name,
                "kind": str(cell.kind),
                "targeted": cell.targeted,
                "strength": cell.strength,
                "attempts": cell.success.total,
                "success": cell.success.value,
                "l2": cell.l2,
                "auroc": cell.auroc and cell.auroc.value,
                "false_alarms": at.rate,
                "tpr": at.tpr and at.tpr.value,
                "evaded": at.evaded.value,
            }
            for report in reports
            for cell in report.cells
            for at in cell.at
        ]
    )


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["detect", *sys.argv[1:]]))
