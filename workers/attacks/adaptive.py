"""The attack that knows the detector: the smallest change that fools the classifier and raises no alarm."""

import math
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol, Self

from pydantic import Field, model_validator

from workers.attacks.attack import Attack
from workers.attacks.norm_ball import enough_classes, require_radius, unit
from workers.budgets import Amount, Norm, Number
from workers.errors import WrongInput
from workers.losses import Loss
from workers.threat import Ball, lengths

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["Adaptive"]

Form = Literal["joint", "selective", "orthogonal", "matching", "penalty"]

LARGEST_WEIGHT = 1000.0
WEIGHT_STEP = 1.1
"""What a weight is multiplied or divided by in a step."""

LEAST_EASE = 0.01
HALF_WAY = (1 + LEAST_EASE) / 2
"""What `ease` is after half of the steps."""

SPARE_MARGIN, SPARE_EXCESS = 0.1, 0.05
"""What the penalty form wants beyond the goal, for rounding: in logits, and in the spread of clean scores."""


class Adaptive(Attack):
    """Searches a classifier and its detector together, by gradients; the success of the smallest change is kept.

    Five forms, of the gradient g of the classifier's loss and h of the detector's score. In four of them both are of
    unit length, and the length of the change follows decoupled direction and norm (Rony et al., 2019, Algorithm 1): it
    shrinks where the rounded image is fooled and not flagged, and grows elsewhere.

    ``joint``: g − λh, λ searched for each image: it grows by a tenth where the image is fooled but flagged and shrinks
    by as much where it is let through but not fooled. (With max(0, score − τ), whose gradient vanishes wherever the
    image is let through, searches between two half-spaces ended at 1.4 times the known distance; so, at 1.01 times.)
    ``selective`` and ``orthogonal`` (Bryniarski et al., 2021, Eq. 4 and 5): g while the image is not fooled, −h once it
    is; orthogonal takes from each its part along the other.
    ``matching`` (Sabour et al., 2016; on logits): towards the logits of the nearest clean image of another class (of
    the target class) that is not flagged, beside the joint form's −λh.
    ``penalty`` (Carlini & Wagner, 2017, "MagNet and Efficient Defenses Against Adversarial Attacks are Not Robust",
    section 4): Adam on ‖δ‖² + λ₁·max(0, margin + m) + λ₂·max(0, excess + e), m and e being spare for rounding. Instead
    of by bisection over runs, each weight grows by a tenth in a step whose image breaks its condition and shrinks by as
    much in one that meets it. Adam scales each pixel by itself, which a score that few pixels dominate needs: on MagNet
    it ends fooled and not flagged on 100 of 100 digits, where the best other form does on 59 and on no more with twice
    the steps.

    On a model without a detector all forms but ``matching`` and ``penalty`` are decoupled direction and norm. Every
    iterate is rounded and judged. A score that half of the steps have found no gradient of, and no lower value, cannot
    be moved: the change then becomes as small as fools. An image that is fooled but always flagged keeps its least
    flagged iterate, the smallest of equals.
    """

    NAME: ClassVar[str] = "adaptive"
    BY_GRADIENTS: ClassVar[bool] = True

    form: Form = Field("joint", description="How the gradients of classifier and detector are put together.")
    norm: Norm = Field("l2", description="What is made small: l2 (Euclidean length) or linf (largest change).")
    epsilon: Amount | None = Field(
        None, ge=1 / 255, description="ε, the largest change that is tried, on pixels in [0, 1]; no limit when absent."
    )
    steps: int = Field(100, ge=1, le=1_000_000, description="Steps.")
    start: Amount = Field(
        1.0, gt=0, description="The first length of the change, on pixels in [0, 1]; a tenth for linf. Not of penalty."
    )
    gamma: Number = Field(
        0.05, gt=0, lt=1, description="γ, the share by which the first steps change the length. Not of penalty."
    )
    learning_rate: Number = Field(0.05, gt=0, le=1, description="Adam's first, on pixels in [0, 1]. Of penalty alone.")
    loss: Loss | None = Field(
        None,
        description="What is raised: cross-entropy (ce), logit margin, or its ratio (dlr); absent: ce, and with "
        "penalty the margin.",
    )

    @model_validator(mode="after")
    def _of_one_norm(self) -> Self:
        if self.form == "penalty" and self.norm != "l2":
            raise WrongInput(f"--form: penalty makes the l2 norm small, not {self.norm}")
        if self.epsilon is not None:
            require_radius(self.norm, self.epsilon)
        return self

    @property
    def ball(self) -> Ball | None:
        """What images must stay in; None without a limit."""
        return None if self.epsilon is None else Ball(self.norm, self.epsilon)

    @property
    def title(self) -> str:
        return f"{self.NAME} --form {self.form}"

    @property
    def shard_size(self) -> int:
        return 64

    @property
    def raised(self) -> Loss:
        """The loss, whether given or not."""
        return self.loss or ("margin" if self.form == "penalty" else "ce")

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        enough_classes(self.raised, classes)
        return self

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.l2 >= 0 if self.ball is None else self.ball.within(moved)

    def _search(self, batch: "Batch") -> None:
        import torch

        clean = batch.images.float()
        smallest = torch.full((len(clean),), torch.inf, device=clean.device)
        least, at = smallest.clone(), smallest.clone()
        guide = self._guides(batch) if self.form == "matching" else None
        path: _Path = _Penalty(self, clean) if self.form == "penalty" else _Length(self, clean)
        for taken in range(self.steps + 1):
            moved = clean + path.change
            images = self.ball.rounded(moved, clean) if self.ball else moved.round_().to(torch.uint8)
            state = self._judged(batch, images, guide, gradients=taken < self.steps)
            size = self.size(images.float() - clean)
            better = state.reached & (size < smallest)
            smallest = size.where(better, smallest)
            excess = state.excess.where(state.fooled & smallest.isinf(), torch.inf)
            milder = (excess < least) | ((excess == least) & excess.isfinite() & (size < at))
            least, at = excess.where(milder, least), size.where(milder, at)
            kept = better | milder | (smallest.isinf() & least.isinf() & (taken == self.steps))
            batch.adversarial = images.where(kept.view(-1, 1, 1, 1), batch.adversarial)
            if taken == self.steps:
                break
            ease = LEAST_EASE + (1 - LEAST_EASE) * (1 + math.cos(math.pi * taken / self.steps)) / 2
            path.step(state, size, smallest, ease)
            batch.generations[batch.all_rows] += 1

    def _judged(self, batch: "Batch", images: "Tensor", guide: "Tensor | None", *, gradients: bool) -> "_State":
        """What classifier and detector say of images, and where each would have them go."""
        import torch

        goal, rows = batch.goal, batch.all_rows

        def cotangents(found: "Tensor", part: "Tensor") -> list["Tensor"]:
            logits, excess = goal.apart(found)
            raised = plain.loss_cotangent(logits, part, self.raised) if guide is None else 2 * (guide[part] - logits)
            if excess is None:
                return [raised]
            none = torch.zeros_like(excess)[:, None]
            return [torch.cat([raised, none], dim=1), torch.cat([torch.zeros_like(raised), none - 1], dim=1)]

        plain = type(goal)(goal.labels, goal.targets)
        if gradients:
            found, (towards, *away) = batch.vector_jacobian(images, rows, cotangents)
        else:
            found, towards, away = batch.logits(images, rows), torch.zeros_like(images, dtype=torch.float32), []
        logits, excess = goal.apart(found)
        if excess is None:
            excess = torch.zeros_like(logits[:, 0])
        return _State(
            fooled=plain.reached(logits, rows),
            margin=plain.margin(logits, rows),
            excess=excess,
            towards=towards,
            away=away[0] if away else torch.zeros_like(towards),
        )

    def size(self, change: "Tensor") -> "Tensor":
        """float ``[B]``, in levels, of changes ``[B, C, H, W]``."""
        moved = change.float()
        return lengths(moved) if self.norm == "l2" else moved.abs().amax(dim=(1, 2, 3))

    def _guides(self, batch: "Batch") -> "Tensor":
        """For each image the logits ``[B, K]`` of the guide that are nearest to its own."""
        import torch

        guides: Tensor = batch.guides
        logits, _ = batch.goal.apart(batch.logits(batch.images, batch.all_rows))
        found, chosen = guides.argmax(dim=1), batch.goal.classes
        apart = torch.stack([(guides - one).square().sum(dim=1) for one in logits])
        if batch.goal.targets is None:
            apart = apart.masked_fill(found == chosen[:, None], torch.inf)
        else:
            apart = apart.masked_fill(found != chosen[:, None], torch.inf)
        return guides[apart.argmin(dim=1)]


