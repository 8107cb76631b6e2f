"""SIMD vectors for functions that numba compiles: what LLVM's vectoriser would have to find out is said outright.

A vector holds LANES numbers, as many as a register of the processor. Addresses are integers, in bytes, and nothing
checks them. All of this is machine code for functions under numba; none of it can be called from Python.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic, models, register_model


def _know_own_attributes() -> None:
    """Let llvmlite's library say that it has no attributes of its own, where it would say that this is a C function.

    A CPU worker of vLLM asks everything in every module for its attributes, and would fail at what it is told.
    """
    library = llvm.ffi.lib
    if not isinstance(getattr(library, "__dict__", {}), dict):
        library._fntab["__dict__"] = {}


_know_own_attributes()


def _processor_features() -> set[str]:
    """What numba compiles for: this processor, unless the environment names another."""
    if config.CPU_NAME:
        return {name[1:] for name in (config.CPU_FEATURES or "").split(",") if name.startswith("+")}
    return {name for name, there in llvm.get_host_cpu_features().items() if there}


_FEATURES: Final = _processor_features()
AVX512: Final = "avx512f" in _FEATURES

LANES: Final = 16 if AVX512 else 8 if "avx" in _FEATURES else 4
"""Numbers of a vector."""

ROWS: Final = 8 if AVX512 else 4
"""Rows of a matrix product made at once: with two vectors for each they fill the registers."""

F32, I64, I32, I16, I8 = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
_FUSED: Final = ("contract",)  # a product and a sum may be one instruction


class _Vector(types.Type):  # type: ignore[misc]
    def __init__(self, name: str, representation: ir.VectorType) -> None:
        super().__init__(name=name)
        self.representation = representation


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, vector.representation)


# numba's types: vectors, numbers and addresses
floats: Final = _Vector(f"float32x{LANES}", FLOATS)
ints: Final = _Vector(f"int32x{LANES}", INTS)
whole, real, nothing = types.int64, types.float32, types.void


def instructions(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function for numba of one that emits LLVM's instructions, with these types."""

    def wrap(emit: Callable[..., Any]) -> Any:
        def code(context: Any, builder: Any, _: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is nothing else value

        def typing(_: Any, *__: Any) -> Any:
            return result(*arguments), code

        typing.__name__, typing.__doc__ = emit.__name__, emit.__doc__
        typing.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]
        return intrinsic(typing)

    return wrap


def constant(vector: ir.VectorType, number: float) -> Any:
    """A vector that is known now."""
    return ir.Constant(vector, [number] * LANES)


def filled(b: Any, number: Any) -> Any:
    """A number in every lane."""
    vector = ir.VectorType(number.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(undefined, number, ir.Constant(I32, 0))
    return b.shuffle_vector(first, undefined, constant(INTS, 0))


def loaded(b: Any, kind: Any, address: Any) -> Any:
    """What lies at an address, aligned or not."""
    return b.load(b.inttoptr(address, kind.as_pointer()), align=1)


def stored(b: Any, value: Any, address: Any) -> None:
    """Write to an address, aligned or not."""
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)


def called(b: Any, name: str, result: Any, *arguments: Any) -> Any:
    """What a function of LLVM gives."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), arguments)


def _lanes() -> Any:
    return ir.Constant(INTS, list(range(LANES)))


def fused(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, in one instruction where there is one."""
    return b.fadd(b.fmul(x, y, flags=_FUSED), z, flags=_FUSED)


@instructions(floats, whole)
def load(b: Any, address: Any) -> Any:
    """LANES float32 of an address."""
    return loaded(b, FLOATS, address)


@instructions(nothing, floats, whole)
def put(b: Any, vector: Any, address: Any) -> None:
    """Write LANES float32 to an address."""
    stored(b, vector, address)


@instructions(real, whole)
def load_one(b: Any, address: Any) -> Any:
    """The float32 of an address."""
    return loaded(b, F32, address)


@instructions(nothing, real, whole)
def put_one(b: Any, number: Any, address: Any) -> None:
    """Write a float32 to an address."""
    stored(b, number, address)


@instructions(whole, whole)
def load_int(b: Any, address: Any) -> Any:
    """The int32 of an address."""
    return b.sext(loaded(b, I32, address), I64)


@instructions(nothing, whole, whole)
def put_int(b: Any, number: Any, address: Any) -> None:
    """Write an int32 to an address."""
    stored(b, b.trunc(number, I32), address)


@instructions(ints, whole)
def load_ints(b: Any, address: Any) -> Any:
    """LANES int32 of an address."""
    return loaded(b, INTS, address)


@instructions(ints, whole)
def load_bytes(b: Any, address: Any) -> Any:
    """LANES bytes of an address."""
    return b.zext(loaded(b, ir.VectorType(I8, LANES), address), INTS)


