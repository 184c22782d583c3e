"""The numba kernel of the incremental evaluator: one for every chain, layer sizes and strides being data.

The source is not type-checked: numba compiles it for the types that come. Indices are unsigned, so that numba does
not make negative ones count from the end.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from workers.compiled import kernel
from workers.evaluation.vectors import COLUMNS, LANES, ROWS, copy, make_push, relu_change

__all__ = ["GROUP", "IN", "OUT", "SITES", "TABLE", "TAPS", "WEIGHTS", "CleanState", "Network", "Scratch", "evaluate"]

GROUP = 16
"""Candidates evaluated together, so that a layer's weights are read once for all of them."""

BLOCK = 64
"""Candidates that a thread takes at a time."""

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy"}
_INLINE = {**_OPTIONS, "forceinline": True}
_U = np.uint64


class Network(NamedTuple):
    """A chain as flat arrays. Output channels are padded with zeros to a multiple of 16.

    Attributes:
        layers: int64 ``[L, 6]``, its columns being `IN`, `OUT` and so on.
        weights: float32, a layer after the other as ``[tap, in, out]``.
        starts, pairs: int32 ``[…]`` and ``[…, 2]``; the input site s of layer l touches the output site
            ``pairs[a, 0]`` through the kernel's tap ``pairs[a, 1]``, for a from ``starts[table + s]`` to
            ``starts[table + s + 1]``.
        values: float32 ``[C, 256]``, each level of each channel of the image, normalised.
    """

    layers: np.ndarray
    weights: np.ndarray
    starts: np.ndarray
    pairs: np.ndarray
    values: np.ndarray


IN, OUT, SITES, TAPS, WEIGHTS, TABLE = range(6)


class CleanState(NamedTuple):
    """Clean images in a network.

    Attributes:
        pixels: uint8 ``[B, H·W, C]``.
        before: float32, pre-activations, a layer after the other as ``[B, site, out]``.
        offsets: int64 ``[L]``, where each layer begins in ``before``.
    """

    pixels: np.ndarray
    before: np.ndarray
    offsets: np.ndarray


class Scratch(NamedTuple):
    """One thread's room.

    A tile is some candidates of a group that change the same pixels of the same image, so that they touch the same
    sites. A touched site of a tile is an entry, and has a row for each of the tile's candidates; the tiles of a
    group have equally many. The entries of a layer's input and output take turns in two places.

    Attributes:
        rows: float32 ``[2, entry·row·channel]``, by how much activations move; pre-activations while they are summed.
        moved: uint32 ``[2, entry·channel]``, the channels that move in any row.
        count, site: int64 ``[2, entry]``, how many they are, and where.
        clean: int64 ``[entry]``, where an entry's clean pre-activations begin.
        slot: int64 ``[site]``, the entry of a touched site, −1 of others.
        begin, first, size, image: int64 ``[tile]``, the first entry; the first candidate, how many, their image.
        end: int64 ``[tap]``, where the list of pushes through each tap of the kernel ends.
        source, target: int64 ``[tap, push]``, from and to which entries.
        chosen: int64 ``[2, ROWS]``, from and to which rows of a tile.
        every: uint32 ``[channel]``, 0, 1, …
        total: float32 ``[channel]``, by how much each channel of an entry moves in all rows.
    """

    rows: np.ndarray
    moved: np.ndarray
    count: np.ndarray
    site: np.ndarray
    clean: np.ndarray
    slot: np.ndarray
    begin: np.ndarray
    first: np.ndarray
    size: np.ndarray
    image: np.ndarray
    end: np.ndarray
    source: np.ndarray
    target: np.ndarray
    chosen: np.ndarray
    every: np.ndarray
    total: np.ndarray


