"""Whether a model shows its gradients and logits to a search, and by what remedy it can be made to."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from workers.evaluation.calls import filled_call
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.own_answer import STRANGERS, asked_about, depends_on, same
from workers.evaluation.scores import answered, predicted
from workers.losses import cotangents, values
from workers.models.foreign import writes_to_input
from workers.remedies.asked import Asked, OnCall
from workers.remedies.checks import Check, Probe, State
from workers.remedies.foretold import DISTANCES, share_that_comes
from workers.remedies.inside import Inside
from workers.remedies.remedied import SEARCHED_DRAWS, Searched
from workers.remedies.remedies import Remedies

__all__ = ["PROBED", "looked_at", "probe"]

PROBED = 32
"""Images that a probe looks at; clean ones are enough.

A gradient batch is one of `PROBED` images forward and back, a forward pass of them a third of it. A model that hides
nothing is asked for as much as comes to 7.7: whether its answers are finite, an image's own and leave it as it is, 12.1
forward passes; noisy copies beside the images, 4; the gradient, 1 batch; what it foretells, 4 forward passes. Remedies
are tried only where a check has fired.
"""
OWN_CALLS = 20
"""The calls in which a model shows that its answers are finite, an image's own, and leave it as it is."""

CONSISTENT = 0.3
"""The share of the rise of the loss that a gradient foretells which must come (`share_that_comes`)."""
ZERO = 0.05
"""The share of images that may have no gradient at all."""
AGREEMENT = 0.9
"""The share of images on which logits found inside a model, or its answers to each alone, must name its own class."""
DISTINCT = 0.5
"""The share of all logits that must be different numbers."""
LEADS = (2e-4, 1000.0)
"""The median lead of the highest logit within which a loss is fit for float32: below, its steps, 5e-7 of a loss of
log 1000, are over a four-hundredth of the lead; above, the exponentials of most classes underflow."""
SEARCHED_LEADS = (0.1, 1000.0)
"""Within which logits are searched as they are; below, a cross-entropy hardly tells one other class from the next."""
LARGEST_EXPONENT = 126
"""Of the power of two that logits are multiplied by: float32 holds no larger ones."""
FAR = 64
"""Levels of the noise under which logits found inside a model must still name its class."""


@dataclass(frozen=True)
class _View:
    """What a search sees of a model under some remedies.

    Attributes:
        error: why there is no gradient; empty when there is one.
        zero: the share of images whose gradient is zero, what is not finite of it left out.
        infinite: the share of derivatives that are not finite.
        consistency: of the others, the median share of the foretold rise of the loss that came.
        distinct: the share of all logits that are different numbers.
        probabilities: whether what is seen sums to one.
        gap: the median lead of the highest logit.
        agreement: the share of images whose class is the model's own.
    """

    error: str
    zero: float
    infinite: float
    consistency: float
    distinct: float
    probabilities: bool
    gap: float
    agreement: float

    @property
    def gradient(self) -> bool:
        """Whether a search can go by the gradient."""
        return not self.error and self.zero <= ZERO and self.consistency >= CONSISTENT

    @property
    def resolved(self) -> bool:
        """Whether logits tell images apart."""
        return self.distinct >= DISTINCT

    def clear(self, gradients: bool) -> bool:
        """Whether nothing is left to remedy, for a search that goes by gradients or one that does not."""
        return (self.gradient or not gradients) and self.resolved and not self.probabilities

    def rank(self, gradients: bool) -> tuple[bool, ...]:
        """The better of two views has the higher rank: a gradient to go by counts first."""
        found = (self.gradient, not self.error) if gradients else ()
        return (*found, self.resolved, not self.probabilities)


