"""``brittle evaluate``: robust accuracy within a threat, bounded at any time, by attacks in order of cost."""

import sys
from typing import Annotated

from cyclopts import App, Group, Parameter

from jobs.evaluation import Budget, Evaluation, EvaluationFolder, Question
from jobs.examples import examples
from jobs.first_look import require_one_model
from jobs.interruption import keeping
from jobs.launch import Images, Selection, Where, WorkerHost, resolve
from jobs.look import look
from jobs.progress import say
from jobs.subject import SubjectOptions, load_subject
from jobs.threat import ThreatFlags, fitting, said_of, stages_within
from jobs.typed import changed, path
from jobs.typed import command as typed
from workers.errors import WrongInput
from workers.places import Place
from workers.versions import versions

__all__ = ["app"]

app = App(
    name="evaluate",
    help="""Bound the robust accuracy of a model within a threat, by attacks from cheap to dear.

    Each attack searches the images that those before it did not break, so the bound falls fast and can be read at any
    time. Ended by a budget, a crash or Ctrl-C, the same command goes on, with a larger budget if you like.
    """,
    help_epilogue=examples(
        "brittle evaluate --model MODEL --data mnist --limit 1000 --norm linf --epsilon 0.1 --out E",
        "brittle evaluate --model MODEL --data mnist --limit 1000 --epsilon 0.1 --max-seconds 60 --out E",
        "brittle evaluate --model MODEL --data mnist --limit 200 --pixels 1 --require 0.9 --out E",
        "brittle evaluate --model MODEL --data mnist --limit 1000 --norm linf --epsilon 0.1 --retry-failed --out E",
    ),
)


@app.default
def evaluate(
    *,
    subject: Annotated[SubjectOptions, Parameter(name="*", group=Group("Model and images"))],
    out: Annotated[str, Parameter(group=Group("Model and images"))],
    threat: Annotated[ThreatFlags | None, Parameter(name="*", group=Group("Threat"))] = None,
    images: Annotated[Images | None, Parameter(name="*", group=Group("Which images"))] = None,
    question: Annotated[Question | None, Parameter(name="*", group=Group("What is asked"))] = None,
    budget: Annotated[Budget | None, Parameter(name="*", group=Group("Budget"))] = None,
    where: Annotated[Where | None, Parameter(name="*", group=Group("Where"))] = None,
    retry_failed: Annotated[bool, Parameter(negative="", group=Group("Model and images"))] = False,
) -> int:
    """
    Args:
        out: Folder for the verdict, the table of images, the page and the runs; an evaluation there is resumed.
        retry_failed: Search the images of that evaluation again whose search failed, in the stages where it did.
    """
    flags, images, question = threat or ThreatFlags(), images or Images(), question or Question()
    budget, where = budget or Budget(), where or Where()
    command = typed("evaluate", *changed(subject, flags, images, question, budget, where), "--out", path(out))
    if question.accept_undecided and question.require is None:
        raise WrongInput("--accept-undecided: goes with --require")
    place = Place.of(out)
    if not place.local:
        raise WrongInput(f"--out {out}: an evaluation's folder lies on a disk; a single attack's may lie elsewhere")
    folder = EvaluationFolder(place.path)
    folder.require_usable()
    loaded = load_subject(subject)
    within = flags.threat(loaded.dataset.shape)
    everything = stages_within(within)
    fitting(everything, loaded)
    if not folder.exists:
        resolve(loaded, Selection(**images.model_dump()))  # refuses what leaves no image, before Ray starts
        require_one_model(loaded)
    with keeping(folder.path), WorkerHost(where) as host:
        probe = folder.probe() if folder.exists else look(loaded, host, gradients=flags.pixels is None)
        stages = stages_within(within, probe)
        fit, unfit = fitting(stages, loaded)
        without = [stage.name for stage in everything if stage.name not in {other.name for other in stages}]
        unfit |= dict.fromkeys(without, "left out: the model has no gradient, and no remedy gives it one")
        asked = {
            **within.describe(),
            **images.model_dump(mode="json"),
            "all_attacks": question.all_attacks,
            "split": loaded.dataset.split,
            "model": loaded.recipe.content_hash,
            "data": loaded.data_hash,
            **versions(),
            "threads": host.resources.threads,
            "attacks": {stage.name: stage.attack.params_hash for stage in fit},
            "probe": probe.describe(),
        }
        if folder.exists:
            folder.compare(asked)
        given = loaded.searched_as(probe.remedies.answering)
        ids = resolve(given, Selection(**images.model_dump())).ids
        with folder.locked():
            if fresh := not folder.exists:
                folder.create(asked)
            else:
                folder.compare(asked)
            for line in said_of(within, given=flags.epsilon is not None):
                say(line)
            evaluation = Evaluation(
                given, probe, within, images, question, budget, folder, host, fit, unfit, ids, retry_failed, command
            )
            try:
                evaluation.run()
            except WrongInput:
                if fresh and not evaluation.rows:
                    folder.forget()
                raise
            return evaluation.conclude()


if __name__ == "__main__":
    from jobs.main import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
