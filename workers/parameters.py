"""Named parameters that are checked once and do not change: what attacks, detectors and networks are made from."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.errors import WrongInput, first_problem

__all__ = ["Parameters"]


class Parameters(BaseModel):
    """Parameters given as keywords; immutable, finite, and none that is unknown.

    Raises:
        WrongInput: on construction, for an unknown parameter or one out of its range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **parameters: Any) -> None:
        try:
            super().__init__(**parameters)
        except ValidationError as error:
            raise WrongInput(first_problem(error)) from None
