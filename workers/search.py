"""The one way a search runs: clean predictions, the attack, then success, distances and counts for all attacks."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workers.attacks.attack import Attack
from workers.detectors.guarded import Judged
from workers.errors import WrongInput
from workers.evaluation.dense import DenseEvaluator
from workers.evaluation.few_pixel import FewPixelEvaluator, Neighbourhood, changed_images
from workers.evaluation.scores import lead, log_odds
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
        """bool ``[n]``: whether the prediction is the target, or not the label.

        Args:
            logits: ``[n, K]``.
            rows: int64 ``[n]``, which image of the batch each row of logits belongs to.
        """
        logits, excess = self.apart(logits)
        hit = logits.argmax(dim=1) == self.classes[rows]
        reached = ~hit if self.targets is None else hit
        return reached if excess is None else reached & (excess <= 0)

    def apart(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the classes alone, and the excess ``[n]`` behind them; None where no detector is."""
        return (logits[:, :-1].contiguous(), logits[:, -1]) if self.guarded else (logits, None)

    def margin(self, logits: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[n]``: how far the logits are from the goal; below zero where it is reached.

        Untargeted, the label's logit over the best other one; targeted, the best other one over the target's.
        """
        logits, excess = self.apart(logits)
        ahead = lead(logits, self.classes[rows])
        margin = ahead if self.targets is None else -ahead
        return margin if excess is None else torch.maximum(margin, excess)

    def log_odds(self, logits: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[n]``: the log-odds of the label (untargeted), or minus those of the target (targeted).

        The order of the label's probability, or of 1 − the target's, without their rounding.
        """
        logits, excess = self.apart(logits)
        odds = log_odds(logits, self.classes[rows])
        odds = odds if self.targets is None else -odds
        return odds if excess is None else torch.maximum(odds, excess)

    def loss(self, loss: Loss, logits: Tensor, rows: Tensor) -> Tensor:
        """float32 ``[n]``: the loss that the search raises (see `workers.losses`), of logits ``[n, K]``."""
        logits, excess = self.apart(logits)
        raised = values(loss, logits, self.labels[rows], None if self.targets is None else self.targets[rows])
        return raised if excess is None else raised - excess.relu()

    def loss_cotangent(self, logits: Tensor, rows: Tensor, loss: Loss = "ce") -> Tensor:
        """The derivative ``[n, K]`` of `loss` by the logits."""
        logits, excess = self.apart(logits)
        vector = cotangents(loss, logits, self.labels[rows], None if self.targets is None else self.targets[rows])
        return vector if excess is None else torch.cat([vector, -(excess > 0).to(vector)[:, None]], dim=1)


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
        self.queries, self.gradients, self.generations = (
            torch.zeros(len(images), dtype=torch.int64, device=images.device) for _ in range(3)
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
        self._count(self.queries, rows, 1)
        return self._evaluator.logits(images)

    def around(self, images: Tensor, rows: Tensor) -> "Around":
        """Few-pixel changes of images uint8 ``[m, C, H, W]``, each a query of its row (int64 ``[m]``)."""
        shape = (images.shape[1], images.shape[2], images.shape[3])
        evaluator = FewPixelEvaluator(self._evaluator, shape, threads=torch.get_num_threads())
        return Around(self, Neighbourhood(evaluator, images), rows)

    def vector_jacobian(
        self, images: Tensor, rows: Tensor, cotangents: Callable[[Tensor, Tensor], Sequence[Tensor]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits ``[n, K]`` and vector–Jacobian products ``[n, C, H, W]``; one query and a gradient a product.

        Args:
            images: ``[n, C, H, W]``, uint8 or float in [0, 1].
            rows: int64 ``[n]``, the image of the batch that each belongs to.
            cotangents: given logits ``[m, K]`` and their rows ``[m]``, returns the vectors, each ``[m, K]``.
        """
        logits, products = self._evaluator.gradients(images, lambda found, part: cotangents(found, rows[part]))
        self._count(self.queries, rows, 1)
        self._count(self.gradients, rows, len(products))
        return logits, products

    def clean_gradient(self) -> Tensor:
        """The gradient ``[B, C, H, W]`` of the loss ``ce`` at the clean images, a query and a gradient each.

        For an attack that says ``USES_CLEAN_GRADIENT``: it was taken in the pass of the clean predictions.
        """
        assert self._clean_gradient is not None
        for counter in (self.queries, self.gradients):
            self._count(counter, self.all_rows, 1)
        return self._clean_gradient

    def keys(self, rows: Tensor) -> Tensor:
        """Two words for each row, int64 ``[n, 2]``: the key of its counter-based draws (`workers.draws`)."""
        words = [np.random.SeedSequence(self._streams[row]).generate_state(2) for row in rows.tolist()]
        return torch.from_numpy(np.array(words, dtype=np.int64).reshape(-1, 2)).to(rows.device)

    def draws(self, rows: Tensor) -> list[np.random.Generator]:
        """A random stream for each row, keyed by (seed, image id, target, attack) and by nothing else."""
        keys = (self._streams[row] for row in rows.tolist())
        return [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))) for key in keys]

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

        A candidate whose margin lies within twice the evaluator's tolerance is scored again by the whole model,
        so success is what the whole model says of every candidate.
        """
        rows = self.rows[index]
        self.batch._count(self.batch.queries, rows, 1)
        logits, tolerance = self.neighbourhood.logits(index, position, levels)
        margin = self.batch.goal.margin(logits, rows)
        if tolerance is None:
            return logits, margin, self.batch.goal.reached(logits, rows)
        success = margin < 0  # what a tie means is asked below
        unsure = torch.nonzero(margin.abs() <= 2 * tolerance)[:, 0]
        if len(unsure):
            exact = self.neighbourhood.dense_logits(index[unsure], position[unsure], levels[unsure])
            success[unsure] = self.batch.goal.reached(exact, rows[unsure])
            margin[unsure] = self.batch.goal.margin(exact, rows[unsure])
            logits[unsure] = exact
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
        (``already_wrong``), nor is one whose target is its label (``skipped``).

    Raises:
        ValueError: for images, labels, targets or ids of a wrong type, shape or range, or when the model's logits are
            not finite.
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
        _require_finite(logits)
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

    That is the evaluator; ``searched`` is what a search is to look at instead, where that is something else.
    """

    model: nn.Module
    evaluator: DenseEvaluator
    searched: DenseEvaluator | None
    clean: Tensor
    logits: Tensor
    gradient: Tensor | None
    goal: Goal
    label: np.ndarray
    target: np.ndarray | None
    ids: np.ndarray
    seed: int
    split: str
    worker: str


def _at_budget(attack: Attack, subject: _Subject, smaller: SearchResult | None) -> SearchResult:
    """Searches every image that the smaller budget did not break, and scores all."""
    started = time.perf_counter()
    clean, label, target, count = subject.clean, subject.label, subject.target, len(subject.clean)
    status = np.full(count, Status.EXHAUSTED, dtype=object)
    clean_prediction = subject.logits.argmax(dim=1).cpu().numpy()
    if target is not None:
        status[target == label] = Status.SKIPPED
    status[clean_prediction != label] = Status.ALREADY_WRONG
    counts, adversarial = np.zeros((3, count), dtype=np.int64), clean.clone()
    if smaller is not None:
        counts += np.stack([smaller.queries, smaller.gradients, smaller.generations])
        broken = np.flatnonzero(smaller.success)
        status[broken] = Status.SUCCESS
        adversarial[broken] = torch.from_numpy(smaller.adversarial[broken]).to(clean.device)
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
    _require_finite(logits)
    reached = goal.reached(logits[rows], state.all_rows).cpu().numpy()
    logits, _ = goal.apart(logits)
    if subject.searched is None:  # what is proved of another view of the model is not proved of its own answers
        status[searched[state.certified.cpu().numpy()]] = Status.CERTIFIED
    status[searched[reached]] = Status.SUCCESS

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
        adversarial_prediction=logits.argmax(dim=1).cpu().numpy(),
        clean_confidence=subject.logits.softmax(dim=1).amax(dim=1).cpu().numpy(),
        adversarial_confidence=logits.softmax(dim=1).amax(dim=1).cpu().numpy(),
        distances=distances(clean.cpu().numpy(), stored),
        queries=counts[0],
        gradients=counts[1],
        generations=counts[2],
        seconds=np.full(count, (time.perf_counter() - started) / max(count, 1)),
        worker=subject.worker,
        adversarial=stored,
        error=[None] * count,
        by_products={name: _spread(part, searched, count) for name, part in state.by_products.items()},
    )


def _require_finite(logits: Tensor) -> None:
    """Refuses a model whose answer decides nothing: NaN is neither right nor wrong."""
    if not bool(logits.isfinite().all()):
        raise ValueError("the model returned logits that are not finite")


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
