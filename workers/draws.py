"""Random numbers as a function of a key and a counter: any of them, in any order, on any device, the same bits.

A stream with a state has to be drawn in order and whole; here a search asks only for the numbers that it uses,
for all its images in one call. The functions are written for int64 tensors and for numbers alike: numba compiles
the same source into the kernels that call them.
"""

from typing import Any

import torch
from torch import Tensor

from workers.compiled import jitable

__all__ = ["below", "philox", "three_others", "unit"]


@jitable  # type: ignore[untyped-decorator]
def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of Salmon, Moraes, Dror & Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".

    Counter and key are 32-bit words in int64, tensors that broadcast or numbers; so are the four results. The
    products wrap around at 64 bits, which leaves both halves right.
    """
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((p1 >> 32) & 0xFFFFFFFF) ^ c1 ^ k0, p1 & 0xFFFFFFFF
        c2, c3 = ((p0 >> 32) & 0xFFFFFFFF) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


@jitable  # type: ignore[untyped-decorator]
def below(word: Any, count: Any) -> Any:
    """A whole number in [0, count) of a word, count < 2³¹: each has probability 1/count to within 2⁻³²."""
    return (word * count) >> 32


@jitable  # type: ignore[untyped-decorator]
def three_others(w0: Any, w1: Any, w2: Any, own: Any, count: Any) -> tuple[Any, Any, Any]:
    """Three numbers of [0, count) that differ from ``own`` and from each other, all choices alike (three words).

    A number is drawn among those left and steps over the ones taken, from the lowest up.
    """
    first = below(w0, count - 1)
    first = first + (first >= own)
    low = own + (first - own) * (first < own)
    high = own + first - low
    second = below(w1, count - 2)
    second = second + (second >= low)
    second = second + (second >= high)
    lowest = low + (second - low) * (second < low)
    highest = high + (second - high) * (second > high)
    third = below(w2, count - 3)
    third = third + (third >= lowest)
    third = third + (third >= low + high + second - lowest - highest)
    third = third + (third >= highest)
    return first, second, third


def unit(words: Tensor) -> Tensor:
    """float32 in [0, 1) of words, multiples of 2⁻²⁴."""
    return (words >> 8).to(torch.float32) * 2**-24
