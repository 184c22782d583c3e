"""Sixteen-wide float operations for numba kernels, as LLVM vectors.

A numba loop over channels keeps its accumulators in memory; written with explicit vectors they stay in registers.
The vectors are LLVM's own, so the compiler lowers them to AVX-512, AVX2, SSE or NEON alike. Offsets are in
elements, and every length is a multiple of 16.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["COLUMNS", "LANES", "ROWS", "copy", "make_push", "relu_change"]

LANES = 16
"""Floats of a vector; where the processor has shorter ones, several of those."""

ROWS = 4
"""Rows pushed together, so that a weight is loaded once for all of them."""

COLUMNS = 4 if binding.get_host_cpu_features().get("avx512f") else 1
"""Vectors of a row pushed together: ROWS · COLUMNS sums must fit into the registers, 32 of 16 floats or 16 of 8."""

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _BITS = ir.VectorType(_F32, LANES), ir.IntType(LANES)
_ZEROS = ir.Constant(_FLOATS, [0.0] * LANES)


def make_push(vectors: int) -> Callable[..., None]:
    """Makes ``push(z, target, v, source, q, inputs, outputs, channels, co, n, w, wo, column)``.

    In full, for r < ROWS and the ``16 · vectors`` columns o from ``column``, rows of z and v being ``outputs`` and
    ``inputs`` long: ``z[target[q + r], o] += Σ_c v[source[q + r], c] · w[wo + c·outputs + o]``, where c runs over
    ``channels[co:co + n]`` in this order. The targets must differ.
    """

    def push(
        typingctx: Any, z: Any, target: Any, v: Any, source: Any, q: Any, inputs: Any, outputs: Any, channels: Any,
        co: Any, n: Any, w: Any, wo: Any, column: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(z, target, v, source, q, inputs, outputs, channels, co, n, w, wo, column)

        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            z, target, v, source, q, inputs, outputs, channels, co, n, w, wo, column = _pointers(context, b, sig, args)
            multiply_add = _function(b, "llvm.fmuladd", 3)
            offsets = [_i64(LANES * h) for h in range(vectors)]

            def row(array: Any, numbers: Any, r: int, width: Any) -> Any:
                number = b.load(b.gep(numbers, [b.add(q, _i64(r))]))
                return b.gep(array, [b.mul(number, width)])

            changes = [row(v, source, r, inputs) for r in range(ROWS)]
            targets = [row(z, target, r, outputs) for r in range(ROWS)]
            places = [_vector(b, line, b.add(column, offset)) for line in targets for offset in offsets]
            weights, numbers = b.gep(w, [b.add(wo, column)]), b.gep(channels, [co])

            def add_channel(j: Any, sums: list[Any]) -> list[Any]:
                c = b.zext(b.load(b.gep(numbers, [j])), _I64)
                line = b.mul(c, outputs)
                weight = [_load(b, _vector(b, weights, b.add(line, offset))) for offset in offsets]
                factors = [(_spread(b, b.load(b.gep(change, [c]))), part) for change in changes for part in weight]
                return [b.call(multiply_add, [*pair, total]) for pair, total in zip(factors, sums, strict=True)]

            sums = _loop(b, n, [_load(b, place) for place in places], add_channel)
            for total, place in zip(sums, places, strict=True):
                b.store(total, place, align=4)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(push)


@intrinsic
def relu_change(typingctx: Any, z: Any, zo: Any, width: Any, rows: Any, p: Any, po: Any, total: Any, to: Any) -> Any:
    """For 16 columns of some rows, ``z[zo + r·width:]`` becomes its ReLU less that of ``p[po:]``.

    ``total[to:]`` becomes the sums of the absolute values over the rows; the result is 1 if any is not 0, else 0.
    """
    signature = types.uint64(z, zo, width, rows, p, po, total, to)

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        z, zo, width, rows, p, po, total, to = _pointers(context, b, sig, args)
        absolute = _function(b, "llvm.fabs", 1)

        def relu(x: Any) -> Any:
            return b.select(b.fcmp_ordered(">", x, _ZEROS), x, _ZEROS)

        before = relu(_load(b, _vector(b, p, po)))

        def add_row(r: Any, sums: list[Any]) -> list[Any]:
            place = _vector(b, z, b.add(zo, b.mul(r, width)))
            change = b.fsub(relu(_load(b, place)), before)
            b.store(change, place, align=4)
            return [b.fadd(sums[0], b.call(absolute, [change]))]

        [sums] = _loop(b, rows, [_ZEROS], add_row)
        b.store(sums, _vector(b, total, to), align=4)
        moved = b.bitcast(b.fcmp_unordered("!=", sums, _ZEROS), _BITS)
        return b.zext(b.icmp_unsigned("!=", moved, ir.Constant(_BITS, 0)), _I64)

    return signature, codegen


@intrinsic
def copy(typingctx: Any, z: Any, zo: Any, p: Any, po: Any) -> Any:
    """``z[zo:zo + 16] = p[po:po + 16]``."""

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        z, zo, p, po = _pointers(context, b, sig, args)
        b.store(_load(b, _vector(b, p, po)), _vector(b, z, zo), align=4)
        return context.get_dummy_value()

    return types.void(z, zo, p, po), codegen


def _loop(b: Any, n: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """``for i in range(n): carried = body(i, carried)``; what is carried out."""
    before = b.block
    condition, inside, end = (b.append_basic_block(name) for name in ("condition", "inside", "end"))
    b.branch(condition)
    b.position_at_end(condition)
    i, held = b.phi(_I64), [b.phi(value.type) for value in carried]
    i.add_incoming(_i64(0), before)
    for phi, value in zip(held, carried, strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_unsigned("<", i, n), inside, end)
    b.position_at_end(inside)
    for phi, value in zip(held, body(i, held), strict=True):
        phi.add_incoming(value, b.block)
    i.add_incoming(b.add(i, _i64(1)), b.block)
    b.branch(condition)
    b.position_at_end(end)
    return held


def _function(b: Any, name: str, arguments: int) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * arguments)
    return cgutils.get_or_insert_function(b.module, kind, f"{name}.v{LANES}f32")


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


def _pointers(context: Any, b: Any, sig: Any, args: Any) -> list[Any]:
    """Arrays as pointers to their data, everything else as it is."""
    return [
        context.make_array(kind)(context, b, value).data if isinstance(kind, types.Array) else value
        for kind, value in zip(sig.args, args, strict=True)
    ]


def _vector(b: Any, pointer: Any, offset: Any) -> Any:
    return b.bitcast(b.gep(pointer, [offset]), _FLOATS.as_pointer())


def _load(b: Any, vector: Any) -> Any:
    return b.load(vector, align=4)


def _spread(b: Any, scalar: Any) -> Any:
    nothing = ir.Constant(_FLOATS, ir.Undefined)
    first = b.insert_element(nothing, scalar, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))
