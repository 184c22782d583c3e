"""The numba kernel of the incremental evaluator: one for every chain, layer sizes and strides being data.

The source is not type-checked: numba compiles it for the types that come.
"""

from typing import Any, NamedTuple

import numpy as np

from workers.compiled import njit
from workers.evaluation.vectors import NONZERO_LANES, copy8, make_push, prefetch, relu_change8

__all__ = [
    "FIRST_CACHE",
    "GROUP",
    "IN",
    "OUT",
    "SITES",
    "TABLE",
    "TAPS",
    "WEIGHTS",
    "CleanState",
    "Network",
    "Scratch",
    "evaluate",
]

GROUP = 16
"""Candidates evaluated together, so that a layer's weights are read once for all of them."""

FIRST_CACHE = 24 << 10
"""Bytes of a layer's weights up to which it is pushed candidate by candidate: they stay in the first-level cache."""

DENSE_INPUTS = 16
"""Inputs up to which all channels are pushed: finding out which of them changed costs more."""

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy", "cache": True}
_INLINE = {**_OPTIONS, "forceinline": True}
_U = np.uint64

_push64, _push32, _push16, _push8 = (make_push(n, u, dense=False) for n, u in ((8, 1), (4, 2), (2, 4), (1, 4)))
_push32_any, _push16_any, _push8_any = (make_push(n, 1, dense=False) for n in (4, 2, 1))
_dense64, _dense32, _dense16, _dense8 = (make_push(n, u, dense=True) for n, u in ((8, 1), (4, 2), (2, 4), (1, 8)))


class Network(NamedTuple):
    """A chain as flat arrays. Output channels are padded with zeros to a multiple of 8.

    Attributes:
        layers: int64 ``[L, 6]``, its columns being `IN`, `OUT` and so on.
        weights: float32, a layer after the other as ``[tap, in, out]``, then a row of zeros.
        starts, sites, taps: int32; the input site s of layer l touches the output sites ``sites[a]`` through the
            kernel's taps ``taps[a]``, for a from ``starts[table + s]`` to ``starts[table + s + 1]``.
    """

    layers: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    sites: np.ndarray
    taps: np.ndarray


IN, OUT, SITES, TAPS, WEIGHTS, TABLE = range(6)


class CleanState(NamedTuple):
    """Clean images in a network.

    Attributes:
        pixels: float32 ``[B, H·W, C]`` in [0, 1].
        before: float32, pre-activations, a layer after the other as ``[B, site, out]``.
        offsets: int64 ``[L]``, where each layer begins in ``before``.
    """

    pixels: np.ndarray
    before: np.ndarray
    offsets: np.ndarray


class Scratch(NamedTuple):
    """One thread's room: changes of activations, lists of changed sites, pre-activations being summed."""

    change: np.ndarray
    nonzero: np.ndarray
    counts: np.ndarray
    site: np.ndarray
    sums: np.ndarray
    touched: np.ndarray
    slot: np.ndarray
    first: np.ndarray
    source: np.ndarray
    target: np.ndarray
    length: np.ndarray


