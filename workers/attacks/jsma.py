"""The Jacobian-based saliency map attack."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.attacks.attack import Attack
from workers.attacks.pair_search import best_pair
from workers.budgets import Amount, Number
from workers.errors import WrongInput

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["JSMA", "saliency"]

SEED_STEPS = 50


class JSMA(Attack):
    """Jacobian-based saliency map attack: moves the most salient features by θ until the goal is reached.

    Papernot et al. (2016), "The limitations of deep learning in adversarial settings", on the Jacobian of the
    logits F. With α = ∂F_target/∂x and β = Σ_{j≠target} ∂F_j/∂x, the ``pair`` map (Algorithm 3, the paper's
    attack) moves the two features p ≠ q with the largest −(α_p + α_q)·(β_p + β_q) where the first sum is above
    zero and the second below; the ``classes`` map (Eq. 8) one feature, with the largest α·|β| where α > 0 and
    β < 0; the ``prediction`` map (the seed's code) likewise under β = ∂F_predicted/∂x − ∂F_target/∂x. For θ < 0
    the signs of α and β are flipped (Eq. 9). A feature is one channel of a pixel.

    A saturated feature leaves the search domain, and one without a finite α and β does for that step; an image without
    an admissible feature or pair is exhausted.
    γ limits the features that differ from the clean image, and is never overshot: with features left for a step,
    any in the domain may move, else only those that have moved already. As in Algorithm 3 a pair needs two, so
    that an odd rest is not used.

    The maps take no notice of how far a feature can still move: at θ = 1 a pixel of level 254 is chosen by its
    derivative as one of level 0 is. With ``weighted`` (brittle's own) α and β of each feature are multiplied by
    the part of θ that it can move, so that the maps rank what a step does; where a whole step fits they are the
    same.

    Untargeted, every other class is tried as the target, all of them step by step together, until the image is
    misclassified: that with the fewest changed features is kept (then the fewest steps, then the class first in
    order after the label), and a search that has changed as many already is given up.
    """

    NAME: ClassVar[str] = "jsma"
    BY_GRADIENTS: ClassVar[bool] = True
    JOINT: ClassVar[bool] = False

    map: Literal["prediction", "classes", "pair"] = Field(
        "prediction", description="Saliency map: the seed's, Papernot's Eq. 8, or his pairs of features."
    )
    theta: Amount = Field(1.0, ge=-1, le=1, description="θ, the change of a feature in a step; negative lowers it.")
    gamma: Number | None = Field(
        None, gt=0, le=1, description="γ, the most features that may change, as a share of all; no limit when absent."
    )
    max_steps: int | None = Field(
        None, ge=1, description=f"Most steps; {SEED_STEPS} when neither this nor --gamma is given, else no limit."
    )

    weighted: bool = Field(
        False, description="Weigh a feature's derivatives by how far a step can move it before it saturates."
    )

    @property
    def features_a_step(self) -> int:
        """How many features a step moves."""
        return 2 if self.map == "pair" else 1

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if round(255 * abs(self.theta)) < 1:
            raise WrongInput(f"--theta: must move a feature by a level at least (1/255), got {self.theta}")
        features = shape[0] * shape[1] * shape[2]
        if self.gamma is not None and self.most_features(features) < self.features_a_step:
            least = "one" if self.features_a_step == 1 else "two"
            raise WrongInput(f"--gamma: must allow {least} of the {features} features at least, got {self.gamma}")
        return self

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        most = min(self.most_features(features), self.features_a_step * self.step_limit(features))
        return moved.l0_features <= most

    def most_features(self, features: int) -> int:
        """⌊γ·features⌋, all of them without γ."""
        return features if self.gamma is None else int(self.gamma * features + 1e-9)  # 0.57 · 100 falls short of 57

    def step_limit(self, features: int) -> int:
        """The most steps for images of this many features."""
        if self.max_steps is not None:
            return self.max_steps
        return SEED_STEPS if self.gamma is None else 255 * features

    def _search(self, batch: "Batch") -> None:
        """Searches towards every target of every image; waiting images take the places of finished ones.

        The targets of one image enter and step together, and what becomes of them depends on no other image.
        """
        import torch

        clean = batch.images.flatten(1)
        nothing = clean.shape[1] + 1  # more features than can change
        fewest = torch.full_like(batch.goal.labels, nothing)  # changed features of the best success so far
        targets = 1 if batch.goal.targets is not None else batch.classes - 1
        places = max(batch.at_once, targets)
        step_levels, most_steps = round(255 * self.theta), self.step_limit(clean.shape[1])
        waiting = batch.all_rows
        searches = _Searches.of(batch, waiting[:0])
        while True:
            room = max(0, places - len(searches)) // targets
            if room and len(waiting):
                searches = searches + _Searches.of(batch, waiting[:room])
                waiting = waiting[room:]
            if not len(searches):
                return
            reached, score, chosen = self._examine(batch, searches)
            before = fewest[searches.image]
            fewest.scatter_reduce_(0, searches.image, searches.changed.masked_fill(~reached, nothing), "amin")
            after = fewest[searches.image]
            stays = (score > 0) & (searches.steps < most_steps) & (searches.changed < after)
            going = torch.nonzero(stays)[:, 0]  # the host waits for the device here, and once a call in `best_pair`
            if len(going) < len(searches):
                better = reached & (searches.changed == after) & (after < before)
                fallback = ~stays & (searches.order == 0) & (after == nothing)
                searches.at(torch.nonzero(better | fallback)[:, 0]).keep_first(batch)
                searches, chosen = searches.at(going), chosen[going]
            searches.move(chosen, step_levels, clean)
            batch.generations.index_add_(0, searches.image, torch.ones_like(searches.image))

    def _examine(self, batch: "Batch", searches: "_Searches") -> tuple["Tensor", "Tensor", "Tensor"]:
        """Whether each search has reached the goal, the best score ``[m]`` and its features ``[m, 1 or 2]``."""
        import torch

        parts = torch.split(torch.arange(len(searches), device=searches.image.device), batch.at_once)
        found = [self._examine_at_once(batch, searches.at(part)) for part in parts]
        reached, score, chosen = (torch.cat(results) for results in zip(*found, strict=True))
        return reached, score, chosen

    def _examine_at_once(self, batch: "Batch", searches: "_Searches") -> tuple["Tensor", "Tensor", "Tensor"]:
        """As `_examine`, for as many searches as the model takes in a call."""
        import torch

        def cotangents(logits: "Tensor", rows: "Tensor") -> list["Tensor"]:
            towards = torch.zeros_like(logits).scatter(1, searches.target[:, None], 1)
            if self.map != "prediction":
                return [towards, 1 - towards]
            predicted = torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1)
            return [towards, predicted - towards]

        images = searches.levels.view(-1, *batch.images.shape[1:])
        logits, (alpha, beta) = batch.derivatives(images, searches.image, cotangents)
        alpha, beta = alpha.flatten(1), beta.flatten(1)
        known = alpha.isfinite() & beta.isfinite()
        alpha, beta = (derivative.where(known, 0) for derivative in (alpha, beta))
        if self.weighted:
            step = abs(round(255 * self.theta))
            room = 255 - searches.levels if self.theta > 0 else searches.levels
            part = room.clamp_max(step) / step
            alpha, beta = alpha * part, beta * part
        domain = known & (searches.levels != (255 if self.theta > 0 else 0))
        if self.gamma is not None:
            spent = searches.changed + self.features_a_step > self.most_features(images[0].numel())
            domain &= ~spent[:, None] | (searches.levels != batch.images.flatten(1)[searches.image])
        if self.map == "pair":
            score, chosen = best_pair(*((alpha, -beta) if self.theta > 0 else (-alpha, beta)), domain)
        else:
            score, feature = (saliency(alpha, beta, falling=self.theta < 0) * domain).max(dim=1)
            chosen = feature[:, None]
        return batch.goal.reached(logits, searches.image), score, chosen


@dataclass
class _Searches:
    """Searches under way, one a row.

    Attributes:
        image: int64 ``[m]``, the row of the batch.
        target: int64 ``[m]``, the class that it is moved towards.
        order: int64 ``[m]``, the target's place among the image's targets.
        levels: uint8 ``[m, C·H·W]``, the current image.
        changed: int64 ``[m]``, how many features differ from the clean image.
        steps: int64 ``[m]``, steps taken.
    """

    image: "Tensor"
    target: "Tensor"
    order: "Tensor"
    levels: "Tensor"
    changed: "Tensor"
    steps: "Tensor"

    @classmethod
    def of(cls, batch: "Batch", rows: "Tensor") -> Self:
        """The searches of some rows of the batch at their start: one target each, or all classes but the label."""
        import torch

        if batch.goal.targets is not None:
            image, order = rows, torch.zeros_like(rows)
            target = batch.goal.targets[rows]
        else:
            order = torch.arange(batch.classes - 1, device=rows.device).repeat(len(rows))
            image = rows.repeat_interleave(batch.classes - 1)
            target = (batch.goal.labels[image] + 1 + order) % batch.classes
        levels = batch.images.flatten(1)[image]
        return cls(image, target, order, levels, torch.zeros_like(image), torch.zeros_like(image))

    def __len__(self) -> int:
        return len(self.image)

    def __add__(self, other: Self) -> Self:
        import torch

        mine, others = vars(self), vars(other)
        return type(self)(**{field.name: torch.cat([mine[field.name], others[field.name]]) for field in fields(self)})

    def at(self, rows: "Tensor") -> Self:
        """Copies of some of the searches."""
        return type(self)(**{name: values[rows] for name, values in vars(self).items()})

    def move(self, chosen: "Tensor", step_levels: int, clean: "Tensor") -> None:
        """Moves the features ``chosen`` int64 ``[m, 1 or 2]``, no two of a row equal, by a step."""
        import torch

        levels = self.levels.gather(1, chosen)
        self.changed += (levels == clean[self.image[:, None], chosen]).sum(dim=1)
        self.levels.scatter_(1, chosen, (levels.to(torch.int16) + step_levels).clamp(0, 255).to(torch.uint8))
        self.steps += 1

    def keep_first(self, batch: "Batch") -> None:
        """Leaves the current images with the batch, of each image that whose target comes first."""
        import torch

        first = torch.full_like(batch.goal.labels, batch.classes).scatter_reduce(0, self.image, self.order, "amin")
        kept = torch.nonzero(self.order == first[self.image])[:, 0]
        batch.adversarial[self.image[kept]] = self.levels[kept].view(-1, *batch.images.shape[1:])


def saliency(alpha: "Tensor", beta: "Tensor", *, falling: bool = False) -> "Tensor":
    """The saliency score of each feature: α·|β| where α ≥ 0 and β ≤ 0, else 0 (Papernot et al., Eq. 8).

    Args:
        alpha, beta: the target's and the others' derivatives, of one shape.
        falling: for features that are lowered: both derivatives change sign (Eq. 9).
    """
    if falling:
        alpha, beta = -alpha, -beta
    return (alpha * -beta) * ((alpha > 0) & (beta < 0))
