"""What all attacks share: parameters that are checked once and hashed, and one way to be called."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from workers.budgets import spelled
from workers.errors import WrongInput
from workers.parameters import Parameters

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from workers.results import Distances, SearchResult
    from workers.search import Batch
    from workers.threat import Ball

__all__ = ["Attack"]


class Attack(Parameters):
    """A search method with its parameters; immutable, and nothing of a search is kept in it.

    Construct one with its parameters as keywords, then call it with data. A subclass says what it searches
    (`_search`) and what its budget is (`within`).
    torch is imported inside the functions that compute, so that parameters can be read without it.

    Raises:
        WrongInput: on construction, for an unknown parameter or one out of its range.
    """

    NAME: ClassVar[str]
    BUDGET: ClassVar[str | None] = None
    """The parameter that one search may be given several values of, ε or k."""
    CARRIES: ClassVar[bool] = True
    """Whether a success within a smaller budget is one within the larger too, so that the image is not searched again;
    not where a budget is the method itself, as in FGSM's single step."""
    CERTIFIES: ClassVar[bool] = False
    """Whether a search that finds nothing proves that nothing in its space succeeds."""

    PACKAGE: ClassVar[str | None] = None
    """The distribution whose code the search runs, where that is not brittle's; a run is bound to its version."""

    JOINT: ClassVar[bool] = True
    """Whether the search reads logits through the batch's goal alone, so that behind a detector it minds the score;
    one that does not searches the classifier, and is judged behind the detector."""

    USES_CLEAN_GRADIENT: ClassVar[bool] = False
    """Whether the search begins with the gradient of the loss ``ce`` at the clean images, `Batch.clean_gradient`."""

    BY_GRADIENTS: ClassVar[bool] = False
    """Whether the search goes by gradients of the logits, and is blind where a model hides them."""

    @classmethod
    def at_each_budget(cls, parameters: Mapping[str, Any]) -> tuple[Self, ...]:
        """The attacks of a search over several budgets, smallest first.

        Args:
            parameters: by name; that of `BUDGET` may be a list or tuple of values.

        Raises:
            WrongInput: for a wrong parameter, no value or one that is given twice.
        """
        if cls.BUDGET is None or not isinstance(values := parameters.get(cls.BUDGET), list | tuple):
            return (cls(**parameters),)
        if not values:
            raise WrongInput(f"--{cls.BUDGET.replace('_', '-')}: expected a value at least, got none")
        attacks = [cls(**{**parameters, cls.BUDGET: value}) for value in values]
        budgets = [attack.ball.limit if attack.ball else getattr(attack, cls.BUDGET) for attack in attacks]
        if len(set(budgets)) != len(budgets):
            twice = next(budget for budget in budgets if budgets.count(budget) > 1)
            typed = [spelled(value) if isinstance(value, float) else str(value) for value in values]
            same = [text for text, budget in zip(typed, budgets, strict=True) if budget == twice]
            raise WrongInput(
                f"--{cls.BUDGET.replace('_', '-')}: expected different values, got {', '.join(typed)}"
                + f": {' and '.join(same)} are the same in whole levels" * (len(set(same)) > 1)
            )
        return tuple(sorted(attacks, key=lambda attack: getattr(attack, cls.BUDGET or "")))

    @staticmethod
    def parameters_of(attacks: Sequence["Attack"]) -> dict[str, Any]:
        """What `at_each_budget` makes these attacks of."""
        parameters = attacks[0].model_dump(mode="json")
        if (budget := attacks[0].BUDGET) and len(attacks) > 1:
            parameters[budget] = [getattr(attack, budget) for attack in attacks]
        return parameters

    @property
    def params_hash(self) -> str:
        """Sixteen hexadecimal digits that identify the attack and every one of its parameters."""
        return hashlib.sha256(f"{self.NAME}{self.model_dump_json()}".encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        """The name and, for an attack that has one, the budget."""
        return self.NAME if self.BUDGET is None else f"{self.NAME} --{self.BUDGET.replace('_', '-')} {self.budget}"

    @property
    def budget(self) -> str:
        """The budget's value in words, of an ε with what is searched where that is less; empty without one."""
        value = None if self.BUDGET is None else getattr(self, self.BUDGET)
        return "" if value is None else self.ball.words if self.ball else str(value)

    @property
    def ball(self) -> "Ball | None":
        """What the search stays within; None where that is no ball."""
        return None

    def for_images(self, shape: tuple[int, int, int]) -> Self:
        """The attack with what it leaves to the images ``(C, H, W)``: the default ε of `workers.budgets`."""
        return self

    @property
    def shard_size(self) -> int:
        """The most images a shard takes: few enough that a CPU core finishes one in about ten seconds."""
        return 256

    def check(self, shape: tuple[int, int, int], classes: int) -> Self:
        """Refuses parameters that images of ``(C, H, W)`` or this number of classes cannot take.

        Raises:
            WrongInput: saying which.
        """
        return self

    def check_goal(self, targeted: bool) -> None:
        """Refuses a goal that the method does not know.

        Raises:
            WrongInput: saying so.
        """

    @abstractmethod
    def within(self, moved: "Distances", features: int) -> "np.ndarray":
        """bool ``[n]``: whether images that moved so far kept the attack's budget; met on whole levels.

        Args:
            moved: how far each image is from its clean one.
            features: C·H·W of an image.
        """

    def __call__(self, model: "nn.Module", images: Any, labels: Any, **options: Any) -> "SearchResult":
        """Attacks images in this process; see `workers.search.search` for arguments and result."""
        from workers.search import search

        return search(self, model, images, labels, **options)

    @abstractmethod
    def _search(self, batch: "Batch") -> None:
        """Searches for every image of the batch and leaves what it found in ``batch.adversarial``."""