def probe(
    model: nn.Module,
    images: np.ndarray,
    *,
    gradients: bool = True,
    on_call: OnCall = lambda done, planned: None,
) -> Probe:
    """Looks at a model and tries remedies, the mildest first, until gradients and logits are of use.

    Args:
        model: float images ``[n, C, H, W]`` in [0, 1] to logits ``[n, K]``, in ``eval()`` mode, parameters frozen.
        images: uint8 ``[n, C, H, W]``, clean; those of `looked_at` are looked at.
        gradients: whether searches will go by gradients; without, the checks on these are left out.
        on_call: follows the calls of the model.

    Raises:
        Exception: whatever a foreign model raises when it is asked for an answer.
    """
    started, asked, looked = time.perf_counter(), Asked(model, on_call), looked_at(images)
    clean = torch.tensor(looked).to(DenseEvaluator(model).device)
    asked.expect(OWN_CALLS + _calls(Remedies(), clean, 2) + _calls_of_view(Remedies(), clean, gradients))
    known = answered(_logits(asked, clean))
    silent = []
    if not bool(known.all()):
        reason = f"{int((~known).sum())} of {len(clean)} images have answers that are not finite numbers"
        silent = [
            Check("finite answers", State.REMEDIED, reason, "a search of one fails, and it is not looked at here")
        ]
        clean, looked = clean[known], looked[known.cpu().numpy()]
    if not len(clean):
        return Probe((Check("finite answers", State.FAILED, reason, seconds=time.perf_counter() - started),))
    answering, repeated = _repeats(asked, looked, clean)
    repeated.append(_written(asked, clean))
    asked.expect(_calls(answering, clean, 2) + _calls_of_view(answering, clean, gradients))
    own = _logits(Searched(asked, answering), torch.cat([clean, _noisy(clean, FAR)]))
    given = _view(asked, answering, clean, own, gradients)
    chosen, best = answering, given
    if not given.clear(gradients):
        for remedies in _candidates(asked, answering, clean, given):
            asked.expect(_calls_of_view(remedies, clean, gradients))
            view = _view(asked, remedies, clean, own, gradients)
            if view.agreement >= AGREEMENT and view.rank(gradients) > best.rank(gradients):
                chosen, best = remedies, view
            if best.clear(gradients):
                break
    asked.expect(0)
    if best.gap and not SEARCHED_LEADS[0] <= best.gap <= SEARCHED_LEADS[1]:
        chosen = replace(chosen, scale=2.0 ** min(round(math.log2(10 / best.gap)), LARGEST_EXPONENT))
    found = [*silent, *repeated, *_outputs(given, best, chosen)]
    if gradients:
        found += _gradients(given, best, chosen)
    seconds = (time.perf_counter() - started) / len(found)
    return Probe(tuple(replace(check, seconds=seconds) for check in found), chosen, not given.error, not best.error)


def _calls(remedies: Remedies, clean: Tensor, times: int = 1) -> int:
    """How many calls of the model itself it takes to ask once about so many times the clean images."""
    images = len(clean) * times
    return max(remedies.draws, 1) * (images + -images % DenseEvaluator(nn.Identity()).block if remedies.alone else 1)


def _calls_of_view(remedies: Remedies, clean: Tensor, gradients: bool) -> int:
    """Likewise to look at a model under remedies."""
    return _calls(remedies, clean, 2) + (1 + len(DISTANCES) * gradients) * _calls(remedies, clean)


def _repeats(model: nn.Module, images: np.ndarray, clean: Tensor) -> tuple[Remedies, list[Check]]:
    """What must be done for an answer to be the image's alone, and the checks on that."""
    first, second = (_logits(model, clean) for _ in range(2))
    remedies = Remedies() if same(first, second) else Remedies(draws=SEARCHED_DRAWS)
    held = not remedies or same(*(_logits(Searched(model, remedies), clean) for _ in range(2)))
    name = "randomised model"
    if not remedies:
        drawn = Check(name, State.PASSED, "the same image is answered alike each time")
    else:
        reason = "the same image is answered differently each time" + ", whatever the seed" * (not held)
        drawn = Check(name, State.REMEDIED if held else State.FAILED, reason, str(remedies) * held)
    name = "other images of a call"
    if not held:
        return remedies, [drawn, Check(name, State.NOT_RUN, "answers differ anyway")]
    if not (found := _depends_on(Searched(model, remedies), images)):
        return remedies, [drawn, Check(name, State.PASSED, "do not change an answer")]
    alone, reason = replace(remedies, alone=True), f"an image is answered differently {found}"
    try:
        among, single = (predicted(_logits(Searched(model, each), clean)) for each in (remedies, alone))
        held = not _depends_on(Searched(model, alone), images)
        held = held and bool((among == single).float().mean() >= AGREEMENT)
    except Exception:  # a model that cannot be asked about a single image may raise anything
        held = False
    if not held:
        return remedies, [drawn, Check(name, State.FAILED, reason)]
    return alone, [drawn, Check(name, State.REMEDIED, reason, "each image is asked about alone")]


