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


@triton.jit
def silu_of_double(half, FAST: tl.constexpr):
    """silu(2 * half). FAST is one instruction of the special function unit, with the precision of half floats."""
    if FAST:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return half + half * tanh
    return 2.0 * half / (1.0 + tl.exp(-2.0 * half))


@triton.jit
def load_time(lanes, stored):
    """The uint32 time in four lanes, lowest byte first, each at its pointer; 0 where nothing is stored."""
    time = tl.load(lanes, mask=stored, other=0).to(tl.int32)
    for byte in tl.static_range(1, 4):
        time |= tl.load(lanes + byte, mask=stored, other=0).to(tl.int32) << (8 * byte)
    return time.to(tl.uint32, bitcast=True)


@triton.jit
def time_bucket(query_times, key_times, cells):
    """The bucket of each gap, as `mtgr.model.bias.time_buckets`; `mtgr.kernels.time_cells` says how."""
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
