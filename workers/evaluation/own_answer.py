"""Whether an answer is the image's own: asked again, in another order, among other images, alone, after others."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

__all__ = ["ASKED", "SAME", "STRANGERS", "asked_about", "depends_on", "first_asked", "same"]

ASKED = 16
"""Images of a set that are asked about."""

CALL = 16
"""Every call is filled up to a multiple of so many images by its own, as those of a search are."""

MOST = 64
"""The largest call that is asked, as large as a search makes on a processor."""

SAME = 1e-3
"""Numbers that differ by less than this share of their spread are the same: convolutions round as they are batched."""

ROUNDING = 32
"""So are those that differ by so many units in the last place of the largest."""

FEW = 4
"""Of fewer images the answers to the strangers count for the spread too."""

FAINT = 8
"""Levels of the noise between an image and one that is nearly the same."""

STRANGERS = ("black images", "white images", "noise", "checkerboards", "nearly the same images", "its negative")
"""Quite different images than those of a set."""

Ask = Callable[[Tensor], Tensor]
"""Answers ``[n, …]`` to one call, its images given by their number among those of `asked_about`, int64 ``[n]``."""


def same(one: Tensor, other: Tensor, among: Tensor | None = None) -> bool:
    """Whether answers ``[n, …]`` are the same but for rounding; ``among`` are those whose spread counts.

    Each number of an answer goes by its own spread over the images, what is not finite left out: a logit that is
    always −1e9, or one far larger than the others, allows these nothing. One that hardly moves may round as the
    others do, of which that with the second least spread counts: log-probabilities near 0 come from larger ones.
    """
    among = one if among is None else among
    step = torch.finfo(among.dtype).eps if among.is_floating_point() else 0.0
    numbers = among.reshape(len(among), -1).double()
    numbers = numbers.masked_fill(~numbers.isfinite(), torch.nan)
    spread = (numbers - numbers.nanmean(dim=0)).square().nanmean(dim=0).sqrt().nan_to_num(0)
    least = spread[spread > 0].sort().values[:2]
    rounding = numbers.nan_to_num(0).abs().amax(dim=0) + (least[-1] if len(least) else 0.0)
    within = (SAME * spread + ROUNDING * step * rounding + 1e-12).reshape(among.shape[1:])
    apart = (one.double() - other.double()).abs()
    return bool(((apart <= within) | (one == other) | (one.isnan() & other.isnan())).all())


def asked_about(images: np.ndarray) -> Tensor:
    """The first `ASKED` different ones of some images, and behind them the `STRANGERS`, uint8 ``[m + 6, C, H, W]``."""
    some = images[: 8 * ASKED]
    _, first = np.unique(some.reshape(len(some), -1), axis=0, return_index=True)
    own = some[np.sort(first)[:ASKED]]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, own.shape[1:])
    board = 255 * (np.indices(own.shape[2:]).sum(axis=0) % 2)
    near = own[0] + rng.integers(-FAINT, FAINT + 1, own.shape[1:])
    strangers = (0 * noise, 0 * noise + 255, noise, board + 0 * noise, near.clip(0, 255), 255 - own[0])
    return torch.from_numpy(np.concatenate([own, np.stack(strangers).astype(np.uint8)]))


def depends_on(ask: Ask, count: int, *, fresh: Ask | None = None, single: bool = True) -> str:
    """What the answer to an image depends on beside the image.

    Args:
        ask: gives the answers.
        count: how many of the images are the set's own, those in front of the `STRANGERS`.
        fresh: the same by what was never asked before; None where that is not asked.
        single: whether a call of one image is asked too, which toolkits make and no search else.

    Returns:
        A clause, ``in another order`` for example; empty where nothing changes an answer.

    Raises:
        Exception: whatever is raised by what is asked, but for calls of one or of strangers, which it need not take.
    """
    own = torch.arange(count)
    first = among = ask(_filled(own))[:count]
    if count < FEW:
        with suppress(Exception):  # it need not take them
            among = torch.cat([first, ask(_filled(torch.arange(count, count + len(STRANGERS))))[: len(STRANGERS)]])
    for clause, named in _calls(count):
        rows = named if clause == "alone" else _filled(named)
        if clause == "alone" and not single:
            continue
        try:
            answers = ask(rows)
        except Exception:
            if clause == "alone" or bool((rows >= count).any()):
                continue
            raise
        known = rows < count
        if not same(answers[known], first[rows[known]], among):
            return clause
    if fresh is not None and not same(first_asked(fresh, count), first, among):
        return "when others are asked about first"
    return ""


def first_asked(ask: Ask, count: int) -> Tensor:
    """The answers to the set's own images, of what was asked about strangers before."""
    with suppress(Exception):  # it need not take them
        ask(_filled(torch.arange(count, count + len(STRANGERS))))
    return ask(_filled(torch.arange(count)))[:count]


def _calls(count: int) -> Iterator[tuple[str, Tensor]]:
    own = torch.arange(count)
    yield "at a second call", own
    yield "in another order", own.flip(0)
    for row in {0, count - 1}:
        yield "alone", own[row : row + 1]
        yield "among copies of it", own[row].repeat(CALL)
    yield "among fewer images", own[-3:]
    for number, name in enumerate(STRANGERS):
        yield f"among {name}", torch.cat([own[:1], torch.full((CALL - 1,), count + number)])
    everything = torch.cat([own.flip(0), torch.arange(count, count + len(STRANGERS)), own])
    yield "among more images", everything.repeat(-(-MOST // len(everything)))[:MOST]
    yield "after other images", own


def _filled(rows: Tensor) -> Tensor:
    """A call's images in turn, up to a multiple of `CALL`."""
    return rows.repeat(-(-len(rows) // CALL) * CALL // len(rows) + 1)[: -(-len(rows) // CALL) * CALL]
