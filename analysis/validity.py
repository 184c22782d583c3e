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


def beaten(name: str, found: Rate, right: int, seconds: float) -> Check:
    """Whether a search that needs no gradient breaks images that those by gradients left.

    Args:
        name: of the check.
        found: images that it broke, of those that the others left.
        right: all that the model classifies right.
        seconds: what it took.
    """
    if not found.total:
        return Check(name, State.NOT_RUN, "no image was searched by both")
    reason = f"it broke {_of(found)} images that the searches by gradients left"
    return _few(name, replace(found, total=right), reason, seconds)


def deeper(found: Rate, all_broken: int | None, seconds: float) -> Check:
    """Whether more steps and restarts break what fewer left.

    Args:
        found: images that they broke, of those left that they were tried on.
        all_broken: of all others left, when they were searched so as well: the remedy; None when they were not.
        seconds: what it took.
    """
    if not found.total:
        return Check(CHECKS["deeper"], State.NOT_RUN, "no image was searched")
    check = _few(CHECKS["deeper"], found, f"twice the steps from two starts broke {_of(found)} images left", seconds)
    if check.state != State.FAILED or all_broken is None:
        return check
    return replace(
        check, state=State.REMEDIED, remedy=f"all images left were searched so, which broke {all_broken} more"
    )


def monotone(lost: Rate, larger: str, seconds: float) -> Check:
    """Whether a larger ε breaks what a smaller one does.

    Args:
        lost: images not broken within the larger ε, of those tried that searches by gradients broke within ε.
        larger: the larger ball.
        seconds: what it took.
    """
    if not lost.total:
        return Check(CHECKS["larger"], State.NOT_RUN, "no image was broken within ε that was searched within more")
    return _few(CHECKS["larger"], lost, f"within {larger}, {_of(lost)} images broken within ε are not", seconds)


def unbounded(reached: Rate, seconds: float) -> Check:
    """Whether a search by gradients with no budget at all reaches every image."""
    if not reached.total:
        return Check(CHECKS["unbounded"], State.NOT_RUN, "no image was searched")
    reason = f"without a budget {_of(reached)} images are broken"
    return _check(CHECKS["unbounded"], reached.reaches(REACHED), reason, seconds)


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


def _few(name: str, found: Rate, reason: str, seconds: float) -> Check:
    """Whether it is no more than `BEATEN` of them, but for chance."""
    exceeds = found.exceeds(BEATEN)
    return _check(name, None if exceeds is None else not exceeds, reason, seconds)


def _check(name: str, fine: bool | None, reason: str, seconds: float) -> Check:
    """What came of a check; None where searches that failed leave it open."""
    if fine is None:
        return Check(name, State.NOT_RUN, f"{reason}: too few came to an end to tell", seconds=seconds)
    return Check(name, State.PASSED if fine else State.FAILED, reason, seconds=seconds)


def _of(found: Rate) -> str:
    """How many of how many, and how many searches failed."""
    failed = f" ({found.unknown} searches failed)" if found.unknown else ""
    return f"{found.hits} of {found.total}{failed}"
