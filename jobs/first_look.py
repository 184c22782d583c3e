"""What is asked of models and detectors before any search, in seconds: their answer to an image must be its own."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from jobs.progress import say
from jobs.subject import Subject
from workers.errors import WrongInput, in_one_line

if TYPE_CHECKING:
    from torch import Tensor

    from workers.detectors import Detector

__all__ = ["look_at_detector", "require_one_model", "require_own_answers"]

CALLS = 6
"""So often a model is asked again to see whether it answers alike: one may choose among few networks."""

SCORED = 64
"""Clean images whose scores must be finite."""


def require_own_answers(subject: Subject) -> None:
    """Refuses a user's model whose answer to an image depends on more than the image.

    Raises:
        WrongInput: saying what changes an answer.
    """
    import torch

    from workers.evaluation.calls import filled_call
    from workers.evaluation.own_answer import STRANGERS, asked_about, depends_on

    if "name" in subject.recipe.architecture:  # brittle's own
        return
    asked = asked_about(subject.dataset.images)

    def ask(rows: "Tensor") -> "Tensor":
        answer: Tensor = subject.model(filled_call(asked[rows], len(rows)))
        return answer.float()

    require_one_model(subject)
    with torch.no_grad():
        found = depends_on(ask, len(asked) - len(STRANGERS))
    if found:
        raise WrongInput(
            f"the model answers the same images differently {found}; expected an answer that is each image's own"
        )


def require_one_model(subject: Subject) -> None:
    """Refuses a user's model that, built again and asked about other images first, answers differently.

    A model that answers differently at each call is left to the look at it.

    Raises:
        WrongInput: saying so.
    """
    import torch

    from workers.evaluation.own_answer import same

    if "function" not in subject.recipe.architecture:
        return
    images = torch.tensor(subject.dataset.images[:2]).float().div(255)
    with torch.no_grad():
        first, other = subject.model(images.clone()), subject.recipe.build()
        with suppress(Exception):  # it need not take them
            other(1 - images)
        found = other(images.clone())
        if not same(first, found) and all(
            same(before, model(images.clone()))
            for model, before in ((subject.model, first), (other, found))
            for _ in range(CALLS)
        ):
            raise WrongInput(
                f"--model {subject.recipe.reference}: built again, the model answers the same images differently, with "
                "the same weights: what it keeps beside its parameters and buffers must not be drawn or learned anew"
            )


def look_at_detector(
    text: str, detector: "Detector", subject: Subject, fresh: "Callable[[], Detector] | None" = None
) -> None:
    """Refuses a detector whose scores are not finite, or not each image's own.

    Args:
        text: what the user calls it.
        detector: fitted, where there is anything to fit.
        subject: the classifier behind it and the images.
        fresh: gives the same detector, never asked before; None for brittle's own.

    Raises:
        WrongInput: saying what is wrong with it.
    """
    import torch

    from workers.detectors.scoring import fresh_noise, score_images
    from workers.detectors.user import AdaptedDetector
    from workers.evaluation.calls import filled_call
    from workers.evaluation.own_answer import STRANGERS, asked_about, depends_on

    some, asked = subject.dataset.images[:SCORED], asked_about(subject.dataset.images)
    drawn = fresh_noise(detector, np.arange(len(asked)), seed=0, purpose=f"{text} look")
    noise = None if drawn is None else torch.tensor(drawn)

    def given(rows: "Tensor") -> "tuple[Tensor, Tensor | None]":
        return filled_call(asked[rows], len(rows)), None if noise is None else filled_call(noise[rows], len(rows))

    def scores_of(one: "Detector") -> "Callable[[Tensor], Tensor]":
        return lambda rows: one.score(*given(rows)).float()

    try:
        scored = score_images(detector, some, fresh_noise(detector, np.arange(len(some)), seed=0, purpose=text))
        with torch.no_grad():
            count, other = len(asked) - len(STRANGERS), None if fresh is None else scores_of(fresh())
            logits = detector.predict(*given(torch.arange(count)))
            known = list(logits.shape) == [count, subject.classes]
            if bad := int((~np.isfinite(scored.scores)).sum()):
                raise WrongInput(f"{text}: the scores of {bad} of {len(some)} clean images are not finite numbers")
            if not known or not bool(logits.isfinite().all()):
                came = "logits that are not finite" if known else list(logits.shape)
                raise WrongInput(f"{text}: predict must return logits [{count}, {subject.classes}], got {came}")
            found, what = depends_on(scores_of(detector), count, fresh=other, single=fresh is not None), "scores"
            if not found and detector.repairs:
                found = depends_on(lambda rows: detector.predict(*given(rows)), count, single=fresh is not None)
                what = "predictions"
            wrote = isinstance(detector, AdaptedDetector) and detector.writes_to_input(*given(torch.arange(count)))
    except WrongInput:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's detector raises
        raise WrongInput(f"{text} fails on images of {list(some.shape[1:])}: {in_one_line(error)}") from None
    if found:
        advice = (
            "a random detector says in its attribute noise what draws it wants, and is given them"
            if found == "at a second call"
            else "each image is to be judged by itself, not by the others that it is asked with"
        )
        raise WrongInput(f"{text}: gives the same images other {what} {found}; {advice}")
    if wrote:
        say(f"{text}: changes the images that it is given; it is given copies")