def _depends_on(model: nn.Module, images: np.ndarray) -> str:
    """What a model's answer to an image depends on beside the image."""
    asked = asked_about(images).to(DenseEvaluator(model).device)
    with torch.no_grad():
        return depends_on(lambda rows: model(filled_call(asked[rows], len(rows))), len(asked) - len(STRANGERS))


def _written(model: nn.Module, clean: Tensor) -> Check:
    """The check on whether a model leaves its input as it is."""
    with torch.no_grad():
        found = writes_to_input(model, filled_call(clean[:16], 16))
    if not found:
        return Check("writes to its input", State.PASSED, "leaves the images that it is given as they are")
    reason = "changes the images that it is given"
    return Check("writes to its input", State.REMEDIED, reason, "it is given copies")


def looked_at(images: np.ndarray) -> np.ndarray:
    """Of the first images those that are different ones, at most `PROBED`."""
    some = images[: 4 * PROBED]
    _, first = np.unique(some.reshape(len(some), -1), axis=0, return_index=True)
    return some[np.sort(first)[:PROBED]]


def _candidates(model: nn.Module, plain: Remedies, clean: Tensor, given: _View) -> Iterator[Remedies]:
    """What could help, the mildest first: logits inside, logarithms, gradients that go straight through."""
    for way in (None, "operations", "input"):
        remedies = replace(plain, straight_through=way)
        if way is not None:
            yield remedies
        for place in range(1, _insides(model, remedies, clean) + 1):
            yield replace(remedies, inside=place)
        if given.probabilities:
            yield replace(remedies, logarithm=True)


def _insides(model: nn.Module, remedies: Remedies, clean: Tensor) -> int:
    """How many tensors inside the model have the shape of its answer."""
    try:
        images = filled_call(clean[:16], 16)[: 1 if remedies.alone else None].requires_grad_(True)
        inside = Inside(len(images))
        answer = Searched(model, remedies).answer(images, 0 if remedies.draws else None, inside)
        return len(inside.before(answer))
    except Exception:  # a foreign model under a remedy that does not suit it may raise anything
        return 0


_NOTHING = _View("it cannot be searched", 1.0, 0.0, 0.0, 0.0, False, 1.0, 0.0)


def _view(model: nn.Module, remedies: Remedies, clean: Tensor, own: Tensor, gradients: bool) -> _View:
    """Measures what a search would see; `own` are the model's answers to the images and to noisy copies."""
    searched = Searched(model, remedies)
    try:
        seen = _logits(searched, torch.cat([clean, _noisy(clean, FAR)]))
    except Exception:  # as above
        return _NOTHING
    logits, known = seen[: len(clean)], answered(seen) & answered(own)
    if not bool(known[: len(clean)].all()):
        return _NOTHING
    seen, own = seen[known], own[known]
    top = logits.topk(2, dim=1).values
    error, zero, infinite, consistency = _gradient(searched, clean, logits, gradients)
    return _View(
        error=error,
        zero=zero,
        infinite=infinite,
        consistency=consistency,
        distinct=len(np.unique(logits.cpu().numpy())) / logits.numel(),
        probabilities=bool((seen >= 0).all() and ((seen.sum(dim=1) - 1).abs() < 1e-3).all()),
        gap=float((top[:, 0] - top[:, 1]).median()),
        agreement=float((own.gather(1, seen.argmax(dim=1)[:, None])[:, 0] == own.amax(dim=1)).float().mean()),
    )


