"""What kernels compute by SIMD vectors: SiLU, tables by register, time buckets and matrix products; see `simd`."""

from __future__ import annotations

import math
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils

from mtgr.kernels.simd import (
    AVX512,
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    ROWS,
    called,
    constant,
    filled,
    floats,
    fused,
    instructions,
    ints,
    loaded,
    nothing,
    stored,
    whole,
)
from mtgr.kernels.time_cells import CELL_SHIFT, FIRST_CELL

TIME_CELLS: Final = 128
"""Cells of `mtgr.kernels.time_cells` that are looked up: in the last of them all thresholds are passed."""

_LONGEST_GAP: Final = 1 << 30  # in the cells that are looked up, beyond all thresholds


@instructions(floats, floats)
def silu(b: Any, x: Any) -> Any:
    """x / (1 + exp(-x)), to about the last bit of a float32."""

    def number(value: float) -> Any:
        return constant(FLOATS, value)

    # beyond, float32 has no number for exp(-x), and silu(x) is x or as good as 0
    bounded = b.select(b.fcmp_ordered(">", x, number(-87.0)), x, number(-87.0))
    bounded = b.select(b.fcmp_ordered("<", bounded, number(87.0)), bounded, number(87.0))
    # exp(-x) = 2**n * exp(f), |f| <= ln 2 / 2. A number so large that it has no fraction rounds what is added to it.
    rounder = 1.5 * 2.0**23
    rounded = b.fadd(b.fmul(bounded, number(-math.log2(math.e))), number(rounder))
    power = b.shl(b.bitcast(rounded, INTS), constant(INTS, 23))
    halvings = b.fsub(rounded, number(rounder))
    high = 355.0 / 512.0  # ln 2 in two parts, of which the first has few bits: its products with n are exact
    fraction = fused(b, halvings, number(-high), b.fneg(bounded))
    fraction = fused(b, halvings, number(high - math.log(2.0)), fraction)
    terms = number(1 / math.factorial(7))
    for degree in range(6, -1, -1):
        terms = fused(b, terms, fraction, number(1 / math.factorial(degree)))
    exponential = b.bitcast(b.add(b.bitcast(terms, INTS), power), FLOATS)
    return b.fdiv(x, b.fadd(exponential, number(1.0)))


def _lookup(b: Any, element: Any, address: Any, indices: Any, size: int) -> Any:
    """Entries of a table of `size`, a power of two from 32 on: LANES permuted registers beat LANES loads."""
    vector = ir.VectorType(element, LANES)
    if AVX512:
        name = "llvm.x86.avx512.vpermi2var." + ("ps.512" if element is F32 else "d.512")
        parts = []
        for first in range(0, size, 2 * LANES):
            low = loaded(b, vector, b.add(address, ir.Constant(I64, 4 * first)))
            high = loaded(b, vector, b.add(address, ir.Constant(I64, 4 * (first + LANES))))
            parts.append(called(b, name, vector, low, indices, high))
        step = 2 * LANES
        while len(parts) > 1:
            odd = b.icmp_signed("!=", b.and_(indices, constant(INTS, step)), constant(INTS, 0))
            parts = [b.select(odd, parts[i + 1], parts[i]) for i in range(0, len(parts), 2)]
            step *= 2
        return parts[0]
    entries = ir.Constant(vector, ir.Undefined)
    for lane in range(LANES):
        place = ir.Constant(I32, lane)
        offset = b.shl(b.zext(b.extract_element(indices, place), I64), ir.Constant(I64, 2))
        entries = b.insert_element(entries, loaded(b, element, b.add(address, offset)), place)
    return entries


@instructions(floats, whole, ints)
def lookup(b: Any, address: Any, indices: Any) -> Any:
    """Entries of a table of 64 float32."""
    return _lookup(b, F32, address, indices, 64)


@instructions(ints, ints, ints, whole)
def time_buckets(b: Any, query_times: Any, key_times: Any, cells: Any) -> Any:
    """`mtgr.kernels.time_buckets.time_buckets` of times below 2**32.

    cells: address of (2, TIME_CELLS) int32, each cell's bucket and the threshold from which on it is the next.
    """
    zero, longest = constant(INTS, 0), constant(INTS, _LONGEST_GAP)
    later = b.icmp_unsigned(">", query_times, key_times)
    gap = b.select(later, b.sub(query_times, key_times), zero)
    gap = b.select(b.icmp_unsigned("<", gap, longest), gap, longest)
    cell = b.lshr(b.bitcast(b.sitofp(gap, FLOATS), INTS), constant(INTS, CELL_SHIFT))
    cell = b.sub(cell, constant(INTS, FIRST_CELL))
    cell = b.select(b.icmp_signed(">", cell, zero), cell, zero)
    bucket = _lookup(b, I32, cells, cell, TIME_CELLS)
    threshold = _lookup(b, I32, b.add(cells, ir.Constant(I64, 4 * TIME_CELLS)), cell, TIME_CELLS)
    return b.add(bucket, b.zext(b.icmp_signed(">=", gap, threshold), INTS))


def _product(columns: int, *, onto: bool) -> Any:
    """Y (ROWS, columns * LANES) = A (ROWS, steps) X (steps, columns * LANES), or that added `onto` Y.

    a, x, y: addresses, with the bytes from row to row and from step to step. All of Y stays in registers while A and X
    are read once.
    """

    def product(
        b: Any, a: Any, a_row: Any, a_step: Any, x: Any, x_step: Any, steps: Any, y: Any, y_row: Any
    ) -> None:
        def at(address: Any, stride: Any, number: int) -> Any:
            return b.add(address, b.mul(stride, ir.Constant(I64, number)))

        vector = ir.Constant(I64, 4 * LANES)
        places = [at(at(y, y_row, row), vector, column) for row in range(ROWS) for column in range(columns)]
        zero = constant(FLOATS, 0.0)
        sums = [cgutils.alloca_once_value(b, loaded(b, FLOATS, place) if onto else zero) for place in places]
        with cgutils.for_range(b, steps) as loop:
            a_now = b.add(a, b.mul(loop.index, a_step))
            x_now = b.add(x, b.mul(loop.index, x_step))
            factors = [loaded(b, FLOATS, at(x_now, vector, column)) for column in range(columns)]
            for row in range(ROWS):
                number = filled(b, loaded(b, F32, at(a_now, a_row, row)))
                for column, factor in enumerate(factors):
                    total = sums[row * columns + column]
                    b.store(fused(b, number, factor, b.load(total)), total)
        for place, total in zip(places, sums, strict=True):
            stored(b, b.load(total), place)

    return instructions(nothing, *(whole,) * 8)(product)


product_one: Final = _product(1, onto=False)
product_two: Final = _product(2, onto=False)
add_product_one: Final = _product(1, onto=True)
add_product_two: Final = _product(2, onto=True)