@njit(**_INLINE)
def _push(z, zo, w, wo, v, index, vo, n, out):
    c = _U(0)
    while out - c >= _U(64):
        _push64(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(64)
    if out - c >= _U(32):
        _push32(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(32)
    if out - c >= _U(16):
        _push16(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(16)
    if out - c >= _U(8):
        _push8(z, zo + c, w, wo + c, out, v, index, vo, n)


@njit(**_INLINE)
def _push_all(z, zo, w, wo, v, index, vo, n, out):
    c = _U(0)
    while out - c >= _U(64):
        _dense64(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(64)
    if out - c >= _U(32):
        _dense32(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(32)
    if out - c >= _U(16):
        _dense16(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(16)
    if out - c >= _U(8):
        _dense8(z, zo + c, w, wo + c, out, v, index, vo, n)


@njit(**_INLINE)
def _push_few(z, zo, w, wo, v, index, vo, n, out):
    c = _U(0)
    while out - c >= _U(32):
        _push32_any(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(32)
    if out - c >= _U(16):
        _push16_any(z, zo + c, w, wo + c, out, v, index, vo, n)
        c += _U(16)
    if out - c >= _U(8):
        _push8_any(z, zo + c, w, wo + c, out, v, index, vo, n)


@njit(**_INLINE)
def _list_changes(z, zo, p, po, out, v, index, vo):
    """The ReLU's changes at a site; their number, rounded up to 4 with entries that add nothing."""
    n = _U(0)
    for c in range(_U(0), out, _U(8)):
        n += relu_change8(z, zo + c, p, po + c, v, vo + c, index, vo + n, c, NONZERO_LANES)
    if n:
        v[vo + out] = np.float32(0)  # what the filling entries point at; its weights are another row, times zero
        for q in range(_U(4)):
            index[vo + n + q] = np.uint32(out)
    return (n + _U(3)) & ~_U(3)


@njit(**_INLINE)
def _copy(z, zo, p, po, out):
    for c in range(_U(0), out, _U(8)):
        copy8(z, zo + c, p, po + c)


@njit(**_INLINE)
def _fetch(z, zo, out):
    for c in range(_U(0), out, _U(16)):
        prefetch(z, zo + c)


@njit(**_OPTIONS)
def evaluate(network, state, work, split, owner, position, value, scale, first, stop, step, out):
    """Evaluates the groups first, first + step, … before stop of candidates, the logits going to ``out``.

    A candidate's sums are taken in an order that does not depend on its neighbours, so neither do its bits.
    """
    one, none = _U(1), _U(0)
    layers, depth = network.layers, network.layers.shape[0]
    channels, changes = _U(layers[0, IN]), _U(position.shape[1])
    width = _U(work.change.shape[0] // work.counts.shape[0])
    room = _U(work.site.shape[0] // 2)
    change, nonzero, count, site, sums = work.change, work.nonzero, work.counts, work.site, work.sums
    touched, slot, begin, source, target, length = (
        work.touched,
        work.slot,
        work.first,
        work.source,
        work.target,
        work.length,
    )
    weights, before = network.weights, state.before
    for group in range(first, stop, step):
        start = group * GROUP
        size = _U(min(GROUP, owner.shape[0] - start))
        ends = none  # changed sites listed so far, of all candidates of the group
        for candidate in range(size):
            begin[candidate] = ends
            i = _U(start) + candidate
            image, found = _U(owner[i]), ends
            for j in range(changes):
                pixel = position[i, j]
                later = False
                for q in range(j + one, changes):
                    later |= position[i, q] == pixel
                if later:  # of two writes to a pixel the later stays
                    continue
                at, n = found * width, none
                for c in range(channels):
                    d = (value[i, j, c] - state.pixels[image, _U(pixel), c]) * scale[c]
                    change[at + c] = d
                    nonzero[at + n] = np.uint32(c)
                    n += _U(d != np.float32(0))
                if n == none:
                    continue
                if split == 0:
                    change[at + channels] = np.float32(0)
                    for q in range(_U(4)):
                        nonzero[at + n + q] = np.uint32(channels)
                    n = (n + _U(3)) & ~_U(3)
                count[found] = n
                site[found] = pixel
                found += one
            for layer in range(split):
                o, ci = _U(layers[layer, OUT]), _U(layers[layer, IN])
                clean = _U(state.offsets[layer]) + image * _U(layers[layer, SITES]) * o
                w0, table = _U(layers[layer, WEIGHTS]), _U(layers[layer, TABLE])
                entries = none
                for e in range(ends, found):
                    s = table + _U(site[e])
                    for a in range(_U(network.starts[s]), _U(network.starts[s + one])):
                        place = _U(network.sites[a])
                        d = slot[place]
                        if d < 0:
                            d = np.int32(entries)
                            slot[place] = d
                            touched[entries] = np.int32(place)
                            _copy(sums, entries * o, before, clean + place * o, o)
                            entries += one
                        w = w0 + _U(network.taps[a]) * ci * o
                        if layer == 0:
                            _push_few(sums, _U(d) * o, weights, w, change, nonzero, e * width, _U(count[e]), o)
                        elif ci <= _U(DENSE_INPUTS):
                            _push_all(sums, _U(d) * o, weights, w, change, nonzero, e * width, ci, o)
                        else:
                            _push(sums, _U(d) * o, weights, w, change, nonzero, e * width, _U(count[e]), o)
                found = ends
                for e in range(entries):
                    place = _U(touched[e])
                    slot[place] = np.int32(-1)
                    n = _list_changes(sums, e * o, before, clean + place * o, o, change, nonzero, found * width)
                    if n:
                        count[found] = n
                        site[found] = np.int32(place)
                        found += one
            ends = found
        begin[size] = ends
        for layer in range(split, depth):
            o, ci, kernel = _U(layers[layer, OUT]), _U(layers[layer, IN]), _U(layers[layer, TAPS])
            w0, table = _U(layers[layer, WEIGHTS]), _U(layers[layer, TABLE])
            last = layer == depth - 1
            for t in range(kernel):
                length[t] = 0
            entries = none
            for candidate in range(size):
                mine = entries
                clean = _U(state.offsets[layer]) + _U(owner[_U(start) + candidate]) * _U(layers[layer, SITES]) * o
                e0, e1 = _U(begin[candidate]), _U(begin[candidate + one])
                begin[candidate] = entries
                if last:  # logits: an entry for each candidate, even one that changed nothing
                    _copy(sums, entries * o, before, clean, o)
                    slot[0] = np.int32(entries)
                    site[room + entries] = 0
                    entries += one
                for e in range(e0, e1):
                    s = table + _U(site[e])
                    for a in range(_U(network.starts[s]), _U(network.starts[s + one])):
                        place = _U(network.sites[a])
                        d = slot[place]
                        if d < 0:
                            d = np.int32(entries)
                            slot[place] = d
                            site[room + entries] = np.int32(place)
                            _copy(sums, entries * o, before, clean + place * o, o)
                            entries += one
                        t = _U(network.taps[a])
                        q = t * room + _U(length[t])
                        source[q] = np.int32(e)
                        target[q] = d
                        length[t] += 1
                for e in range(mine, entries):
                    slot[_U(site[room + e])] = np.int32(-1)
            for t in range(kernel):  # tap by tap, so that its weights stay in the cache
                w, q0 = w0 + t * ci * o, t * room
                for q in range(q0, q0 + _U(length[t])):
                    e = _U(source[q + one])
                    _fetch(change, e * width, ci)
                    _fetch(sums, _U(target[q + one]) * o, o)
                    e = _U(source[q])
                    _push(sums, _U(target[q]) * o, weights, w, change, nonzero, e * width, _U(count[e]), o)
            if last:
                for candidate in range(size):
                    for c in range(_U(out.shape[1])):
                        out[_U(start) + candidate, c] = sums[candidate * o + c]
                break
            begin[size] = entries
            found = none
            for candidate in range(size):
                clean = _U(state.offsets[layer]) + _U(owner[_U(start) + candidate]) * _U(layers[layer, SITES]) * o
                e0, e1 = _U(begin[candidate]), _U(begin[candidate + one])
                begin[candidate] = found
                for e in range(e0, e1):
                    place = _U(site[room + e])
                    n = _list_changes(sums, e * o, before, clean + place * o, o, change, nonzero, found * width)
                    if n:
                        count[found] = n
                        site[found] = np.int32(place)
                        found += one
            begin[size] = found