def _gradient(searched: nn.Module, clean: Tensor, logits: Tensor, judged: bool) -> tuple[str, float, float, float]:
    """Why there is no gradient, on what share of images it is zero, what of it is not finite, how much of it comes.

    The last is 1 where it is not to be judged.
    """
    label = logits.argmax(dim=1)
    evaluator = DenseEvaluator(searched)
    try:
        _, (gradient,) = evaluator.gradients(
            clean, lambda found, rows: [cotangents("margin", found, label[rows], None)]
        )
    except Exception as error:  # as above
        return f"{type(error).__name__}", 1.0, 0.0, 0.0
    infinite = float((~gradient.isfinite()).float().mean())
    gradient = gradient.nan_to_num(0, 0, 0)  # as searches have it
    usable = gradient.flatten(1).any(dim=1)
    if not bool(usable.any()):
        return "", 1.0, infinite, 0.0
    if not judged:
        return "", float(1 - usable.float().mean()), infinite, 1.0
    lead = -values("margin", logits, label, None)
    came = share_that_comes(
        lambda moved: values("margin", _logits(searched, moved), label, None), clean, gradient, lead, usable
    )
    return "", float(1 - usable.float().mean()), infinite, came


def _outputs(given: _View, best: _View, chosen: Remedies) -> list[Check]:
    """The checks on the logits that a search sees: of the model as given, and under what was chosen."""
    share = f"{given.distinct:.0%} of the logits are distinct"
    return [
        _check(
            "softmax as logits",
            "the answers are probabilities, whose loss is flat where they are sure"
            if given.probabilities
            else "the answers are no probabilities",
            given.probabilities,
            best.probabilities,
            chosen,
        ),
        _check("saturated or quantised outputs", share, not given.resolved, not best.resolved, chosen),
        _scale(best.gap, chosen.scale),
    ]


def _scale(lead: float, scale: float) -> Check:
    """The check on how far the highest logit leads, under the remedies, and by what logits are multiplied for it."""
    name, times = "scale of logits", f"logits times {scale:.3g}"
    said = f"the highest leads by {lead:.3g} on the median image"
    if not lead:
        return Check(name, State.NOT_RUN, "the highest two are the same on the median image")
    if not LEADS[0] <= lead * scale <= LEADS[1]:
        return Check(name, State.FAILED, f"{said}, {times} hardly more")
    if not LEADS[0] <= lead <= LEADS[1]:
        return Check(name, State.REMEDIED, said, times)
    return Check(name, State.PASSED, said + f", searched as {times}" * (scale != 1))


def _gradients(given: _View, best: _View, chosen: Remedies) -> list[Check]:
    """The checks on its gradients, likewise."""
    zero = f"{given.zero:.0%} of the images have no gradient"
    path = f"no path leads from the logits back to the image ({given.error})"
    came = "more than all" if given.consistency > 1.5 else f"{given.consistency:.0%}"
    foretold = f"of the rise of the loss that the gradient foretells {came} comes"
    none = bool(given.error) or given.zero == 1
    return [
        Check(
            "finite gradients",
            State.REMEDIED if given.infinite else State.PASSED,
            f"{given.infinite:.2%} of the derivatives are not finite"
            if given.infinite
            else "all derivatives are finite",
            "they count as 0" * bool(given.infinite),
        ),
        _check("non-differentiable step", path if given.error else "none", bool(given.error), bool(best.error), chosen),
        _check(
            "zero gradients",
            "there are none" if given.error else zero,
            given.zero > ZERO and not given.error,
            best.zero > ZERO,
            chosen,
        ),
        _check(
            "masked gradients",
            "there are none to compare" if none else foretold,
            not none and given.consistency < CONSISTENT,
            best.consistency < CONSISTENT,
            chosen,
        ),
    ]


def _check(name: str, reason: str, fired: bool, still: bool, chosen: Remedies) -> Check:
    if not fired:
        return Check(name, State.PASSED, reason)
    if still:
        return Check(name, State.FAILED, reason)
    return Check(name, State.REMEDIED, reason, str(replace(chosen, draws=0, alone=False, scale=1.0)))


def _noisy(images: Tensor, levels: int) -> Tensor:
    """Every pixel moved by at most so many levels, the same for all images and at every call."""
    drawn = np.random.default_rng(levels).integers(-levels, levels + 1, size=images.shape[1:], dtype=np.int16)
    return (images.to(torch.int16) + torch.from_numpy(drawn).to(images.device)).clamp_(0, 255).to(torch.uint8)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    return DenseEvaluator(model).logits(images)
