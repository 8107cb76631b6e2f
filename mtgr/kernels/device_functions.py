"""What several GPU kernels do alike: SiLU, times and their buckets, and rows of the cache in its number format."""

# Triton gives kernels their types, and their constants have the names of constants.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

from mtgr.kernels.time_cells import CELL_SHIFT, FIRST_CELL

# what kernels may read of a module
_CELL_SHIFT = tl.constexpr(CELL_SHIFT)
_FIRST_CELL = tl.constexpr(FIRST_CELL)
_FP8_MAX = tl.constexpr(448.0)
_LOG2_E = tl.constexpr(1.4426950408889634)
_WHOLE = tl.constexpr(float(1 << 23))

PORTABLE = tl.constexpr(0)
BY_EXP = tl.constexpr(1)
BY_TANH = tl.constexpr(2)


@triton.jit
def silu(x, MODE: tl.constexpr):
    """x * sigmoid(x): in what any device knows, or by instructions of the special function unit.

    BY_EXP takes two of those a number and is exact to a few units of float32's last place; BY_TANH takes one, and is
    off by up to |x| / 4096, which bfloat16 loses anyway where x is positive, but not where silu(x) is nearly 0.
    """
    if MODE == BY_EXP:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * -_LOG2_E], dtype=tl.float32, is_pure=True, pack=1
        )
        sigmoid = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], dtype=tl.float32, is_pure=True, pack=1
        )
        return x * sigmoid
    elif MODE == BY_TANH:  # noqa: RET505 - what follows a branch that returns is compiled all the same
        half = 0.5 * x
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return half + half * tanh
    else:
        return x / (1.0 + tl.exp(-x))


@triton.jit
def load_time(lanes, stored, PACKED: tl.constexpr):
    """The uint32 time in four lanes, lowest byte first, each at its pointer; 0 where nothing is stored.

    PACKED where the lanes are of one or two bytes and lie so that they can be read at once.
    """
    if lanes.dtype.element_ty.primitive_bitwidth > 8:
        if PACKED:
            four = tl.load(lanes.to(tl.pointer_type(tl.int64), bitcast=True), mask=stored, other=0)
            a, b = _lane(four, 0, lanes.dtype.element_ty), _lane(four, 1, lanes.dtype.element_ty)
            c, d = _lane(four, 2, lanes.dtype.element_ty), _lane(four, 3, lanes.dtype.element_ty)
        else:
            a = tl.load(lanes, mask=stored, other=0).to(tl.float32)
            b = tl.load(lanes + 1, mask=stored, other=0).to(tl.float32)
            c = tl.load(lanes + 2, mask=stored, other=0).to(tl.float32)
            d = tl.load(lanes + 3, mask=stored, other=0).to(tl.float32)
        # a whole number below 2**23, on top of that, is the lowest bits of a float32: no slow conversion is needed
        low = (b * 256.0 + (a + _WHOLE)).to(tl.uint32, bitcast=True)
        high = (d * 256.0 + (c + _WHOLE)).to(tl.uint32, bitcast=True)
        time = (low & 0xFFFF) | (high << 16)
    elif PACKED:
        time = tl.load(lanes.to(tl.pointer_type(tl.uint32), bitcast=True), mask=stored, other=0)
    else:
        time = tl.load(lanes, mask=stored, other=0).to(tl.uint32)
        for byte in tl.static_range(1, 4):
            time |= tl.load(lanes + byte, mask=stored, other=0).to(tl.uint32) << (8 * byte)
    return time


@triton.jit
def _lane(four, LANE: tl.constexpr, dtype: tl.constexpr):
    """One of the two-byte numbers of an int64."""
    return (four >> (16 * LANE)).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def time_bucket(query_times, key_times, cells):
    """The bucket of each gap, as `mtgr.kernels.time_buckets.time_buckets`; `mtgr.kernels.time_cells` says how."""
    gap = query_times - key_times
    cell = (gap.to(tl.float32).to(tl.int32, bitcast=True) >> _CELL_SHIFT) - _FIRST_CELL
    entry = tl.load(cells + tl.maximum(cell, 0))
    reached = gap >= (entry & 0xFFFFFFFF).to(tl.uint32)
    bucket = (entry >> 32).to(tl.int32) + reached.to(tl.int32)
    return tl.where(query_times < key_times, 0, bucket)


@triton.jit
def as_bytes(cache):
    """The same addresses, of bytes."""
    return cache.to(tl.pointer_type(tl.uint8), bitcast=True)


@triton.jit
def to_fp8(x, per_scale):
    """The bytes of the nearest e4m3 numbers to x / scale, the largest where it would be larger."""
    scaled = tl.minimum(tl.maximum(x.to(tl.float32) * per_scale, -_FP8_MAX), _FP8_MAX)
    return scaled.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def write_numbers(row, x, inside, per_scale, BYTES: tl.constexpr):
    """Write numbers to the cache, whose format is FP8 where BYTES."""
    if BYTES:
        tl.store(as_bytes(row), to_fp8(x, per_scale), mask=inside)
    else:
        tl.store(row, x.to(row.dtype.element_ty), mask=inside)


@triton.jit
def write_lanes(row, x, inside, BYTES: tl.constexpr):
    """Write lanes, which are bytes in any format, to the cache."""
    if BYTES:
        tl.store(as_bytes(row), x.to(tl.int32).to(tl.uint8), mask=inside)
    else:
        tl.store(row, x.to(row.dtype.element_ty), mask=inside)