@instructions(nothing, ints, whole)
def put_bytes(b: Any, vector: Any, address: Any) -> None:
    """Write the lowest byte of each lane to an address."""
    stored(b, b.trunc(vector, ir.VectorType(I8, LANES)), address)


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
    absolute = b.select(finite, b.bitcast(rebiased, integers), b.or_(magnitude, constant(0x7F80 << 16)))
    sign = b.shl(b.and_(bits, constant(0x8000)), constant(16))
    return b.bitcast(b.or_(absolute, sign), numbers)


def _each(kind: Any, number: float) -> Any:
    return [number] * LANES if isinstance(kind, ir.VectorType) else number


@instructions(floats, whole)
def load_bfloat16(b: Any, address: Any) -> Any:
    """LANES bfloat16 of an address."""
    return _of_bfloat16(b, loaded(b, ir.VectorType(I16, LANES), address), INTS, FLOATS)


@instructions(real, whole)
def load_one_bfloat16(b: Any, address: Any) -> Any:
    """The bfloat16 of an address."""
    return _of_bfloat16(b, loaded(b, I16, address), I32, F32)


@instructions(floats, whole)
def load_float16(b: Any, address: Any) -> Any:
    """LANES float16 of an address."""
    return _of_float16(b, loaded(b, ir.VectorType(I16, LANES), address), INTS, FLOATS)


@instructions(real, whole)
def load_one_float16(b: Any, address: Any) -> Any:
    """The float16 of an address."""
    return _of_float16(b, loaded(b, I16, address), I32, F32)


@instructions(floats, real)
def fill(b: Any, number: Any) -> Any:
    """A number in every lane."""
    return filled(b, number)


@instructions(ints, whole)
def fill_int(b: Any, number: Any) -> Any:
    """The lower 32 bits of a number in every lane."""
    return filled(b, b.trunc(number, I32))


@instructions(floats, floats, floats)
def add(b: Any, x: Any, y: Any) -> Any:
    """x + y."""
    return b.fadd(x, y, flags=_FUSED)


@instructions(floats, floats, floats)
def multiply(b: Any, x: Any, y: Any) -> Any:
    """x * y."""
    return b.fmul(x, y, flags=_FUSED)


@instructions(floats, floats, floats, floats)
def multiply_add(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z."""
    return fused(b, x, y, z)


@instructions(real, floats)
def total(b: Any, vector: Any) -> Any:
    """The sum of the lanes."""
    width = LANES
    while width > 1:
        width //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        half = ir.VectorType(I32, width)
        low = b.shuffle_vector(vector, undefined, ir.Constant(half, list(range(width))))
        high = b.shuffle_vector(vector, undefined, ir.Constant(half, list(range(width, 2 * width))))
        vector = b.fadd(low, high, flags=_FUSED)
    return b.extract_element(vector, ir.Constant(I32, 0))


@instructions(floats, floats, whole)
def keep_from(b: Any, vector: Any, first: Any) -> Any:
    """0 in the lanes before the first."""
    kept = b.icmp_signed(">=", _lanes(), filled(b, b.trunc(first, I32)))
    return b.select(kept, vector, constant(FLOATS, 0.0))


@instructions(floats, floats)
def reverse(b: Any, vector: Any) -> Any:
    """The lanes from last to first."""
    order = ir.Constant(INTS, list(range(LANES - 1, -1, -1)))
    return b.shuffle_vector(vector, ir.Constant(FLOATS, ir.Undefined), order)


@instructions(whole, whole)
def take_next(b: Any, address: Any) -> Any:
    """The int64 of an address, which is one more for the next thread."""
    return b.atomic_rmw("add", b.inttoptr(address, I64.as_pointer()), ir.Constant(I64, 1), "monotonic")


@instructions(whole, whole)
def load_long(b: Any, address: Any) -> Any:
    """The int64 of an address."""
    return loaded(b, I64, address)


@instructions(nothing, whole, whole, whole)
def copy(b: Any, target: Any, source: Any, count: Any) -> None:
    """Copy so many bytes."""
    pointer = I8.as_pointer()
    cgutils.raw_memcpy(b, b.inttoptr(target, pointer), b.inttoptr(source, pointer), count, 1)


@instructions(nothing, whole)
def prefetch(b: Any, address: Any) -> None:
    """Ask for the memory of an address before it is read; any address will do."""
    to_read, to_keep, of_data = (ir.Constant(I32, number) for number in (0, 3, 1))
    pointer = b.inttoptr(address, I8.as_pointer())
    called(b, "llvm.prefetch.p0", ir.VoidType(), pointer, to_read, to_keep, of_data)
