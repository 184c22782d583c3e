"""The one way a search runs: clean predictions, the attack, then success, distances and counts for all attacks."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers import compiled
from workers.attacks.attack import Attack
from workers.detectors.guarded import Judged
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.few_pixel import FewPixelEvaluator, Neighbourhood, changed_images
from workers.evaluation.scores import answered, lead, log_odds, predicted
from workers.losses import Loss, cotangents, values
from workers.remedies.remedied import Remedied, judging
from workers.results import SearchResult, Status, distances

__all__ = ["Around", "Batch", "Goal", "search", "search_budgets"]


@dataclass(frozen=True)
class Goal:
    """What each image of a batch is to be classified as.

    Attributes:
        labels: int64 ``[B]``, the true classes.
        targets: int64 ``[B]``, the target classes; None when untargeted.
        guarded: whether logits have a detector's excess behind them (`workers.detectors.guarded.Judged`), which is to
            be brought to 0 as well: margin and log-odds are then the worse of both, the loss is less the excess.
    """

    labels: Tensor
    targets: Tensor | None
    guarded: bool = False

    @property
    def classes(self) -> Tensor:
        """int64 ``[B]``: the class the search moves towards (targeted) or away from (untargeted)."""
        return self.labels if self.targets is None else self.targets

    def reached(self, logits: Tensor, rows: Tensor) -> Tensor:
        """bool ``[n]``: whether the prediction is the target, or not the label; no where there is no answer.

        Args:
            logits: ``[n, K]``.
            rows: int64 ``[n]``, which image of the batch each row of logits belongs to.
        """
        known = answered(logits)
        logits, excess = self.apart(logits)
        hit = logits.argmax(dim=1) == self.classes[rows]
        reached = (~hit if self.targets is None else hit) & known
        return reached if excess is None else reached & (excess <= 0)

    def apart(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the classes alone, and the excess ``[n]`` behind them; None where no detector is."""
        return (logits[:, :-1].contiguous(), logits[:, -1]) if self.guarded else (logits, None)

    def margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[n]``: how far the logits are from the goal; below zero where it is reached, ∞ without an answer.

        Untargeted, the label's logit over the best other one; targeted, the best other one over the target's.
        """
        logits, excess = self.apart(logits)
        ahead = lead(logits, self.classes[rows])
        margin = ahead if self.targets is None else -ahead
        return _never_best(margin if excess is None else torch.maximum(margin, excess))

    def log_odds(self, logits: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[n]``: the log-odds of the label (untargeted), or minus those of the target (targeted).

        The order of the label's probability, or of 1 − the target's, without their rounding; ∞ without an answer.
        """
        logits, excess = self.apart(logits)
        odds = log_odds(logits, self.classes[rows])
        odds = odds if self.targets is None else -odds
        return _never_best(odds if excess is None else torch.maximum(odds, excess))

    def loss(self, loss: Loss, logits: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[n]``: the loss that the search raises (`workers.losses`), of ``[n, K]``; −∞ without an answer."""
        known = answered(logits)
        logits, excess = self.apart(logits)
        raised = values(loss, logits, self.labels[rows], None if self.targets is None else self.targets[rows])
        raised = raised if excess is None else raised - excess.relu()
        return raised.masked_fill(~known | raised.isnan(), -torch.inf)  # the ratio of infinite differences is none

    def loss_cotangent(self, logits: Tensor, rows: Tensor, loss: Loss = "ce") -> Tensor:
        """The derivative ``[n, K]`` of `loss` by the logits."""
        logits, excess = self.apart(logits)
        vector = cotangents(loss, logits, self.labels[rows], None if self.targets is None else self.targets[rows])
        return vector if excess is None else torch.cat([vector, -(excess > 0).to(vector)[:, None]], dim=1)


def _never_best(lowest: Tensor) -> Tensor:
    """What is made small, ∞ where there is no answer."""
    return lowest.masked_fill_(lowest.isnan(), torch.inf)


class Batch:
    """The state of one search: what the attack reads, and what it leaves behind.

    Attributes:
        images: uint8 ``[B, C, H, W]``, the clean images; never written to.
        goal: what each is to become.
        classes: the model's number of classes K.
        adversarial: uint8 ``[B, C, H, W]``, what the attack found; the clean images at first.
        certified: bool ``[B]``, set by an attack that has tried all of its space.
        by_products: arrays ``[B, …]`` by name that an attack leaves beside the rows, maps for example.
        queries, gradients, generations: int64 ``[B]``, counted a row.
        unanswered: int64 ``[B]``, those of the queries that came back without an answer.
        not_finite: int64 ``[B]``, derivatives by single features that were not finite, of images that had an answer.
    """

    def __init__(
        self,
        images: Tensor,
        goal: Goal,
        classes: int,
        evaluator: DenseEvaluator,
        streams: Sequence[Sequence[int]],
        clean_gradient: Tensor | None = None,
    ) -> None:
        self.images, self.goal, self.classes = images, goal, classes
        self.adversarial = images.clone()
        self.queries, self.gradients, self.generations, self.unanswered, self.not_finite = (
            torch.zeros(len(images), dtype=torch.int64, device=images.device) for _ in range(5)
        )
        self.certified = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.by_products: dict[str, Tensor] = {}
        self._evaluator, self._streams, self._clean_gradient = evaluator, streams, clean_gradient

    def __len__(self) -> int:
        return len(self.images)

    @property
    def all_rows(self) -> Tensor:
        """int64 ``[B]``: 0, 1, …, B − 1."""
        return torch.arange(len(self), device=self.images.device)

    @property
    def model(self) -> nn.Module:
        """The model itself, for foreign code that calls it in its own way and has its calls counted by the caller."""
        return self._evaluator.model

    @property
    def guides(self) -> Tensor:
        """Logits ``[G, K]`` of clean images that a detector lets through.

        Raises:
            WrongInput: when no detector guards the model.
        """
        if not self.goal.guarded:
            raise WrongInput("--form: matching needs a model behind a detector, as brittle detect writes it")
        guides: Tensor = self._evaluator.model.guarded.guides  # type: ignore[union-attr,assignment]
        return guides

    @property
    def at_once(self) -> int:
        """The most images that one call of the model takes."""
        return self._evaluator.batch

    def logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """Logits ``[n, K]`` of images ``[n, C, H, W]`` (uint8, or float in [0, 1]), each one a query of its row."""
        logits = self._evaluator.logits(images)
        self._ask(logits, rows)
        return logits

    def around(self, images: Tensor, rows: Tensor) -> "Around":
        """Few-pixel changes of images uint8 ``[m, C, H, W]``, each a query of its row (int64 ``[m]``)."""
        return Around(self, Neighbourhood(self._few_pixel, images), rows)

    @cached_property
    def _few_pixel(self) -> FewPixelEvaluator:
        _, channels, height, width = self.images.shape
        return FewPixelEvaluator(self._evaluator, (channels, height, width), threads=torch.get_num_threads())

    def vector_jacobian(
        self, images: Tensor, rows: Tensor, cotangents: Callable[[Tensor, Tensor], Sequence[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits ``[n, K]`` and vector–Jacobian products ``[n, C, H, W]``; one query and a gradient a product.

        A derivative that is not finite tells no direction: it is 0 here, and counted.

        Args:
            images: ``[n, C, H, W]``, uint8 or float in [0, 1].
            rows: int64 ``[n]``, the image of the batch that each belongs to.
            cotangents: given logits ``[m, K]`` and their rows ``[m]``, returns the vectors, each ``[m, K]``.
        """
        logits, products = self.derivatives(images, rows, cotangents)
        return logits, [product.nan_to_num_(0, 0, 0) for product in products]

    def derivatives(
        self, images: Tensor, rows: Tensor, cotangents: Callable[[Tensor, Tensor], Sequence[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """As `vector_jacobian`, for an attack that is to know which derivatives are not finite: they are left so."""
        logits, products = self._evaluator.gradients(images, lambda found, part: cotangents(found, rows[part]))
        self._ask(logits, rows)
        self._count(self.gradients, rows, len(products))
        known = answered(logits)
        for product in products:
            self.not_finite.index_add_(0, rows, (~product.isfinite()).flatten(1).sum(dim=1) * known)
        return logits, products

    def clean_gradient(self) -> Tensor:
        """The gradient ``[B, C, H, W]`` of the loss ``ce`` at the clean images, a query and a gradient each.

        For an attack that says ``USES_CLEAN_GRADIENT``: it was taken in the pass of the clean predictions.
        """
        assert self._clean_gradient is not None
        for counter in (self.queries, self.gradients):
            self._count(counter, self.all_rows, 1)
        self.not_finite += (~self._clean_gradient.isfinite()).flatten(1).sum(dim=1)
        return self._clean_gradient.nan_to_num(0, 0, 0)

    def keys(self, rows: Tensor) -> Tensor:
        """Two words for each row, int64 ``[n, 2]``: the key of its counter-based draws (`workers.draws`)."""
        words = [np.random.SeedSequence(self._streams[row]).generate_state(2) for row in rows.tolist()]
        return torch.from_numpy(np.array(words, dtype=np.int64).reshape(-1, 2)).to(rows.device)

    def draws(self, rows: Tensor) -> list[np.random.Generator]:
        """A random stream for each row, keyed by (seed, image id, target, attack) and by nothing else."""
        keys = (self._streams[row] for row in rows.tolist())
        return [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))) for key in keys]

    def _ask(self, logits: Tensor, rows: Tensor, margin: Tensor | None = None) -> None:
        """Counts a query for each row of what came back, and which of them are no answer: none of a finite margin."""
        self._count(self.queries, rows, 1)
        host = compiled.on_host(logits)  # no device is waited for
        if host and margin is not None and bool((margin < torch.inf).all()):
            return
        missing = ~answered(logits)
        if not host or bool(missing.any()):
            self.unanswered.index_add_(0, rows, missing.long())

    def _count(self, counter: Tensor, rows: Tensor, amount: int) -> None:
        counter.index_add_(0, rows, torch.full_like(rows, amount))


@dataclass(frozen=True)
class Around:
    """Few-pixel changes of some images of a batch: judged, and counted as queries.

    Attributes:
        batch: the search's state.
        neighbourhood: the images.
        rows: int64 ``[m]``, the row of the batch that each image belongs to.
    """

    batch: Batch
    neighbourhood: Neighbourhood
    rows: Tensor

    def judge(self, index: Tensor, position: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[n, K]``, margins ``[n]`` and success ``[n]`` of candidates (as of `Neighbourhood.logits`).

        A candidate whose margin does not lie beyond twice the evaluator's tolerance is scored again by the whole
        model, so success is what the whole model says of every candidate.
        """
        rows = self.rows[index]
        logits, tolerance = self.neighbourhood.logits(index, position, levels)
        margin = self.batch.goal.margin(logits, rows)
        if tolerance is None:
            success = self.batch.goal.reached(logits, rows)
        else:
            success = margin < 0  # what a tie means is asked below
            unsure = torch.nonzero(~(margin.abs() > 2 * tolerance) | margin.isinf())[:, 0]
            if len(unsure):
                exact = self.neighbourhood.dense_logits(index[unsure], position[unsure], levels[unsure])
                success[unsure] = self.batch.goal.reached(exact, rows[unsure])
                margin[unsure] = self.batch.goal.margin(exact, rows[unsure])
                logits[unsure] = exact
        self.batch._ask(logits, rows, margin)
        return logits, margin, success

    def images(self, index: Tensor, position: Tensor, levels: Tensor) -> Tensor:
        """The candidates as uint8 images ``[n, C, H, W]``."""
        return changed_images(self.neighbourhood.images, index, position, levels)


def search(attack: Attack, model: nn.Module, images: Any, labels: Any, **options: Any) -> SearchResult:
    """Attacks images in this process; arguments, rows and errors are those of `search_budgets`."""
    return search_budgets((attack,), model, images, labels, **options)[0]


def search_budgets(
    attacks: Sequence[Attack],
    model: nn.Module,
    images: Any,
    labels: Any,
    *,
    targets: Any = None,
    ids: Any = None,
    seed: int = 0,
    split: str = "all",
    worker: str = "",
    block: int = 16,
    batch: int = 64,
) -> list[SearchResult]:
    """Attacks images in this process, within one budget after another.

    Args:
        attacks: one method with its parameters, the budget ascending (`Attack.at_each_budget`). An image broken
            within a budget is not searched again within a larger one: its row is carried on. The counts of a row
            are of all searches up to its budget. (Neither holds where `Attack.CARRIES` says so.)
        model: float images ``[n, C, H, W]`` in [0, 1] to logits ``[n, K]``; run in ``eval()`` mode, and left in
            the mode it came in. Behind a detector (`Guarded`) an image is broken when it is not flagged either; one
            that hides its gradients (`Remedied`) is searched in another form, and an image is broken when it says so.
        images: uint8 ``[n, C, H, W]``, or float in [0, 1] on the 8-bit grid (multiples of 1/255); array or tensor.
        labels: integers ``[n]`` in 0 to K − 1.
        targets: one class or ``[n]`` of them; None for an untargeted search.
        ids: integers ``[n]``, at least 0, that key the random streams and name the rows; 0, 1, … when None.
        seed: keys the random streams.
        split, worker: written into the rows.
        block, batch: see `DenseEvaluator`.

    Returns:
        For each attack one row an image. An image that the model already misclassifies is not searched
        (``already_wrong``), nor is one whose target is its label (``skipped``). One that is not answered by finite
        numbers, clean or changed in some way, is ``failed``: the changes without an answer cannot be judged, so
        nothing is said of the others either.

    Raises:
        ValueError: for images, labels, targets or ids of a wrong type, shape or range.
    """
    whole = judging(model)
    evaluator = DenseEvaluator(whole, block=block, batch=batch)
    clean = _eight_bit(images).to(evaluator.device)
    attacks = [attack.for_images((clean.shape[1], clean.shape[2], clean.shape[3])) for attack in attacks]
    label = _class_numbers("labels", labels, len(clean))
    target = None if targets is None else _class_numbers("targets", targets, len(clean))
    ids = _image_ids(ids, len(clean))
    goal = Goal(
        torch.from_numpy(label).to(clean.device),
        None if target is None else torch.from_numpy(target).to(clean.device),
        isinstance(whole, Judged),
    )

    def clean_pass(evaluator: DenseEvaluator, goal: Goal) -> tuple[Tensor, Tensor]:
        """Logits and the loss's gradient."""

        def cotangents(logits: Tensor, part: slice) -> list[Tensor]:
            _refuse_unknown_classes(label, target, logits.shape[1] - goal.guarded)
            return [goal.loss_cotangent(logits, torch.arange(part.start, part.stop, device=clean.device))]

        logits, (gradient,) = evaluator.gradients(clean, cotangents)
        return logits, gradient

    results: list[SearchResult] = []
    with _evaluation_mode(model):
        gradient = None
        if attacks[0].USES_CLEAN_GRADIENT and not isinstance(model, Remedied):
            logits, gradient = clean_pass(evaluator, goal)
        else:
            logits = evaluator.logits(clean)
        known = answered(logits).cpu().numpy()
        logits, _ = goal.apart(logits)
        _refuse_unknown_classes(label, target, logits.shape[1])
        searched = DenseEvaluator(model.searched, block=block, batch=batch) if isinstance(model, Remedied) else None
        if attacks[0].USES_CLEAN_GRADIENT and searched is not None:
            _, gradient = clean_pass(searched, Goal(goal.labels, goal.targets))
        subject = _Subject(
            model,
            evaluator,
            searched,
            clean,
            logits,
            known,
            gradient,
            goal,
            label,
            target,
            ids,
            seed=seed,
            split=split,
            worker=worker,
        )
        for attack in attacks:
            attack.check((clean.shape[1], clean.shape[2], clean.shape[3]), logits.shape[1])
            attack.check_goal(targeted=target is not None)
            results.append(_at_budget(attack, subject, results[-1] if results and attack.CARRIES else None))
    return results


@dataclass(frozen=True)
class _Subject:
    """What is the same at every budget: the clean images, what they are to become, and what says whether they are.

    That is the evaluator; ``searched`` is what a search is to look at instead, where that is something else. ``known``
    are the images that have an answer.
    """

    model: nn.Module
    evaluator: DenseEvaluator
    searched: DenseEvaluator | None
    clean: Tensor
    logits: Tensor
    known: np.ndarray
    gradient: Tensor | None
    goal: Goal
    label: np.ndarray
    target: np.ndarray | None
    ids: np.ndarray
    seed: int
    split: str
    worker: str


def _at_budget(attack: Attack, subject: _Subject, smaller: SearchResult | None) -> SearchResult:
    """Searches every image that the smaller budget did not break, or fail on, and scores all."""
    started = time.perf_counter()
    clean, label, target, count = subject.clean, subject.label, subject.target, len(subject.clean)
    status = np.full(count, Status.EXHAUSTED, dtype=object)
    error = np.full(count, None, dtype=object)
    clean_prediction = predicted(subject.logits).cpu().numpy()
    if target is not None:
        status[target == label] = Status.SKIPPED
    status[clean_prediction != label] = Status.ALREADY_WRONG
    status[~subject.known] = Status.FAILED
    error[~subject.known] = f"the clean image was answered by {_NOT_FINITE}"
    counts, adversarial = np.zeros((3, count), dtype=np.int64), clean.clone()
    if smaller is not None:
        counts += np.stack([smaller.queries, smaller.gradients, smaller.generations])
        broken = np.flatnonzero(smaller.success)
        status[broken] = Status.SUCCESS
        adversarial[broken] = torch.from_numpy(smaller.adversarial[broken]).to(clean.device)
        failed = smaller.status == Status.FAILED  # a change without an answer is one within the larger budget too
        status[failed], error[failed] = Status.FAILED, np.array(smaller.error, dtype=object)[failed]
    searched = np.flatnonzero(status == Status.EXHAUSTED)

    rows = torch.from_numpy(searched).to(clean.device)
    whole = subject.goal
    goal = Goal(whole.labels[rows], None if whole.targets is None else whole.targets[rows], whole.guarded)
    gradient = None if subject.gradient is None else subject.gradient[rows]
    # Keyed by the attack's name alone: the same search with a larger budget begins with the same draws.
    attack_key = int.from_bytes(hashlib.sha256(attack.NAME.encode()).digest()[:8])
    keys = [
        (subject.seed, int(subject.ids[i]), 0 if target is None else int(target[i]) + 1, attack_key) for i in searched
    ]
    evaluator, seen = subject.searched or subject.evaluator, goal
    if goal.guarded and subject.searched is None and not attack.JOINT:
        # it searches as if there were no detector, and is judged behind it
        evaluator = DenseEvaluator(subject.model, block=evaluator.block, batch=evaluator.batch)
    if evaluator is not subject.evaluator:
        seen = Goal(goal.labels, goal.targets)
    state = Batch(clean[rows], seen, subject.logits.shape[1], evaluator, keys, gradient)
    if len(searched):
        attack._search(state)
    adversarial[rows] = state.adversarial
    logits = subject.evaluator.logits(adversarial)
    final = answered(logits)[rows]
    reached = goal.reached(logits[rows], state.all_rows).cpu().numpy()
    logits, _ = goal.apart(logits)
    if subject.searched is None:  # what is proved of another view of the model is not proved of its own answers
        status[searched[state.certified.cpu().numpy()]] = Status.CERTIFIED
    status[searched[reached]] = Status.SUCCESS
    for place, said in _without_answer(state, final).items():
        status[searched[place]], error[searched[place]] = Status.FAILED, said

    if bool(state.not_finite.any()):
        asked = (state.gradients * clean[0].numel()).clamp(min=1)
        state.by_products["gradients_not_finite"] = state.not_finite.double() / asked
    spent = torch.stack([state.queries, state.gradients, state.generations]).cpu().numpy()
    if isinstance(subject.model, Remedied):
        spent[:2] *= subject.model.asked
    counts[:, searched] += spent
    stored = adversarial.cpu().numpy()
    return SearchResult(
        image_id=subject.ids,
        source_split=subject.split,
        label=label,
        attack=attack.NAME,
        params_hash=attack.params_hash,
        target=np.full(count, -1) if target is None else target,
        seed=subject.seed,
        status=status,
        clean_prediction=clean_prediction,
        adversarial_prediction=predicted(logits).cpu().numpy(),
        clean_confidence=subject.logits.softmax(dim=1).amax(dim=1).cpu().numpy(),
        adversarial_confidence=logits.softmax(dim=1).amax(dim=1).cpu().numpy(),
        distances=distances(clean.cpu().numpy(), stored),
        queries=counts[0],
        gradients=counts[1],
        generations=counts[2],
        seconds=np.full(count, (time.perf_counter() - started) / max(count, 1)),
        worker=subject.worker,
        adversarial=stored,
        error=list(error),
        by_products={name: _spread(part, searched, count) for name, part in state.by_products.items()},
    )


_NOT_FINITE = "numbers that are not finite"


def _without_answer(state: Batch, final: Tensor) -> dict[int, str]:
    """What is wrong with the rows of a search that met changes without an answer, by row.

    Args:
        state: after the search.
        final: bool ``[B]``, which of the images that it left have an answer.
    """
    found = dict.fromkeys(_rows_of(~final), f"the image that the search left was answered by {_NOT_FINITE}")
    for row in _rows_of(state.unanswered):
        found[row] = f"{state.unanswered[row]} of {state.queries[row]} changes were answered by {_NOT_FINITE}"
    return found


def _rows_of(which: Tensor) -> list[int]:
    return torch.nonzero(which)[:, 0].tolist()


def _spread(part: Tensor, searched: np.ndarray, count: int) -> np.ndarray:
    """The values of the searched rows among zeros for the others."""
    values = np.zeros((count, *part.shape[1:]), dtype=part.cpu().numpy().dtype)
    values[searched] = part.cpu().numpy()
    return values


def _eight_bit(images: Any) -> Tensor:
    tensor = images if isinstance(images, Tensor) else torch.tensor(np.asarray(images))
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise ValueError(f"images must be [n, C, H, W] and not empty, got shape {list(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        return tensor.detach()
    if not tensor.is_floating_point():
        raise ValueError(f"images must be uint8 or float in [0, 1], got {tensor.dtype}")
    levels = tensor.detach() * 255
    rounded = levels.round()
    if not bool(((levels - rounded).abs() < 1e-2).all()) or rounded.min() < 0 or rounded.max() > 255:
        raise ValueError("float images must be multiples of 1/255 in [0, 1]: attacks store what an 8-bit file holds")
    return rounded.to(torch.uint8)


def _class_numbers(what: str, numbers: Any, count: int) -> np.ndarray:
    array = np.asarray(numbers.cpu() if isinstance(numbers, Tensor) else numbers)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{what} must be integers, got {array.dtype}")
    if array.ndim == 0 and what == "targets":
        array = np.full(count, array)
    if array.shape != (count,):
        raise ValueError(f"{what} must be one number an image ({count}), got shape {array.shape}")
    return array.astype(np.int64)


def _refuse_unknown_classes(label: np.ndarray, target: np.ndarray | None, classes: int) -> None:
    for what, array in (("labels", label), ("targets", target)):
        if array is not None and (array.min() < 0 or array.max() >= classes):
            raise ValueError(f"{what} must lie in 0 to {classes - 1}, got {array.min()} to {array.max()}")


def _image_ids(ids: Any, count: int) -> np.ndarray:
    array = np.arange(count) if ids is None else np.asarray(ids)
    if array.dtype.kind not in "iu" or array.shape != (count,) or array.min() < 0:
        raise ValueError(f"ids must be {count} integers of at least 0, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
