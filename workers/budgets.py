"""What a number means that says how far an image may move: as the field writes it, in whole levels of 255, by default.

Images are searched in 8 bits, so an amount of change on pixels in [0, 1] is a number of levels of 1/255.
"""

import math
import re
from fractions import Fraction
from numbers import Real
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

__all__ = [
    "Amount",
    "Norm",
    "Number",
    "default_epsilon",
    "defaults",
    "in_levels",
    "levels",
    "number",
    "read",
    "spelled",
    "whole",
]

Norm = Literal["linf", "l2"]

NEAR = 1e-3
"""An amount this near to a whole number of levels, in levels, means that number: 0.0078431 is 2/255."""

EXPECTED = "expected a number, as 0.03 or 8/255"

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)


def number(text: str) -> float:
    """The number that text says: ``0.03``, ``1e-2`` or a quotient of two such, ``8/255``; the nearest float.

    Raises:
        ValueError: for other text, a quotient by 0, and what no float can hold.
    """
    parts = [part.strip() for part in text.split("/")]
    if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError(f"{EXPECTED}, got {text!r}")
    try:
        over, *under = map(Fraction, parts)
        return float(over / under[0] if under else over)
    except (ValueError, ArithmeticError):  # thousands of digits, a quotient by 0, 1e400
        raise ValueError(f"{EXPECTED}, got {text!r}") from None


def levels(amount: float) -> float:
    """An amount of change on pixels in [0, 1] as levels of 255; whole where it is within `NEAR` of one or more."""
    found = float(255 * amount)
    if not math.isfinite(found):
        return found
    nearest = round(found)
    return float(nearest) if nearest and abs(found - nearest) <= NEAR + 1e-9 else found


def whole(amount: float) -> float:
    """The amount that is meant: the float nearest to k/255 where it is within `NEAR` of k levels, else itself."""
    found = levels(amount)
    return found / 255 if found.is_integer() and found else amount


def spelled(amount: float) -> str:
    """An amount as it is typed, which `number` reads back: ``8/255``, or a decimal where that is short."""
    short, k = f"{amount:.3g}", levels(amount)
    if float(short) == amount:
        return short
    return f"{k:.0f}/255" if k.is_integer() and k / 255 == amount else repr(float(amount))


def in_levels(distance: float) -> str:
    """An L∞ distance in words, never 0 where it is not: ``0.0039 (1/255)``."""
    return f"{distance:.2g} ({255 * distance:.4g}/255)" if distance else "0"


def read(given: Any) -> Any:
    """Text as the number that it says; anything else for pydantic to judge."""
    if isinstance(given, str):
        try:
            return number(given)
        except ValueError:
            raise PydanticCustomError("number", EXPECTED) from None
    if isinstance(given, Real) and not isinstance(given, bool | int | float):  # of numpy, or a Fraction
        return float(given)
    return given


def _meant(given: Any) -> Any:
    amount = read(given)
    return whole(amount) if isinstance(amount, int | float) and not isinstance(amount, bool) else amount


Number = Annotated[float, BeforeValidator(read)]
"""A parameter that is a number, which may be given as text (`number`)."""

Amount = Annotated[float, BeforeValidator(_meant)]
"""A parameter that is an amount of change, or a step, on pixels in [0, 1]: a `Number`, in whole levels where it means
them (`whole`)."""

_DEFAULTS: dict[str, dict[Norm, float]] = {
    "grey images up to 32×32": {"linf": 0.3, "l2": 1.5},
    "others up to 64×64": {"linf": 8 / 255, "l2": 0.5},
    "larger ones": {"linf": 4 / 255, "l2": 3.0},
}


def default_epsilon(norm: Norm, shape: tuple[int, int, int]) -> float:
    """The ε of a command or an attack that is given none.

    MNIST: L∞ 0.3 (Madry et al., 2018, "Towards deep learning models resistant to adversarial attacks"), L2 1.5 (Schott
    et al., 2019, "Towards the first adversarially robust neural network model on MNIST", which has L∞ 0.3 as well).
    CIFAR: 8/255 and 0.5; ImageNet: L∞ 4/255 (Croce et al., 2021, "RobustBench: a standardized adversarial robustness
    benchmark"), L2 3.0 (Salman et al., 2020, "Do adversarially robust ImageNet models transfer better?").

    Args:
        norm: of the ball.
        shape: ``(C, H, W)`` of the images: grey ones as MNIST's, small ones as CIFAR's, else as ImageNet's.
    """
    channels, side = shape[0], max(shape[1:])
    grey, small, large = _DEFAULTS.values()
    return (grey if channels == 1 and side <= 32 else small if side <= 64 else large)[norm]


def defaults(norm: Norm) -> str:
    """What `default_epsilon` comes to, in words."""
    *first, last = (f"{spelled(each[norm])} for {images}" for images, each in _DEFAULTS.items())
    return f"{', '.join(first)} and {last}"
