"""SIMD vectors for functions that numba compiles: what LLVM's vectoriser would have to find out is said outright.

A vector holds LANES numbers, as many as a register of the processor. Addresses are integers, in bytes, and nothing
checks them. All of this is machine code for functions under numba; none of it can be called from Python.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model


def _processor_features() -> set[str]:
    """What numba compiles for: this processor, unless the environment names another."""
    if config.CPU_NAME:
        return {name[1:] for name in (config.CPU_FEATURES or "").split(",") if name.startswith("+")}
    return {name for name, there in llvm.get_host_cpu_features().items() if there}


_FEATURES: Final = _processor_features()
_AVX512: Final = "avx512f" in _FEATURES

LANES: Final = 16 if _AVX512 else 8 if "avx" in _FEATURES else 4
"""Numbers of a vector."""

ROWS: Final = 8 if _AVX512 else 4
"""Rows of a matrix product made at once: with two vectors for each they fill the registers."""

_F32, _I64, _I32, _I16, _I8 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_FUSED: Final = ("contract",)  # a product and a sum may be one instruction


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self, name: str, representation: ir.VectorType) -> None:
        super().__init__(name=name)
        self.representation = representation


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, vector.representation)


_floats: Final = _Vector(f"float32x{LANES}", _FLOATS)
_ints: Final = _Vector(f"int32x{LANES}", _INTS)
_int, _float, _nothing = types.int64, types.float32, types.void


def _instructions(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function for numba of one that emits LLVM's instructions, with these types."""

    def wrap(emit: Callable[..., Any]) -> Any:
        def code(context: Any, builder: Any, _: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is _nothing else value

        def typing(_: Any, *__: Any) -> Any:
            return result(*arguments), code

        typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
        typing.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]
        return intrinsic(typing)

    return wrap


def _constant(vector: ir.VectorType, number: float) -> Any:
    return ir.Constant(vector, [number] * LANES)


def _fill(b: Any, number: Any) -> Any:
    vector = ir.VectorType(number.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(undefined, number, ir.Constant(_I32, 0))
    return b.shuffle_vector(first, undefined, _constant(_INTS, 0))


def _load(b: Any, kind: Any, address: Any) -> Any:
    return b.load(b.inttoptr(address, kind.as_pointer()), align=1)


def _store(b: Any, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)


def _called(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), arguments)


def _lanes() -> Any:
    return ir.Constant(_INTS, list(range(LANES)))


def _multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    return b.fadd(b.fmul(x, y, flags=_FUSED), z, flags=_FUSED)


@_instructions(_floats, _int)
def load(b: Any, address: Any) -> Any:
    """LANES float32 of an address."""
    return _load(b, _FLOATS, address)


@_instructions(_nothing, _floats, _int)
def put(b: Any, vector: Any, address: Any) -> None:
    """Write LANES float32 to an address."""
    _store(b, vector, address)


@_instructions(_float, _int)
def load_one(b: Any, address: Any) -> Any:
    """The float32 of an address."""
    return _load(b, _F32, address)


@_instructions(_nothing, _float, _int)
def put_one(b: Any, number: Any, address: Any) -> None:
    """Write a float32 to an address."""
    _store(b, number, address)


@_instructions(_int, _int)
def load_int(b: Any, address: Any) -> Any:
    """The int32 of an address."""
    return b.sext(_load(b, _I32, address), _I64)


@_instructions(_nothing, _int, _int)
def put_int(b: Any, number: Any, address: Any) -> None:
    """Write an int32 to an address."""
    _store(b, b.trunc(number, _I32), address)


@_instructions(_ints, _int)
def load_ints(b: Any, address: Any) -> Any:
    """LANES int32 of an address."""
    return _load(b, _INTS, address)


@_instructions(_ints, _int)
def load_bytes(b: Any, address: Any) -> Any:
    """LANES bytes of an address."""
    return b.zext(_load(b, ir.VectorType(_I8, LANES), address), _INTS)


@_instructions(_nothing, _ints, _int)
def put_bytes(b: Any, vector: Any, address: Any) -> None:
    """Write the lowest byte of each lane to an address."""
    _store(b, b.trunc(vector, ir.VectorType(_I8, LANES)), address)


