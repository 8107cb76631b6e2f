"""Rows of the paged KV cache, read by the compiled functions of a CPU; `w` is the work as of `cpu_threads`."""

# numba gives functions their types; to it, addresses are integers.
# mypy: disable-error-code="untyped-decorator, no-any-return, assignment"

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from mtgr.kernels.paged import TIME_LANES
from mtgr.kernels.simd import (
    LANES,
    fill,
    load,
    load_bfloat16,
    load_float16,
    load_int,
    load_one,
    load_one_bfloat16,
    load_one_float16,
    multiply,
    prefetch,
    put,
    put_int,
    put_one,
)

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2  # formats of a cache

KEYS: Final = 64
"""Keys of a block, a multiple of ROWS."""

FEW: Final = 4
"""Queries of a tile up to which keys are multiplied as rows."""

VECTOR: Final = 4 * LANES
"""Bytes of a vector."""

LINE: Final = 64
"""Bytes that a processor reads at once."""

AHEAD: Final = 2
"""Blocks of the cache that are asked for before they are read: they lie scattered, and no processor guesses where."""

compiled = numba.njit(error_model="numpy", nogil=True)


@compiled
def rounded_up(number: int, to: int) -> int:
    """The next multiple."""
    return (number + to - 1) // to * to


@compiled
def copy_row(source: int, numbers: int, form: int, target: int) -> None:
    """Numbers of a cache's format to float32."""
    whole = numbers // LANES
    if form == FLOAT32:
        for i in range(whole):
            put(load(source + VECTOR * i), target + VECTOR * i)
        for i in range(whole * LANES, numbers):
            put_one(load_one(source + 4 * i), target + 4 * i)
    elif form == BFLOAT16:
        for i in range(whole):
            put(load_bfloat16(source + 2 * LANES * i), target + VECTOR * i)
        for i in range(whole * LANES, numbers):
            put_one(load_one_bfloat16(source + 2 * i), target + 4 * i)
    else:
        for i in range(whole):
            put(load_float16(source + 2 * LANES * i), target + VECTOR * i)
        for i in range(whole * LANES, numbers):
            put_one(load_one_float16(source + 2 * i), target + 4 * i)


@compiled
def read_time(source: int, form: int, target: int) -> None:
    """The bytes of a time, lowest first, to one int32."""
    seconds = 0
    for byte in range(TIME_LANES):
        if form == FLOAT32:
            lane = load_one(source + 4 * byte)
        elif form == BFLOAT16:
            lane = load_one_bfloat16(source + 2 * byte)
        else:
            lane = load_one_float16(source + 2 * byte)
        seconds += np.int64(lane) << (8 * byte)
    put_int(seconds, target)


@compiled
def cache_row(w: Any, table: int, head: int, key: int) -> int:
    """Where a key of the request with this block table lies, and after it its value."""
    block = load_int(table + 4 * (key // w.block_size))
    return w.cache + block * w.cache_block + head * w.cache_head + (key % w.block_size) * w.cache_row


@compiled
def gather(w: Any, table: int, head: int, first: int, count: int, seen: int, keys: int, values: int) -> None:
    """Keys and values to float32 rows of whole vectors."""
    key_row, value_row = 4 * rounded_up(w.d_qk, LANES), 4 * rounded_up(w.d_v, LANES)
    value_at = (w.d_qk + (TIME_LANES if w.by_time else 0)) * w.number
    done = 0
    while done < count:
        row = cache_row(w, table, head, first + done)
        ahead = cache_row(w, table, head, min(first + done + AHEAD * w.block_size, seen - 1))
        here = min(count - done, w.block_size - (first + done) % w.block_size)
        for line in range(ahead, ahead + here * w.cache_row, LINE):
            prefetch(line)
        for i in range(done, done + here):
            copy_row(row, w.d_qk, w.format, keys + i * key_row)
            copy_row(row + value_at, w.d_v, w.format, values + i * value_row)
            row += w.cache_row
        done += here


@compiled
def read_times(w: Any, table: int, first: int, count: int, times: int) -> None:
    """The times of keys, as int32."""
    for i in range(count):
        read_time(cache_row(w, table, 0, first + i) + w.d_qk * w.number, w.format, times + 4 * i)


@compiled
def position_bias(w: Any, head: int, distance: int, first: int, count: int, line: int) -> None:
    """Those of the distances from `distance` up."""
    table = w.by_position + 4 * head * w.distances
    for i in range(first, count):
        put_one(load_one(table + 4 * min(max(distance + i, 0), w.distances - 1)), line + 4 * i)


@compiled
def write_row(w: Any, row: int, target: int) -> None:
    """What a query has made of the values, to the output."""
    whole = w.d_v // LANES
    for i in range(whole):
        put(multiply(load(row + VECTOR * i), fill(w.normalizer)), target + VECTOR * i)
    for i in range(whole * LANES, w.d_v):
        put_one(load_one(row + 4 * i) * w.normalizer, target + 4 * i)