class _State(NamedTuple):
    """What is known of an iterate: fooled bool, margin and excess float ``[B]``; −∇ of both ``[B, C, H, W]``."""

    fooled: "Tensor"
    margin: "Tensor"
    excess: "Tensor"
    towards: "Tensor"
    away: "Tensor"

    @property
    def reached(self) -> "Tensor":
        """bool ``[B]``: fooled and not flagged."""
        return self.fooled & (self.excess <= 0)


class _Path(Protocol):
    """Where a search goes: ``change`` ``[B, C, H, W]`` in levels, from the clean images."""

    change: "Tensor"

    def step(self, state: _State, size: "Tensor", smallest: "Tensor", ease: float) -> None:
        """Moves on from what was found of the change; its size and the smallest success's in levels; `ease` falls."""


class _Length:
    """Steps along unit gradients, the change brought to a length that success shortens and failure lengthens."""

    def __init__(self, attack: Adaptive, clean: "Tensor") -> None:
        import torch

        self.attack, self.clean, self.change = attack, clean, torch.zeros_like(clean)
        self.farthest = attack.size(torch.maximum(clean, 255 - clean))
        if attack.ball:
            self.farthest.clamp_(max=attack.ball.radius)
        first = 255 * attack.start * (1 if attack.norm == "l2" else 0.1)
        self.length = torch.full_like(self.farthest, first).minimum(self.farthest)
        self.weight = torch.ones_like(self.farthest)
        self.smallest_fooled = torch.full_like(self.farthest, torch.inf)
        self.movable = torch.zeros_like(self.farthest, dtype=torch.bool)
        self.seen = torch.full_like(self.farthest, torch.nan)

    def step(self, state: _State, size: "Tensor", smallest: "Tensor", ease: float) -> None:
        import torch

        flagged = state.excess > 0
        self.smallest_fooled = size.where(state.fooled & (size < self.smallest_fooled), self.smallest_fooled)
        self.movable |= state.away.flatten(1).any(dim=1) | state.reached | (state.fooled & (state.excess < self.seen))
        self.seen = torch.fmax(self.seen, state.excess.where(state.fooled, torch.nan))
        direction = self._direction(state)
        self.weight *= torch.where(state.fooled & flagged, WEIGHT_STEP, 1.0)
        self.weight /= torch.where(~state.fooled & ~flagged, WEIGHT_STEP, 1.0)
        self.weight.clamp_(1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
        hopeless = ~self.movable & (ease < HALF_WAY)
        # for these the other half of the steps is a search of its own, twice as fast
        again = 1 - (2 * (ease - LEAST_EASE) / (1 - LEAST_EASE) - 1) ** 2
        pace = torch.where(hopeless, again, ease)
        share = self.attack.gamma * pace**0.5 * torch.where(hopeless, 2, 1)
        enough = state.fooled & (~flagged | hopeless)
        self.length = self.length * torch.where(enough, 1 - share, 1 + share)
        longest = self.smallest_fooled.where(hopeless, smallest)  # longer is of no use
        self.length = self.length.minimum(self.farthest).minimum(longest)
        self.change = self._moved(direction, pace).add_(self.clean).clamp_(0, 255).sub_(self.clean)

    def _direction(self, state: _State) -> "Tensor":
        """Where each image goes, ``[B, C, H, W]``."""
        import torch

        fooled, flagged = (mask.view(-1, 1, 1, 1) for mask in (state.fooled, state.excess > 0))
        towards, away = unit(state.towards), unit(state.away)
        if self.attack.form in ("joint", "matching"):
            return towards + self.weight.view(-1, 1, 1, 1) * away
        if self.attack.form == "orthogonal":
            along = (towards * away).sum(dim=3).flatten(1).sum(dim=1).view(-1, 1, 1, 1)
            towards, away = towards - along * away, away - along * towards
        return torch.where(fooled, torch.where(flagged, away, 0.0), towards)

    def _moved(self, direction: "Tensor", pace: "Tensor") -> "Tensor":
        """The change after a step, brought to its length."""
        size, ease = self.length.view(-1, 1, 1, 1), pace.view(-1, 1, 1, 1)
        if self.attack.norm == "l2":
            moved = self.change + unit(direction) * (ease * size)
            return moved * (size / lengths(moved).clamp(min=1e-6).view(-1, 1, 1, 1))
        return (self.change + direction.sign() * (ease * size)).clamp(-size, size)


class _Penalty:
    """Adam on the squared length, and on what is lacking of each condition times its weight."""

    def __init__(self, attack: Adaptive, clean: "Tensor") -> None:
        import torch

        self.ball, self.clean, self.change = attack.ball, clean / 255, torch.zeros_like(clean)
        self.moved = self.clean.clone()
        self.adam, self.rate = torch.optim.Adam([self.moved], lr=attack.learning_rate), attack.learning_rate
        self.margin_weight, self.excess_weight = (torch.ones_like(clean[:, 0, 0, 0]) for _ in range(2))

    def step(self, state: _State, size: "Tensor", smallest: "Tensor", ease: float) -> None:
        import torch

        lacking = (
            self.margin_weight.where(state.margin > -SPARE_MARGIN, 0),
            self.excess_weight.where(state.excess > -SPARE_EXCESS, 0),
        )
        self.moved.grad = 2 * (self.moved - self.clean)
        for gradient, weight in zip((state.towards, state.away), lacking, strict=True):
            self.moved.grad -= weight.view(-1, 1, 1, 1) * gradient
        self.adam.param_groups[0]["lr"] = self.rate * ease
        self.adam.step()
        self.moved.clamp_(0, 1)
        if self.ball:
            self.moved.copy_(self.ball.project(255 * self.moved, 255 * self.clean) / 255)
        self.change = 255 * (self.moved - self.clean)
        for weight, met in ((self.margin_weight, state.fooled), (self.excess_weight, state.excess <= 0)):
            weight *= torch.where(met, 1 / WEIGHT_STEP, WEIGHT_STEP)
            weight.clamp_(1 / LARGEST_WEIGHT, LARGEST_WEIGHT)
