"""What all attacks share: parameters that are checked once and hashed, and one way to be called."""

import hashlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.errors import WrongInput, first_problem

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from workers.results import Distances, SearchResult
    from workers.search import Batch

__all__ = ["Attack"]


class Attack(BaseModel):
    """A search method with its parameters; immutable, and nothing of a search is kept in it.

    Construct one with its parameters as keywords, then call it with data. A subclass says what it searches
    (`_search`) and what its budget is (`within`).
    torch is imported inside the functions that compute, so that parameters can be read without it.

    Raises:
        WrongInput: on construction, for an unknown parameter or one out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    NAME: ClassVar[str]
    CERTIFIES: ClassVar[bool] = False
    """Whether a search that finds nothing proves that nothing in its space succeeds."""

    def __init__(self, **parameters: Any) -> None:
        try:
            super().__init__(**parameters)
        except ValidationError as error:
            raise WrongInput(first_problem(error)) from None

    @property
    def params_hash(self) -> str:
        """Sixteen hexadecimal digits that identify the attack and every one of its parameters."""
        return hashlib.sha256(f"{self.NAME}{self.model_dump_json()}".encode()).hexdigest()[:16]

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