def _of_bfloat16(b: Any, halves: Any, integers: Any, numbers: Any) -> Any:
    """Halves are the upper halves of float32."""
    return b.bitcast(b.shl(b.zext(halves, integers), ir.Constant(integers, _each(integers, 16))), numbers)


def _of_float16(b: Any, halves: Any, integers: Any, numbers: Any) -> Any:
    """Shift exponent and mantissa to their places and mend the exponent's bias by a product, which is exact."""

    def constant(number: int) -> Any:
        return ir.Constant(integers, _each(integers, number))

    bits = b.zext(halves, integers)
    magnitude = b.shl(b.and_(bits, constant(0x7FFF)), constant(13))
    rebiased = b.fmul(b.bitcast(magnitude, numbers), ir.Constant(numbers, _each(numbers, 2.0**112)))
    finite = b.icmp_unsigned("<", magnitude, constant(0x7C00 << 13))
    whole = b.select(finite, b.bitcast(rebiased, integers), b.or_(magnitude, constant(0x7F80 << 16)))
    sign = b.shl(b.and_(bits, constant(0x8000)), constant(16))
    return b.bitcast(b.or_(whole, sign), numbers)


def _each(kind: Any, number: float) -> Any:
    return [number] * LANES if isinstance(kind, ir.VectorType) else number


@_instructions(_floats, _int)
def load_bfloat16(b: Any, address: Any) -> Any:
    """LANES bfloat16 of an address."""
    return _of_bfloat16(b, _load(b, ir.VectorType(_I16, LANES), address), _INTS, _FLOATS)


@_instructions(_float, _int)
def load_one_bfloat16(b: Any, address: Any) -> Any:
    """The bfloat16 of an address."""
    return _of_bfloat16(b, _load(b, _I16, address), _I32, _F32)


@_instructions(_floats, _int)
def load_float16(b: Any, address: Any) -> Any:
    """LANES float16 of an address."""
    return _of_float16(b, _load(b, ir.VectorType(_I16, LANES), address), _INTS, _FLOATS)


@_instructions(_float, _int)
def load_one_float16(b: Any, address: Any) -> Any:
    """The float16 of an address."""
    return _of_float16(b, _load(b, _I16, address), _I32, _F32)


@_instructions(_floats, _float)
def fill(b: Any, number: Any) -> Any:
    """A number in every lane."""
    return _fill(b, number)


@_instructions(_ints, _int)
def fill_int(b: Any, number: Any) -> Any:
    """The lower 32 bits of a number in every lane."""
    return _fill(b, b.trunc(number, _I32))


