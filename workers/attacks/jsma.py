"""The Jacobian-based saliency map attack, one feature a step."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from workers.attacks.attack import Attack
from workers.errors import WrongInput

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from workers.results import Distances
    from workers.search import Batch

__all__ = ["JSMA", "saliency"]

SEED_STEPS = 50


class JSMA(Attack):
    """Jacobian-based saliency map attack: moves the most salient feature by θ until the target is predicted.

    Papernot et al. (2016), "The limitations of deep learning in adversarial settings", Eq. 8 and 9, on the
    Jacobian of the logits F. With α = ∂F_target/∂x, the ``classes`` map takes β = Σ_{j≠target} ∂F_j/∂x (the
    paper's) and the ``prediction`` map β = ∂F_predicted/∂x − ∂F_target/∂x (the seed's code). A feature, one
    channel of a pixel, is admissible where α ≥ 0 and β ≤ 0, for θ < 0 where both signs are flipped; its score
    is α·|β|, and only a score above zero is taken. A saturated feature leaves the search domain; an image
    without an admissible feature is exhausted. Untargeted, every other class is tried as the target and the
    success that changes the fewest features is kept.
    """

    NAME: ClassVar[str] = "jsma"

    map: Literal["prediction", "classes"] = Field("prediction", description="Saliency map: the seed's or Eq. 8.")
    theta: float = Field(1.0, ge=-1, le=1, description="θ, the change of a feature in a step; negative lowers it.")
    gamma: float | None = Field(
        None, gt=0, le=1, description="γ, the most features that may change, as a share of all; no limit when absent."
    )
    max_steps: int | None = Field(
        None, ge=1, description=f"Most steps; {SEED_STEPS} when neither this nor --gamma is given, else no limit."
    )

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        if abs(self.theta) * 255 < 0.5:
            raise WrongInput(f"--theta: must move a feature by a level at least (1/255), got {self.theta}")
        features = shape[0] * shape[1] * shape[2]
        if self.gamma is not None and self.gamma * features < 1:
            raise WrongInput(f"--gamma: must allow one of the {features} features at least, got {self.gamma}")
        return self

    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        return moved.l0_features <= min(self.most_features(features), self.step_limit(features))

    def most_features(self, features: int) -> int:
        """⌊γ·features⌋, all of them without γ."""
        return features if self.gamma is None else int(self.gamma * features + 1e-9)  # 0.57 · 100 falls short of 57

    def step_limit(self, features: int) -> int:
        """The most steps for images of this many features."""
        if self.max_steps is not None:
            return self.max_steps
        return SEED_STEPS if self.gamma is None else 255 * features

    def _search(self, batch: "Batch") -> None:
        import torch

        if batch.goal.targets is not None:
            batch.adversarial, _ = self._towards(batch, batch.all_rows, batch.goal.targets)
            return
        most = batch.images[0].numel() + 1
        fewest = torch.full_like(batch.goal.labels, most)
        for offset in range(1, batch.classes):  # one target after another, so that memory does not grow with K
            found, reached = self._towards(batch, batch.all_rows, (batch.goal.labels + offset) % batch.classes)
            changed = (found != batch.images).flatten(1).sum(dim=1).masked_fill(~reached, most)
            better = changed < fewest
            if offset == 1:
                better |= ~reached  # something to keep where no target is reached
            batch.adversarial[better] = found[better]
            fewest = torch.minimum(fewest, changed)

    def _towards(self, batch: "Batch", rows: "Tensor", targets: "Tensor") -> tuple["Tensor", "Tensor"]:
        """Searches image ``rows[i]`` towards ``targets[i]``; returns uint8 images and whether each got there."""
        import torch

        images = batch.images[rows]
        features = images[0].numel()
        budget = self.most_features(features)
        most_steps = self.step_limit(features)
        step_levels = round(255 * self.theta)
        limit = 255 if step_levels > 0 else 0

        result, reached = images.clone(), torch.zeros_like(rows, dtype=torch.bool)
        going = torch.arange(len(rows), device=rows.device)
        levels, clean = images.flatten(1).to(torch.int16), images.flatten(1).to(torch.int16)
        for step in range(most_steps + 1):
            predicted, alpha, beta = self._derivatives(
                batch, levels.to(torch.uint8).view(-1, *images.shape[1:]), rows[going], targets[going]
            )
            reached[going] = predicted == targets[going]
            domain = levels != limit
            changed = levels != clean
            spent = changed.sum(dim=1, keepdim=True) >= budget
            score = saliency(alpha, beta, falling=step_levels < 0) * (domain & (changed | ~spent))
            best, feature = score.max(dim=1)
            stay = ~reached[going] & (best > 0) & (step < most_steps)
            result[going] = levels.to(torch.uint8).view(-1, *images.shape[1:])
            going, levels, clean, feature = going[stay], levels[stay], clean[stay], feature[stay]
            if not len(going):
                break
            chosen = feature[:, None]
            levels.scatter_(1, chosen, (levels.gather(1, chosen) + step_levels).clamp(0, 255))
            batch.generations.index_add_(0, rows[going], torch.ones_like(going))
        return result, reached

    def _derivatives(
        self, batch: "Batch", images: "Tensor", rows: "Tensor", targets: "Tensor"
    ) -> tuple["Tensor", "Tensor", "Tensor"]:
        """Predictions ``[n]`` and α, β ``[n, C·H·W]`` from two vector–Jacobian products, whatever K is."""
        import torch

        done = 0

        def vectors(logits: "Tensor", part: "Tensor") -> list["Tensor"]:
            nonlocal done
            target = targets[done : done + len(part)][:, None]
            done += len(part)
            towards = torch.zeros_like(logits).scatter(1, target, 1)
            if self.map == "classes":
                return [towards, 1 - towards]
            predicted = torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1)
            return [towards, predicted - towards]

        logits, (alpha, beta) = batch.vector_jacobian(images, rows, vectors)
        return logits.argmax(dim=1), alpha.flatten(1), beta.flatten(1)


def saliency(alpha: "Tensor", beta: "Tensor", *, falling: bool = False) -> "Tensor":
    """The saliency score of each feature: α·|β| where α ≥ 0 and β ≤ 0, else 0 (Papernot et al., Eq. 8).

    Args:
        alpha, beta: the target's and the others' derivatives, of one shape.
        falling: for features that are lowered: both derivatives change sign (Eq. 9).
    """
    if falling:
        alpha, beta = -alpha, -beta
    return (alpha * -beta) * ((alpha > 0) & (beta < 0))
