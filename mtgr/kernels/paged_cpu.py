"""SiLU attention over the paged KV cache on a CPU, compiled for this processor by numba.

A thread takes a tile of queries and walks over the keys that it sees, a block of them at a time:

    scores (keys, queries) = K Q^T      Q is transposed once a tile, so that queries lie side by side
    weights = silu(scores + bias)       in registers: neither bias nor mask is ever a matrix
    output (queries, d_v) += weights^T V

With keys as rows, keys and values are read as they lie in the cache. All of it stays in the core's own memory, and
what lies above the diagonal is skipped by vectors. A tile of few queries would leave most lanes empty: there a vector
holds a part of one key.
"""

# numba gives functions their types, and addresses are integers to it.
# mypy: disable-error-code="untyped-decorator, no-any-return, assignment"

from __future__ import annotations

import functools
from typing import Any, Final

import numba
import numpy as np
import torch
from numba import types
from torch import Tensor

from mtgr.kernels import openmp
from mtgr.kernels.paged import TIME_LANES, BiasTables, PagedStep
from mtgr.kernels.simd import (
    LANES,
    ROWS,
    add,
    add_product_one,
    add_product_two,
    copy,
    fill,
    fill_int,
    keep_from,
    load,
    load_bfloat16,
    load_bytes,
    load_float16,
    load_int,
    load_ints,
    load_long,
    load_one,
    load_one_bfloat16,
    load_one_float16,
    lookup,
    multiply,
    multiply_add,
    product_one,
    product_two,
    put,
    put_bytes,
    put_int,
    put_one,
    reverse,
    silu,
    take_next,
    time_buckets,
    total,
)
from mtgr.model.bias import THRESHOLDS, TIME_BUCKETS

TILE_QUERIES: Final = 64
"""Queries of a tile: longer ones crowd the core's memory, shorter ones read the cache more often."""

_KEYS: Final = 64  # of a block, a multiple of ROWS
_FEW: Final = 2  # queries of a tile up to which keys are taken by rows
_VECTOR: Final = 4 * LANES  # bytes

_FORMATS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_NUMBERS: Final = (
    # addresses, and strides in bytes
    "query", "query_token", "query_head", "output", "output_token", "output_head",
    "cache", "cache_block", "cache_head", "cache_row", "block_table", "block_table_row",
    "query_starts", "lengths", "tiles", "by_position", "by_time", "octaves", "turn", "scratch", "scratch_part",
    # sizes
    "format", "number", "heads", "d_qk", "d_v", "block_size", "distances", "tile_count", "tile_queries", "head_groups",
    "columns", "longest",
)  # fmt: skip
_Work: Final = np.dtype(
    [*((name, np.int64) for name in _NUMBERS), ("scale", "f4"), ("normalizer", "f4")], align=True
)
_Storing: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "key", "key_token", "key_head", "value", "value_token", "value_head",
            "cache", "cache_block", "cache_head", "cache_row", "slots", "turn",
            "tokens", "heads", "key_bytes", "value_bytes", "block_size",
        )
    ],
    align=True,
)  # fmt: skip
_TOKENS_AT_ONCE: Final = 64  # that a thread stores

_compiled = numba.njit(error_model="numpy", nogil=True)


@_compiled
def _up(number: int, to: int) -> int:
    return (number + to - 1) // to * to


@_compiled
def _copy_row(source: int, numbers: int, form: int, target: int) -> None:
    whole = numbers // LANES
    if form == 0:
        for i in range(whole):
            put(load(source + _VECTOR * i), target + _VECTOR * i)
        for i in range(whole * LANES, numbers):
            put_one(load_one(source + 4 * i), target + 4 * i)
    elif form == 1:
        for i in range(whole):
            put(load_bfloat16(source + 2 * LANES * i), target + _VECTOR * i)
        for i in range(whole * LANES, numbers):
            put_one(load_one_bfloat16(source + 2 * i), target + 4 * i)
    else:
        for i in range(whole):
            put(load_float16(source + 2 * LANES * i), target + _VECTOR * i)
        for i in range(whole * LANES, numbers):
            put_one(load_one_float16(source + 2 * i), target + 4 * i)


@_compiled
def _read_time(source: int, form: int, target: int) -> None:
    seconds = 0
    for byte in range(TIME_LANES):
        if form == 0:
            lane = load_one(source + 4 * byte)
        elif form == 1:
            lane = load_one_bfloat16(source + 2 * byte)
        else:
            lane = load_one_float16(source + 2 * byte)
        seconds += np.int64(lane) << (8 * byte)
    put_int(seconds, target)