@_instructions(_floats, _floats, _floats)
def add(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.fadd(x, y, flags=_FUSED)


@_instructions(_floats, _floats, _floats)
def multiply(b: Any, x: Any, y: Any) -> Any:
    """x * y."""
    return b.fmul(x, y, flags=_FUSED)


@_instructions(_floats, _floats, _floats, _floats)
def multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z."""
    return _multiply_add(b, x, y, z)


@_instructions(_float, _floats)
def total(b: Any, vector: Any) -> Any:
    """The sum of the lanes."""
    width = LANES
    while width > 1:
        width //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        half = ir.VectorType(_I32, width)
        low = b.shuffle_vector(vector, undefined, ir.Constant(half, list(range(width))))
        high = b.shuffle_vector(vector, undefined, ir.Constant(half, list(range(width, 2 * width))))
        vector = b.fadd(low, high, flags=_FUSED)
    return b.extract_element(vector, ir.Constant(_I32, 0))


@_instructions(_floats, _floats, _int)
def keep_from(b: Any, vector: Any, first: Any) -> Any:
    """0 in the lanes before the first."""
    kept = b.icmp_signed(">=", _lanes(), _fill(b, b.trunc(first, _I32)))
    return b.select(kept, vector, _constant(_FLOATS, 0.0))


@_instructions(_floats, _floats)
def reverse(b: Any, vector: Any) -> Any:
    """The lanes from last to first."""
    order = ir.Constant(_INTS, list(range(LANES - 1, -1, -1)))
    return b.shuffle_vector(vector, ir.Constant(_FLOATS, ir.Undefined), order)


@_instructions(_floats, _floats)
def silu(b: Any, x: Any) -> Any:
    """x / (1 + exp(-x)), to about the last bit of a float32."""

    def real(number: float) -> Any:
        return _constant(_FLOATS, number)

    # beyond, float32 has no number for exp(-x), and silu(x) is x or as good as 0
    bounded = b.select(b.fcmp_ordered(">", x, real(-87.0)), x, real(-87.0))
    bounded = b.select(b.fcmp_ordered("<", bounded, real(87.0)), bounded, real(87.0))
    # exp(-x) = 2**n * exp(f), |f| <= ln 2 / 2. A number so large that it has no fraction rounds what is added to it.
    rounder = 1.5 * 2.0**23
    rounded = b.fadd(b.fmul(bounded, real(-math.log2(math.e))), real(rounder))
    power = b.shl(b.bitcast(rounded, _INTS), _constant(_INTS, 23))
    whole = b.fsub(rounded, real(rounder))
    high = 355.0 / 512.0  # ln 2 in two parts, of which the first has few bits: its products with n are exact
    fraction = _multiply_add(b, whole, real(-high), b.fneg(bounded))
    fraction = _multiply_add(b, whole, real(high - math.log(2.0)), fraction)
    terms = real(1 / math.factorial(7))
    for degree in range(6, -1, -1):
        terms = _multiply_add(b, terms, fraction, real(1 / math.factorial(degree)))
    exponential = b.bitcast(b.add(b.bitcast(terms, _INTS), power), _FLOATS)
    return b.fdiv(x, b.fadd(exponential, real(1.0)))


def _lookup(b: Any, element: Any, address: Any, indices: Any, size: int) -> Any:
    """Entries of a table of `size`, a power of two from 32 on: LANES permuted registers beat LANES loads."""
    vector = ir.VectorType(element, LANES)
    if _AVX512:
        name = "llvm.x86.avx512.vpermi2var." + ("ps.512" if element is _F32 else "d.512")
        parts = []
        for first in range(0, size, 2 * LANES):
            low = _load(b, vector, b.add(address, ir.Constant(_I64, 4 * first)))
            high = _load(b, vector, b.add(address, ir.Constant(_I64, 4 * (first + LANES))))
            parts.append(_called(b, name, vector, low, indices, high))
        step = 2 * LANES
        while len(parts) > 1:
            odd = b.icmp_signed("!=", b.and_(indices, _constant(_INTS, step)), _constant(_INTS, 0))
            parts = [b.select(odd, parts[i + 1], parts[i]) for i in range(0, len(parts), 2)]
            step *= 2
        return parts[0]
    entries = ir.Constant(vector, ir.Undefined)
    for lane in range(LANES):
        place = ir.Constant(_I32, lane)
        offset = b.shl(b.zext(b.extract_element(indices, place), _I64), ir.Constant(_I64, 2))
        entries = b.insert_element(entries, _load(b, element, b.add(address, offset)), place)
    return entries


@_instructions(_floats, _int, _ints)
def lookup(b: Any, address: Any, indices: Any) -> Any:
    """Entries of a table of 64 float32."""
    return _lookup(b, _F32, address, indices, 64)


@_instructions(_ints, _ints, _ints, _int)
def time_buckets(b: Any, query_times: Any, key_times: Any, octaves: Any) -> Any:
    """`mtgr.model.bias.time_buckets` of seconds below 2**32.

    octaves: address of int32 (4, 32), for each power of two that a gap rounds down to, or up to as a float32: how many
    thresholds lie below such gaps, and up to three that lie among them.
    """
    later = b.icmp_unsigned(">", query_times, key_times)
    gap = b.sub(b.select(later, query_times, key_times), key_times)
    gap = b.select(b.icmp_unsigned("<", gap, _constant(_INTS, 1 << 30)), gap, _constant(_INTS, 1 << 30))
    exponent = b.lshr(b.bitcast(b.sitofp(gap, _FLOATS), _INTS), _constant(_INTS, 23))
    octave = b.sub(exponent, _constant(_INTS, 126))
    octave = b.select(b.icmp_signed(">", octave, _constant(_INTS, 0)), octave, _constant(_INTS, 0))
    bucket = _lookup(b, _I32, octaves, octave, 32)
    for row in range(1, 4):
        threshold = _lookup(b, _I32, b.add(octaves, ir.Constant(_I64, 4 * 32 * row)), octave, 32)
        bucket = b.add(bucket, b.zext(b.icmp_signed(">=", gap, threshold), _INTS))
    return bucket


@_instructions(_int, _int)
def take_next(b: Any, address: Any) -> Any:
    """The int64 of an address, which is one more for the next thread."""
    return b.atomic_rmw("add", b.inttoptr(address, _I64.as_pointer()), ir.Constant(_I64, 1), "monotonic")


def _product(
    b: Any,
    columns: int,
    onto: bool,
    a: Any,
    a_row: Any,
    a_step: Any,
    x: Any,
    x_step: Any,
    steps: Any,
    y: Any,
    y_row: Any,
) -> None:
    """Y (ROWS, columns * LANES) = A (ROWS, steps) X (steps, columns * LANES), or that added to Y.

    All numbers of Y stay in registers while X and A are read once.
    """

    def at(address: Any, stride: Any, row: int) -> Any:
        return b.add(address, b.mul(stride, ir.Constant(_I64, row)))

    bytes_of_vector = ir.Constant(_I64, 4 * LANES)
    places = [
        at(at(y, y_row, row), bytes_of_vector, column) for row in range(ROWS) for column in range(columns)
    ]
    sums = []
    for place in places:
        start = _load(b, _FLOATS, place) if onto else _constant(_FLOATS, 0.0)
        sums.append(cgutils.alloca_once_value(b, start))
    with cgutils.for_range(b, steps) as loop:
        x_now, a_now = b.add(x, b.mul(loop.index, x_step)), b.add(a, b.mul(loop.index, a_step))
        vectors = [_load(b, _FLOATS, at(x_now, bytes_of_vector, column)) for column in range(columns)]
        for row in range(ROWS):
            factor = _fill(b, _load(b, _F32, at(a_now, a_row, row)))
            for column, vector in enumerate(vectors):
                number = sums[row * columns + column]
                b.store(_multiply_add(b, factor, vector, b.load(number)), number)
    for place, number in zip(places, sums, strict=True):
        _store(b, b.load(number), place)


_PRODUCT = (_int,) * 8


@_instructions(_nothing, *_PRODUCT)
def product_two(
    b: Any, a: Any, a_row: Any, a_step: Any, x: Any, x_step: Any, steps: Any, y: Any, y_row: Any
) -> None:
    """Y (ROWS, 2 * LANES) = A (ROWS, steps) X (steps, 2 * LANES)."""
    _product(b, 2, False, a, a_row, a_step, x, x_step, steps, y, y_row)


@_instructions(_nothing, *_PRODUCT)
def product_one(
    b: Any, a: Any, a_row: Any, a_step: Any, x: Any, x_step: Any, steps: Any, y: Any, y_row: Any
) -> None:
    """Y (ROWS, LANES) = A (ROWS, steps) X (steps, LANES)."""
    _product(b, 1, False, a, a_row, a_step, x, x_step, steps, y, y_row)


@_instructions(_nothing, *_PRODUCT)
def add_product_two(
    b: Any, a: Any, a_row: Any, a_step: Any, x: Any, x_step: Any, steps: Any, y: Any, y_row: Any
) -> None:
    """Y (ROWS, 2 * LANES) += A (ROWS, steps) X (steps, 2 * LANES)."""
    _product(b, 2, True, a, a_row, a_step, x, x_step, steps, y, y_row)


@_instructions(_nothing, *_PRODUCT)
def add_product_one(
    b: Any, a: Any, a_row: Any, a_step: Any, x: Any, x_step: Any, steps: Any, y: Any, y_row: Any
) -> None:
    """Y (ROWS, LANES) += A (ROWS, steps) X (steps, LANES)."""
    _product(b, 1, True, a, a_row, a_step, x, x_step, steps, y, y_row)


@_instructions(_int, _int)
def load_long(b: Any, address: Any) -> Any:
    """The int64 of an address."""
    return _load(b, _I64, address)


@_instructions(_nothing, _int, _int, _int)
def copy(b: Any, target: Any, source: Any, count: Any) -> None:
    """Copy so many bytes."""
    pointer = _I8.as_pointer()
    cgutils.raw_memcpy(b, b.inttoptr(target, pointer), b.inttoptr(source, pointer), count, 1)