def _make_push_columns(vectors):
    """``push`` of `make_push` for the columns from one on: as many at a time as the registers hold."""
    push = make_push(vectors)
    push_rest = _make_push_columns(vectors // 2) if vectors > 1 else _push_nothing
    width = _U(LANES * vectors)

    @njit(**_INLINE)
    def push_columns(z, target, v, source, q, inputs, outputs, channels, co, n, w, wo, column):
        while outputs - column >= width:
            push(z, target, v, source, q, inputs, outputs, channels, co, n, w, wo, column)
            column += width
        push_rest(z, target, v, source, q, inputs, outputs, channels, co, n, w, wo, column)

    return push_columns


@njit(**_INLINE)
def _push_nothing(z, target, v, source, q, inputs, outputs, channels, co, n, w, wo, column):
    pass


_push_columns = _make_push_columns(COLUMNS)


@njit(**_INLINE)
def _alike(owner, position, order, start, stop):
    """How many candidates from start on, at most a group, change the same pixels of the same image."""
    lead, other = _U(order[start]), start + _U(1)
    stop = min(stop, start + _U(GROUP))
    while other < stop:
        same = owner[lead] == owner[_U(order[other])]
        for j in range(position.shape[1]):
            same &= position[lead, j] == position[_U(order[other]), j]
        if not same:
            break
        other += _U(1)
    return other - start


@njit(**_INLINE)
def _rows(alike):
    """The rows of a tile: fours, the last one filled up, unless there are too few for that."""
    return (alike + _U(ROWS - 1)) // _U(ROWS) * _U(ROWS) if alike > _U(ROWS // 2) else _U(1)


@njit(**_INLINE)
def _change_pixels(network, state, work, order, position, levels, start, size, rows, image, entries):
    """Makes entries of a tile's changed pixels."""
    v, moved, count, site = work.rows[0], work.moved[0], work.count[0], work.site[0]
    lead, changes, channels = _U(order[start]), _U(position.shape[1]), _U(levels.shape[2])
    for j in range(changes):
        pixel = _U(position[lead, j])
        later = False
        for q in range(j + _U(1), changes):
            later |= _U(position[lead, q]) == pixel
        if later:  # of two writes to a pixel the later stays
            continue
        n = _U(0)
        for c in range(channels):
            was, moves = state.pixels[image, pixel, c], False
            for r in range(rows):
                level = levels[_U(order[start + min(r, size - _U(1))]), j, c]
                v[(entries * rows + r) * channels + c] = network.values[c, level] - network.values[c, was]
                moves |= level != was
            moved[entries * channels + n] = np.uint32(c)
            n += _U(moves)
        count[entries], site[entries] = n, pixel
        entries += _U(1)
    return entries


@njit(**_INLINE)
def _touch(network, state, work, layer, now, tiles):
    """Makes entries of a layer's touched output sites, and lists the pushes into them by tap."""
    layers, starts, pairs = network.layers, network.starts, network.pairs
    outputs, kernel, last = _U(layers[layer, OUT]), _U(layers[layer, TAPS]), layer == layers.shape[0] - 1
    table, map_size, room = _U(layers[layer, TABLE]), _U(layers[layer, SITES]) * outputs, _room(layers, layer)
    count, site, places, clean = work.count[now], work.site[now], work.site[1 - now], work.clean
    begin, slot, end, source, target = work.begin, work.slot, work.end, work.source, work.target
    entries = _U(0)
    for t in range(kernel):
        end[t] = t * room
    for tile in range(tiles):
        first, stop, mine = _U(begin[tile]), _U(begin[tile + _U(1)]), entries
        base = _U(state.offsets[layer]) + _U(work.image[tile]) * map_size
        begin[tile] = entries
        if last:  # logits: an entry even where nothing is touched
            slot[0], places[entries], clean[entries] = entries, 0, base
            entries += _U(1)
        for e in range(first, stop):
            if count[e] == 0:
                continue
            s = table + _U(site[e])
            for a in range(_U(starts[s]), _U(starts[s + _U(1)])):
                place, t = _U(pairs[a, 0]), _U(pairs[a, 1])
                d = slot[place]
                if d < 0:
                    d = np.int64(entries)
                    slot[place], places[entries], clean[entries] = d, place, base + place * outputs
                    entries += _U(1)
                q = _U(end[t])
                source[q], target[q] = e, d
                end[t] = q + _U(1)
        for e in range(mine, entries):
            slot[_U(places[e])] = -1
    begin[tiles] = entries
    return entries


@njit(**_INLINE)
def _room(layers, layer):
    """The most pushes through a tap, one into each output site, and some that fill up the last ROWS."""
    return _U(layers[layer, SITES]) * _U(GROUP) + _U(ROWS)


@njit(**_INLINE)
def _sum(network, state, work, layer, now, rows, entries):
    """Adds the pushes to the clean pre-activations of the entries; returns the number of multiply-adds."""
    layers, weights, w = network.layers, network.weights, _U(network.layers[layer, WEIGHTS])
    outputs, inputs, room = _U(layers[layer, OUT]), _U(layers[layer, IN]), _room(layers, layer)
    v, z, moved, count, every = work.rows[now], work.rows[1 - now], work.moved[now], work.count[now], work.every
    source, target, row, row_to, terms = work.source, work.target, work.chosen[0], work.chosen[1], _U(0)
    for e in range(entries):
        for r in range(rows):
            for c in range(_U(0), outputs, _U(LANES)):
                copy(z, (e * rows + r) * outputs + c, state.before, _U(work.clean[e]) + c)
    for t in range(_U(layers[layer, TAPS])):  # tap by tap, so that its weights stay in the cache
        begin, end = t * room, _U(work.end[t])
        if rows == _U(1):  # any pushes together, with all channels: hardly one moves in none of four rows
            terms += (end - begin) * inputs
            for q in range(end, end + _U(ROWS - 1)):  # what fills up the last ones goes where nobody reads
                source[q], target[q] = source[begin], entries + q - end
            for q in range(begin, end, _U(ROWS)):
                _push_columns(z, target, v, source, q, inputs, outputs, every, _U(0), inputs, weights, w, _U(0))
        else:
            for q in range(begin, end):
                e, d = _U(source[q]), _U(target[q])
                n = _U(count[e])
                terms += n * rows
                for first in range(_U(0), rows, _U(ROWS)):
                    for r in range(_U(ROWS)):
                        row[r], row_to[r] = e * rows + first + r, d * rows + first + r
                    _push_columns(z, row_to, v, row, _U(0), inputs, outputs, moved, e * inputs, n, weights, w, _U(0))
        w += inputs * outputs
    return terms * outputs


@njit(**_INLINE)
def _rectify(network, state, work, layer, then, rows, entries):
    """Makes of the entries' pre-activations by how much the ReLU moves them, and lists the channels that move."""
    outputs, z, total = _U(network.layers[layer, OUT]), work.rows[then], work.total
    moved, count = work.moved[then], work.count[then]
    for e in range(entries):
        n, clean = _U(0), _U(work.clean[e])
        for c in range(_U(0), outputs, _U(LANES)):
            moves = relu_change(z, e * rows * outputs + c, outputs, rows, state.before, clean + c, total, c)
            if rows == _U(1):
                n += moves  # that any channel does is all that is asked
            elif moves:
                for channel in range(c, c + _U(LANES)):
                    moved[e * outputs + n] = np.uint32(channel)
                    n += _U(total[channel] != np.float32(0))
        count[e] = n


@kernel(**_OPTIONS)
def evaluate(network, state, work, order, owner, position, levels, thread, threads, out):
    """Evaluates a thread's blocks of candidates, which come in ``order``; the logits go to ``out``.

    A candidate's sums are taken in the order of the kernel's taps and of the channels, so that its bits do not
    depend on what else is in its tile or group. Returns the number of multiply-adds.
    """
    depth, total, operations = network.layers.shape[0], _U(order.shape[0]), _U(0)
    width = _U(network.layers[depth - 1, OUT])
    for block in range(_U(thread), (total + _U(BLOCK - 1)) // _U(BLOCK), _U(threads)):
        start, stop = block * _U(BLOCK), min((block + _U(1)) * _U(BLOCK), total)
        while start < stop:
            alike, tiles, entries = _alike(owner, position, order, start, stop), _U(0), _U(0)
            rows = _rows(alike)
            while start < stop and _rows(alike) == rows and (tiles + _U(1)) * rows <= _U(GROUP):
                size, image = min(alike, rows), _U(owner[_U(order[start])])
                work.begin[tiles], work.first[tiles], work.size[tiles], work.image[tiles] = entries, start, size, image
                entries = _change_pixels(
                    network, state, work, order, position, levels, start, size, rows, image, entries
                )
                tiles += _U(1)
                start += size
                if start < stop:
                    alike = _alike(owner, position, order, start, stop)
            work.begin[tiles] = entries
            now = 0
            for layer in range(depth):
                entries = _touch(network, state, work, layer, now, tiles)
                operations += _sum(network, state, work, layer, now, rows, entries)
                now = 1 - now
                if layer < depth - 1:
                    _rectify(network, state, work, layer, now, rows, entries)
            logits = work.rows[now]
            for tile in range(tiles):
                for r in range(_U(work.size[tile])):
                    for c in range(_U(out.shape[1])):
                        out[_U(order[_U(work.first[tile]) + r]), c] = logits[(tile * rows + r) * width + c]
    return operations
