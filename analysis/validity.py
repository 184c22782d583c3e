"""Whether what attacks left unbroken may be taken for robust: checks on the attacks themselves.

A weaker search that breaks what stronger ones left, or a larger ε that breaks less, says that the strong ones are blind
(Athalye et al., 2018, section 3.1; Carlini et al., 2019, "On evaluating adversarial robustness", section 4).
"""

from collections.abc import Sequence
from dataclasses import replace

from analysis.statistics import Rate
from workers.remedies.checks import ANSWERS, Check, State

__all__ = ["BEATEN", "CHECKS", "LEFT", "beaten", "deeper", "monotone", "standing", "unbounded"]

CHECKS = {
    "deeper": "more steps and restarts change nothing",
    "noise": "noise does not beat gradients",
    "transfer": "transfer does not beat gradients",
    "black-box": "a black box does not beat gradients",
    "larger": "monotone in ε",
    "unbounded": "unbounded search reaches all",
}
"""The names of the checks that searches are made for, by what these are called."""

BEATEN = 0.05
"""More images than this share, at the interval's lower end, must not be broken by what is weaker."""

LEFT = 0.05
"""Where attacks left at most this share of the images, nothing much is left that they may have been blind to."""

REACHED = 0.95
"""The least share of the images that a search without a budget must reach."""


def beaten(name: str, broken: int, searched: int, right: int, seconds: float) -> Check:
    """Whether a search that needs no gradient breaks images that those by gradients left.

    Args:
        name: of the check.
        broken: images that it broke, all of them left by the others.
        searched: images that were left.
        right: all that the model classifies right.
        seconds: what it took.
    """
    if not searched:
        return Check(name, State.NOT_RUN, "no image was searched by both")
    reason = f"it broke {broken} of {searched} images that the searches by gradients left"
    return Check(name, State.FAILED if _too_many(broken, right) else State.PASSED, reason, seconds=seconds)


def deeper(broken: int, searched: int, all_broken: int | None, seconds: float) -> Check:
    """Whether more steps and restarts break what fewer left.

    Args:
        broken: images that they broke.
        searched: images of those left that they were tried on.
        all_broken: of all others left, when they were searched so as well: the remedy; None when they were not.
        seconds: what it took.
    """
    reason = f"twice the steps from two starts broke {broken} of {searched} images that were left"
    if not searched:
        return Check(CHECKS["deeper"], State.NOT_RUN, "no image was searched")
    if not _too_many(broken, searched):
        return Check(CHECKS["deeper"], State.PASSED, reason, seconds=seconds)
    if all_broken is None:
        return Check(CHECKS["deeper"], State.FAILED, reason, seconds=seconds)
    remedy = f"all images left were searched so, which broke {all_broken} more"
    return Check(CHECKS["deeper"], State.REMEDIED, reason, remedy, seconds)


def monotone(lost: int, broken: int, larger: str, seconds: float) -> Check:
    """Whether a larger ε breaks what a smaller one does.

    Args:
        lost: of the images broken, those that are not broken within the larger ε.
        broken: images that searches by gradients broke within ε, of those tried.
        larger: the larger ball.
        seconds: what it took.
    """
    if not broken:
        return Check(CHECKS["larger"], State.NOT_RUN, "no image was broken within ε that was searched within more")
    reason = f"within {larger}, {lost} of {broken} images broken within ε are not"
    return Check(CHECKS["larger"], State.FAILED if _too_many(lost, broken) else State.PASSED, reason, seconds=seconds)


def unbounded(reached: int, tried: int, seconds: float) -> Check:
    """Whether a search by gradients with no budget at all reaches every image."""
    reason = f"without a budget {reached} of {tried} images are broken"
    fine = reached >= REACHED * tried
    return Check(CHECKS["unbounded"], State.PASSED if fine else State.FAILED, reason, seconds=seconds)


def standing(checks: Sequence[Check], at_most: Rate) -> list[Check]:
    """The checks, once it is known how many images are left.

    What fails speaks of images that the attacks may have been blind to; where hardly one is left, the number stands.
    Not so where the answers themselves are in doubt.
    """
    if at_most.high is None or at_most.high > LEFT:
        return list(checks)
    left = f"{at_most.total - at_most.hits} of {at_most.total} images are broken all the same"
    return [
        replace(check, state=State.REMEDIED, remedy=left)
        if check.state == State.FAILED and check.name not in ANSWERS
        else check
        for check in checks
    ]


def _too_many(hits: int, total: int) -> bool:
    """Whether it is more than `BEATEN` of them beyond chance."""
    interval = Rate(hits, total).interval
    return interval is not None and interval[0] > BEATEN