@_compiled
def _cache_row(w: Any, table: int, head: int, key: int) -> int:
    block = load_int(table + 4 * (key // w.block_size))
    return w.cache + block * w.cache_block + head * w.cache_head + (key % w.block_size) * w.cache_row


@_compiled
def _gather(w: Any, table: int, head: int, first: int, count: int, keys: int, values: int) -> None:
    """Keys and values to float32 rows of whole vectors."""
    key_row, value_row = 4 * _up(w.d_qk, LANES), 4 * _up(w.d_v, LANES)
    value_at = (w.d_qk + (TIME_LANES if w.by_time else 0)) * w.number
    done = 0
    while done < count:
        row = _cache_row(w, table, head, first + done)
        here = min(count - done, w.block_size - (first + done) % w.block_size)
        for i in range(done, done + here):
            _copy_row(row, w.d_qk, w.format, keys + i * key_row)
            _copy_row(row + value_at, w.d_v, w.format, values + i * value_row)
            row += w.cache_row
        done += here


@_compiled
def _key_times(w: Any, table: int, first: int, count: int, times: int) -> None:
    for i in range(count):
        _read_time(_cache_row(w, table, 0, first + i) + w.d_qk * w.number, w.format, times + 4 * i)


@_compiled
def _position_bias(w: Any, head: int, distance: int, first: int, count: int, line: int) -> None:
    """Those of the distances from `distance` up."""
    table = w.by_position + 4 * head * w.distances
    for i in range(first, count):
        put_one(load_one(table + 4 * min(max(distance + i, 0), w.distances - 1)), line + 4 * i)


@_compiled
def _many(
    w: Any,
    table: int,
    query: int,
    output: int,
    position: int,
    n: int,
    head_from: int,
    head_to: int,
    part: int,
) -> None:
    """A tile of n queries, the first at `position`; query, output: addresses of their rows; part: the thread's own."""
    key_row, value_row, score_row = 4 * _up(w.d_qk, LANES), 4 * _up(w.d_v, LANES), 4 * w.columns * LANES
    panel = 2 * _VECTOR * w.d_qk  # queries by twice LANES
    keys = part
    values = keys + _KEYS * key_row
    queries = values + _KEYS * value_row
    scores = queries + panel * ((w.columns + 1) // 2)
    mixed = scores + _KEYS * score_row
    line = mixed + w.columns * LANES * value_row
    times = line + _up(4 * (_KEYS + w.columns * LANES), 64)
    key_times = times + score_row
    buckets = key_times + 4 * _KEYS

    seen = position + n
    columns = (n + LANES - 1) // LANES
    if w.by_time:
        for i in range(columns * LANES):
            _read_time(query + min(i, n - 1) * w.query_token + 4 * w.d_qk, 0, times + 4 * i)
    for head in range(head_from, head_to):
        for i in range(columns * LANES):
            place = queries + i // (2 * LANES) * panel + 4 * (i % (2 * LANES))
            row = query + min(i, n - 1) * w.query_token + head * w.query_head
            for t in range(w.d_qk):
                put_one(load_one(row + 4 * t) * w.scale, place + 2 * _VECTOR * t)
        for at in range(mixed, mixed + _up(n, ROWS) * value_row, _VECTOR):
            put(fill(0.0), at)
        for first in range(0, seen, _KEYS):
            count = min(_KEYS, seen - first)
            _gather(w, table, head, first, count, keys, values)
            if w.by_time and head == head_from:
                _key_times(w, table, first, count, key_times)
                for k in range(count):
                    key_time = fill_int(load_int(key_times + 4 * k))
                    for c in range(max(0, first + k - position) // LANES, columns):
                        bucket = time_buckets(load_ints(times + _VECTOR * c), key_time, w.octaves)
                        put_bytes(bucket, buckets + ((first + k) * w.columns + c) * LANES)
            if w.by_position:
                distance = position - first - (_KEYS - 1)
                _position_bias(w, head, distance, 0, _KEYS + columns * LANES, line)
            for k in range(0, count, ROWS):
                c = max(0, first + k - position) // LANES  # the first queries that see one of these keys
                a, y = keys + k * key_row, scores + k * score_row
                if c % 2 == 1 and c < columns:
                    x = queries + c // 2 * panel + _VECTOR
                    product_one(a, key_row, 4, x, 2 * _VECTOR, w.d_qk, y + _VECTOR * c, score_row)
                    c += 1
                while c + 1 < columns:
                    x = queries + c // 2 * panel
                    product_two(a, key_row, 4, x, 2 * _VECTOR, w.d_qk, y + _VECTOR * c, score_row)
                    c += 2
                if c < columns:
                    x = queries + c // 2 * panel
                    product_one(a, key_row, 4, x, 2 * _VECTOR, w.d_qk, y + _VECTOR * c, score_row)
            for k in range(count):
                blind = first + k - position  # queries that come before this key
                for c in range(max(0, blind) // LANES, columns):
                    place = scores + k * score_row + _VECTOR * c
                    score = load(place)
                    if w.by_position:
                        score = add(score, load(line + 4 * (_KEYS - 1 - k + c * LANES)))
                    if w.by_time:
                        bucket = load_bytes(buckets + ((first + k) * w.columns + c) * LANES)
                        score = add(score, lookup(w.by_time + 4 * TIME_BUCKETS * head, bucket))
                    weight = silu(score)
                    if c * LANES < blind:
                        weight = keep_from(weight, blind - c * LANES)
                    put(weight, place)
            for i in range(0, n, ROWS):
                steps = min(count, position + i + ROWS - first)
                if steps <= 0:
                    continue
                a, y = scores + 4 * i, mixed + i * value_row
                c = 0
                while c + _VECTOR < value_row:
                    add_product_two(a, 4, score_row, values + c, value_row, steps, y + c, value_row)
                    c += 2 * _VECTOR
                if c < value_row:
                    add_product_one(a, 4, score_row, values + c, value_row, steps, y + c, value_row)
        for i in range(n):
            _write(w, mixed + i * value_row, output + i * w.output_token + head * w.output_head)


@_compiled
def _write(w: Any, row: int, target: int) -> None:
    whole = w.d_v // LANES
    for i in range(whole):
        put(multiply(load(row + _VECTOR * i), fill(w.normalizer)), target + _VECTOR * i)
    for i in range(whole * LANES, w.d_v):
        put_one(load_one(row + 4 * i) * w.normalizer, target + 4 * i)


@_compiled
def _few(
    w: Any,
    table: int,
    query: int,
    output: int,
    position: int,
    n: int,
    head_from: int,
    head_to: int,
    part: int,
) -> None:
    """As `_many`, a query at a time."""
    key_row, value_row = 4 * _up(w.d_qk, LANES), 4 * _up(w.d_v, LANES)
    keys = part
    values = keys + _KEYS * key_row
    queries = values + _KEYS * value_row
    mixed = queries + _FEW * key_row
    scores = mixed + _FEW * value_row
    line = scores + 4 * _KEYS
    times = line + 4 * _KEYS
    key_times = times + _VECTOR
    buckets = key_times + 4 * _KEYS

    value_at = (w.d_qk + (TIME_LANES if w.by_time else 0)) * w.number
    in_place = w.format == 0 and w.d_qk % LANES == 0 and w.d_v % LANES == 0
    seen = position + n
    if w.by_time:
        for i in range(n):
            _read_time(query + i * w.query_token + 4 * w.d_qk, 0, times + 4 * i)
    for head in range(head_from, head_to):
        for i in range(n):
            row = query + i * w.query_token + head * w.query_head
            for t in range(w.d_qk):
                put_one(load_one(row + 4 * t) * w.scale, queries + i * key_row + 4 * t)
            for t in range(w.d_qk, key_row // 4):
                put_one(0.0, queries + i * key_row + 4 * t)
        for at in range(mixed, mixed + n * value_row, _VECTOR):
            put(fill(0.0), at)
        for first in range(0, seen, _KEYS):
            count = min(_KEYS, seen - first)
            if not in_place:
                _gather(w, table, head, first, count, keys, values)
            if w.by_time and head == head_from:
                _key_times(w, table, first, count, key_times)
            for i in range(n):
                sees = min(count, position + i + 1 - first)
                done = 0
                while done < sees:
                    if in_place:
                        here = min(sees - done, w.block_size - (first + done) % w.block_size)
                        row = _cache_row(w, table, head, first + done)
                        _dots(queries + i * key_row, key_row, row, w.cache_row, here, scores + 4 * done)
                    else:
                        here = sees
                        _dots(queries + i * key_row, key_row, keys, key_row, here, scores)
                    done += here
                _weigh(
                    w,
                    head,
                    position + i - first,
                    sees,
                    scores,
                    line,
                    key_times,
                    times + 4 * i,
                    buckets + (i * w.longest + first),
                    head == head_from,
                )
                done = 0
                while done < sees:
                    if in_place:
                        here = min(sees - done, w.block_size - (first + done) % w.block_size)
                        row = _cache_row(w, table, head, first + done) + value_at
                        _mix(scores + 4 * done, row, w.cache_row, here, mixed + i * value_row, value_row)
                    else:
                        here = sees
                        _mix(scores, values, value_row, here, mixed + i * value_row, value_row)
                    done += here
        for i in range(n):
            _write(w, mixed + i * value_row, output + i * w.output_token + head * w.output_head)


@_compiled
def _weigh(
    w: Any,
    head: int,
    distance: int,
    count: int,
    scores: int,
    line: int,
    key_times: int,
    time: int,
    buckets: int,
    new: bool,
) -> None:
    """silu(scores + bias) of a query's keys, the first of which lies `distance` back."""
    for k in range(0, count, LANES):
        score = load(scores + 4 * k)
        if w.by_position:
            nearest = distance - k - (LANES - 1)
            if nearest < 0 or distance - k >= w.distances:
                _position_bias(w, head, nearest, 0, LANES, line)
                score = add(score, reverse(load(line)))
            else:
                score = add(score, reverse(load(w.by_position + 4 * (head * w.distances + nearest))))
        if w.by_time:
            if new:
                query_time = fill_int(load_int(time))
                put_bytes(time_buckets(query_time, load_ints(key_times + 4 * k), w.octaves), buckets + k)
            score = add(score, lookup(w.by_time + 4 * TIME_BUCKETS * head, load_bytes(buckets + k)))
        put(silu(score), scores + 4 * k)


@_compiled
def _dots(query: int, width: int, row: int, row_stride: int, count: int, scores: int) -> None:
    k = 0
    while k + 4 <= count:
        s0 = s1 = s2 = s3 = fill(0.0)
        for t in range(0, width, _VECTOR):
            q = load(query + t)
            s0 = multiply_add(q, load(row + t), s0)
            s1 = multiply_add(q, load(row + row_stride + t), s1)
            s2 = multiply_add(q, load(row + 2 * row_stride + t), s2)
            s3 = multiply_add(q, load(row + 3 * row_stride + t), s3)
        put_one(total(s0), scores + 4 * k)
        put_one(total(s1), scores + 4 * k + 4)
        put_one(total(s2), scores + 4 * k + 8)
        put_one(total(s3), scores + 4 * k + 12)
        row += 4 * row_stride
        k += 4
    while k < count:
        s0 = fill(0.0)
        for t in range(0, width, _VECTOR):
            s0 = multiply_add(load(query + t), load(row + t), s0)
        put_one(total(s0), scores + 4 * k)
        row += row_stride
        k += 1


@_compiled
def _mix(weights: int, row: int, row_stride: int, count: int, mixed: int, width: int) -> None:
    t = 0
    while t + 4 * _VECTOR <= width:
        m0, m1 = load(mixed + t), load(mixed + t + _VECTOR)
        m2, m3 = load(mixed + t + 2 * _VECTOR), load(mixed + t + 3 * _VECTOR)
        at = row + t
        for k in range(count):
            weight = fill(load_one(weights + 4 * k))
            m0 = multiply_add(weight, load(at), m0)
            m1 = multiply_add(weight, load(at + _VECTOR), m1)
            m2 = multiply_add(weight, load(at + 2 * _VECTOR), m2)
            m3 = multiply_add(weight, load(at + 3 * _VECTOR), m3)
            at += row_stride
        put(m0, mixed + t)
        put(m1, mixed + t + _VECTOR)
        put(m2, mixed + t + 2 * _VECTOR)
        put(m3, mixed + t + 3 * _VECTOR)
        t += 4 * _VECTOR
    while t < width:
        m0 = load(mixed + t)
        at = row + t
        for k in range(count):
            m0 = multiply_add(fill(load_one(weights + 4 * k)), load(at), m0)
            at += row_stride
        put(m0, mixed + t)
        t += _VECTOR


def _attend_thread(works: Any) -> None:
    """What each thread does: one tile after another, until none is left."""
    w = numba.carray(works, 1)[0]
    part = w.scratch + take_next(w.turn) * w.scratch_part
    # rows are read to whole vectors, past what is ever written to them
    for at in range(part, part + 4 * _KEYS * (_up(w.d_qk, LANES) + _up(w.d_v, LANES)), _VECTOR):
        put(fill(0.0), at)
    item = take_next(w.turn + 8)
    while item < w.tile_count * w.head_groups:
        tile, group = item // w.head_groups, item % w.head_groups
        item = take_next(w.turn + 8)
        request, first = load_int(w.tiles + 8 * tile), load_int(w.tiles + 8 * tile + 4)
        if request < 0:
            continue
        head_from, head_to = (0, w.heads) if w.head_groups == 1 else (group, group + 1)
        start = load_int(w.query_starts + 4 * request)
        new = load_int(w.query_starts + 4 * request + 4) - start
        position = load_int(w.lengths + 4 * request) - new + first
        n = min(new - first, w.tile_queries)
        table = w.block_table + request * w.block_table_row
        query, output = w.query + (start + first) * w.query_token, w.output + (start + first) * w.output_token
        if n <= _FEW:
            _few(w, table, query, output, position, n, head_from, head_to, part)
        else:
            _many(w, table, query, output, position, n, head_from, head_to, part)


def _store_thread(works: Any) -> None:
    w = numba.carray(works, 1)[0]
    first = take_next(w.turn) * _TOKENS_AT_ONCE
    while first < w.tokens:
        for token in range(first, min(first + _TOKENS_AT_ONCE, w.tokens)):
            slot = load_long(w.slots + 8 * token)
            if slot < 0:
                continue
            block, row = slot // w.block_size, slot % w.block_size
            target = w.cache + block * w.cache_block + row * w.cache_row
            for head in range(w.heads):
                copy(target, w.key + token * w.key_token + head * w.key_head, w.key_bytes)
                copy(
                    target + w.key_bytes, w.value + token * w.value_token + head * w.value_head, w.value_bytes
                )
                target += w.cache_head
        first = take_next(w.turn) * _TOKENS_AT_ONCE


@functools.cache
def _attend_address() -> int:
    signature = types.void(types.CPointer(numba.from_dtype(_Work)))
    return int(numba.cfunc(signature, cache=True, error_model="numpy")(_attend_thread).address)


@functools.cache
def _store_address() -> int:
    signature = types.void(types.CPointer(numba.from_dtype(_Storing)))
    return int(numba.cfunc(signature, cache=True, error_model="numpy")(_store_thread).address)


def warm_up() -> None:
    """Compile what is not in numba's cache on the disk yet: some seconds, which no step should wait for."""
    _attend_address()
    _store_address()


def attend(
    query: Tensor,
    kv_cache: Tensor,
    output: Tensor,
    step: PagedStep,
    *,
    scale: float,
    normalizer: float,
    bias: BiasTables | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Write silu(Q K^T * scale + bias) * normalizer, causally masked, times V into the output.

    query: (tokens, heads, d_qk + lanes); kv_cache: (blocks, heads, block_size, d_qk + lanes + d_v), with lanes where
    the bias is by time; output: (tokens, heads, d_v). `mtgr.kernels.silu_attention` has the definition.
    """
    _, heads, block_size, width = kv_cache.shape
    by_position = None if bias is None or bias.by_position is None else bias.by_position.float().contiguous()
    by_time = None if bias is None or bias.by_time is None else bias.by_time.float().contiguous()
    queries = query.float()
    mixed = output if output.dtype == torch.float32 else torch.empty_like(output, dtype=torch.float32)
    d_qk = query.shape[-1] - (0 if by_time is None else TIME_LANES)
    d_v = width - query.shape[-1]
    columns = -(-step.tile_queries // LANES)
    longest = -(-step.block_table.shape[1] * block_size // LANES) * LANES
    threads = torch.get_num_threads()
    tiles = len(step.tiles)
    if not tiles:
        return
    # buckets of time are the same for all heads, so these stay together while there is enough else to share
    groups = 1 if by_time is not None and tiles >= 4 * threads else heads
    threads = min(threads, tiles * groups)
    rows, values = -(-d_qk // LANES) * LANES, -(-d_v // LANES) * LANES
    floats = (
        _KEYS * (rows + values)
        + (columns + 1) * LANES * d_qk
        + columns * LANES * (_KEYS + values + 2)
        + 4 * _KEYS
        + _FEW * (rows + values)
        + 64
    )
    part = 4 * floats + (0 if by_time is None else longest * columns * LANES) + 64
    part = -(-part // 64) * 64
    scratch = torch.empty(threads * part + 64, dtype=torch.uint8)
    turn = np.zeros(2, np.int64)
    work = np.zeros(1, _Work)
    record = work[0]
    size = kv_cache.element_size()
    record["query"], record["query_token"], record["query_head"] = _address(queries, 4)
    record["output"], record["output_token"], record["output_head"] = _address(mixed, 4)
    record["cache"], record["cache_block"], record["cache_head"] = _address(kv_cache, size)
    record["cache_row"] = kv_cache.stride(2) * size
    record["block_table"] = step.block_table.data_ptr()
    record["block_table_row"] = step.block_table.stride(0) * 4
    record["query_starts"], record["lengths"] = step.query_starts.data_ptr(), step.lengths.data_ptr()
    record["tiles"] = step.tiles.data_ptr()
    record["by_position"] = 0 if by_position is None else by_position.data_ptr()
    record["by_time"] = 0 if by_time is None else by_time.data_ptr()
    record["octaves"] = _octaves().ctypes.data
    record["turn"] = turn.ctypes.data
    record["scratch"], record["scratch_part"] = -(-scratch.data_ptr() // 64) * 64, part
    record["format"], record["number"] = _FORMATS[kv_cache.dtype], size
    record["heads"], record["d_qk"], record["d_v"], record["block_size"] = heads, d_qk, d_v, block_size
    record["distances"] = 0 if by_position is None else by_position.shape[1]
    record["tile_count"], record["head_groups"], record["columns"] = tiles, groups, columns
    record["tile_queries"], record["longest"] = step.tile_queries, longest
    record["scale"], record["normalizer"] = scale * k_scale, normalizer * v_scale
    openmp.run_on_threads(_attend_address(), work.ctypes.data, threads)
    if mixed is not output:
        output.copy_(mixed)


def _address(tensor: Tensor, size: int) -> tuple[int, int, int]:
    return tensor.data_ptr(), tensor.stride(0) * size, tensor.stride(1) * size


def store(
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    slots: Tensor,
    *,
    timed: bool = False,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Write new keys (tokens, heads, d_qk + lanes) and values (tokens, heads, d_v) to their slots of the cache.

    slots: (tokens,) int64, block * block_size + offset, PADDING for none.
    """
    tokens, (_, heads, block_size, _) = len(slots), kv_cache.shape
    if not tokens:
        return
    key, value = key.to(kv_cache.dtype), value.to(kv_cache.dtype)
    size = kv_cache.element_size()
    turn = np.zeros(1, np.int64)
    work = np.zeros(1, _Storing)
    record = work[0]
    record["key"], record["key_token"], record["key_head"] = _address(key, size)
    record["value"], record["value_token"], record["value_head"] = _address(value, size)
    record["cache"], record["cache_block"], record["cache_head"] = _address(kv_cache, size)
    record["cache_row"] = kv_cache.stride(2) * size
    record["slots"], record["turn"] = slots.data_ptr(), turn.ctypes.data
    record["tokens"], record["heads"], record["block_size"] = tokens, heads, block_size
    record["key_bytes"], record["value_bytes"] = key.shape[-1] * size, value.shape[-1] * size
    threads = min(torch.get_num_threads(), -(-tokens // _TOKENS_AT_ONCE))
    openmp.run_on_threads(_store_address(), work.ctypes.data, threads)


@functools.cache
def _octaves() -> Any:
    """What `simd.time_buckets` reads, (4, 32) int32."""
    table = np.full((4, 32), np.iinfo(np.int32).max, np.int32)
    table[0, 0] = 0  # no gap
    for octave in range(1, 32):
        # float32 rounds some of the gaps just below a power of two up to it
        low = 1 << (octave - 1)
        while np.float32(low - 1) == np.float32(1 << (octave - 1)):
            low -= 1
        below = [threshold for threshold in THRESHOLDS if threshold <= low]
        among = [threshold for threshold in THRESHOLDS if low < threshold < 1 << octave]
        table[:, octave] = [len(below), *among, *[np.iinfo(np.int32).max] * (3 - len(among))]
    return table
