"""What is frozen, held against what a start asks for."""

from typing import Any

import pytest

from jobs.frozen import require_same
from workers.errors import WrongInput

MANY = [str(image) for image in range(5000)]


@pytest.mark.parametrize(
    ("have", "want", "said"),
    [
        ({"seed": 0}, {"seed": 1}, "has seed 0, this start 1;"),
        ({"seed": 0}, {}, "has seed 0, this start None;"),
        ({}, {"label": 3}, "has label None, this start 3;"),
        ({"a": 1, "p": {"k": 5, "e": 1}}, {"a": 1, "p": {"k": 5, "e": 2}}, "has e 1, this start 2;"),
        ({"p": {"k": 5}}, {"p": "k"}, "has p {'k': 5}, this start k;"),
        ({"model": "ab" * 32}, {"model": "cd" * 32}, "has model abababababab…, this start cdcdcdcdcdcd…;"),
        ({"ids": ",".join(MANY)}, {"ids": ""}, "has ids 0,1,2,3,4,5,…, this start ;"),
        (
            {"ids": ",".join(MANY)},
            {"ids": ",".join(MANY[:4000] + MANY[4001:])},
            "has ids …0,4001,4002,…, this start …1,4002,4003,…;",
        ),
        ({"ids": ",".join(MANY)}, {"ids": ",".join(MANY[:-1])}, "has ids …,4999, this start …;"),
    ],
)
def test_a_difference_is_told_in_a_short_line(have: dict[str, Any], want: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongInput) as refused:
        require_same("folder", "run", have, want)
    assert str(refused.value) == f"--out folder: that run {said} name another folder"


def test_the_same_is_no_difference() -> None:
    require_same("folder", "run", {"a": {"b": [1]}, "c": None}, {"a": {"b": [1]}})
