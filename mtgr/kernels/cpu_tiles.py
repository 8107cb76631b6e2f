"""SiLU attention over the paged KV cache, a tile of queries at a time, by functions for numba to compile.

A thread takes a tile of queries and walks over the keys that it sees, a block of them at a time:

    scores (keys, queries) = K Q^T      Q is transposed once a tile, so that queries lie side by side
    weights = silu(scores + bias)       in registers: neither bias nor mask is ever a matrix
    output (queries, d_v) += weights^T V

With keys as rows, keys and values are read as they lie in the cache. All of it stays in the core's own memory, and
what lies above the diagonal is skipped by vectors. A tile of few queries would leave most lanes empty: there a vector
holds a part of one key.
"""

# numba gives functions their types; to it, addresses are integers.
# mypy: disable-error-code="untyped-decorator, no-any-return, assignment"

from __future__ import annotations

from typing import Any

from mtgr.kernels.cpu_rows import (
    AHEAD,
    FEW,
    FLOAT32,
    KEYS,
    LINE,
    VECTOR,
    cache_row,
    compiled,
    gather,
    position_bias,
    read_time,
    read_times,
    rounded_up,
    write_row,
)
from mtgr.kernels.paged import TIME_LANES
from mtgr.kernels.simd import (
    LANES,
    ROWS,
    add,
    fill,
    fill_int,
    keep_from,
    load,
    load_bytes,
    load_int,
    load_ints,
    load_one,
    multiply_add,
    prefetch,
    put,
    put_bytes,
    put_one,
    reverse,
    total,
)
from mtgr.kernels.simd_math import (
    add_product_one,
    add_product_two,
    lookup,
    product_one,
    product_two,
    silu,
    time_buckets,
)
from mtgr.kernels.time_buckets import TIME_BUCKETS

assert TIME_BUCKETS == 64, "as many as `lookup` looks among"


@compiled
def attend_many(
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
    key_row, value_row, score_row = (
        4 * rounded_up(w.d_qk, LANES),
        4 * rounded_up(w.d_v, LANES),
        4 * w.columns * LANES,
    )
    panel = 2 * VECTOR * w.d_qk  # queries by twice LANES
    keys = part
    values = keys + KEYS * key_row
    queries = values + KEYS * value_row
    scores = queries + panel * ((w.columns + 1) // 2)
    mixed = scores + KEYS * score_row
    line = mixed + w.columns * LANES * value_row
    times = line + rounded_up(4 * (KEYS + w.columns * LANES), 64)
    key_times = times + score_row
    buckets = key_times + 4 * KEYS

    seen = position + n
    columns = (n + LANES - 1) // LANES
    if w.by_time:
        for i in range(columns * LANES):
            read_time(query + min(i, n - 1) * w.query_token + 4 * w.d_qk, FLOAT32, times + 4 * i)
    for head in range(head_from, head_to):
        for i in range(columns * LANES):
            place = queries + i // (2 * LANES) * panel + 4 * (i % (2 * LANES))
            row = query + min(i, n - 1) * w.query_token + head * w.query_head
            for t in range(w.d_qk):
                put_one(load_one(row + 4 * t) * w.scale, place + 2 * VECTOR * t)
        for at in range(mixed, mixed + rounded_up(n, ROWS) * value_row, VECTOR):
            put(fill(0.0), at)
        for first in range(0, seen, KEYS):
            count = min(KEYS, seen - first)
            gather(w, table, head, first, count, seen, keys, values)
            if w.by_time and head == head_from:
                read_times(w, table, first, count, key_times)
                for k in range(count):
                    key_time = fill_int(load_int(key_times + 4 * k))
                    for c in range(max(0, first + k - position) // LANES, columns):
                        bucket = time_buckets(load_ints(times + VECTOR * c), key_time, w.cells)
                        put_bytes(bucket, buckets + ((first + k) * w.columns + c) * LANES)
            if w.by_position:
                distance = position - first - (KEYS - 1)
                position_bias(w, head, distance, 0, KEYS + columns * LANES, line)
            for k in range(0, count, ROWS):
                c = max(0, first + k - position) // LANES  # the first queries that see one of these keys
                a, y = keys + k * key_row, scores + k * score_row
                if c % 2 == 1 and c < columns:
                    x = queries + c // 2 * panel + VECTOR
                    product_one(a, key_row, 4, x, 2 * VECTOR, w.d_qk, y + VECTOR * c, score_row)
                    c += 1
                while c + 1 < columns:
                    x = queries + c // 2 * panel
                    product_two(a, key_row, 4, x, 2 * VECTOR, w.d_qk, y + VECTOR * c, score_row)
                    c += 2
                if c < columns:
                    x = queries + c // 2 * panel
                    product_one(a, key_row, 4, x, 2 * VECTOR, w.d_qk, y + VECTOR * c, score_row)
            for k in range(count):
                blind = first + k - position  # queries that come before this key
                for c in range(max(0, blind) // LANES, columns):
                    place = scores + k * score_row + VECTOR * c
                    score = load(place)
                    if w.by_position:
                        score = add(score, load(line + 4 * (KEYS - 1 - k + c * LANES)))
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
                while c + VECTOR < value_row:
                    add_product_two(a, 4, score_row, values + c, value_row, steps, y + c, value_row)
                    c += 2 * VECTOR
                if c < value_row:
                    add_product_one(a, 4, score_row, values + c, value_row, steps, y + c, value_row)
        for i in range(n):
            write_row(w, mixed + i * value_row, output + i * w.output_token + head * w.output_head)


@compiled
def attend_few(
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
    """As `attend_many`, a query at a time."""
    key_row, value_row = 4 * rounded_up(w.d_qk, LANES), 4 * rounded_up(w.d_v, LANES)
    keys = part
    values = keys + KEYS * key_row
    queries = values + KEYS * value_row
    mixed = queries + FEW * key_row
    scores = mixed + FEW * value_row
    line = scores + 4 * KEYS
    times = line + 4 * KEYS
    key_times = times + VECTOR
    buckets = key_times + 4 * KEYS

    value_at = (w.d_qk + (TIME_LANES if w.by_time else 0)) * w.number
    in_place = w.format == FLOAT32 and w.d_qk % LANES == 0 and w.d_v % LANES == 0
    seen = position + n
    if w.by_time:
        for i in range(n):
            read_time(query + i * w.query_token + 4 * w.d_qk, FLOAT32, times + 4 * i)
    for head in range(head_from, head_to):
        for i in range(n):
            row = query + i * w.query_token + head * w.query_head
            for t in range(w.d_qk):
                put_one(load_one(row + 4 * t) * w.scale, queries + i * key_row + 4 * t)
            for t in range(w.d_qk, key_row // 4):
                put_one(0.0, queries + i * key_row + 4 * t)
        for at in range(mixed, mixed + n * value_row, VECTOR):
            put(fill(0.0), at)
        for first in range(0, seen, KEYS):
            count = min(KEYS, seen - first)
            if not in_place:
                gather(w, table, head, first, count, seen, keys, values)
            if w.by_time and head == head_from:
                read_times(w, table, first, count, key_times)
            for i in range(n):
                sees = min(count, position + i + 1 - first)
                done = 0
                while done < sees:
                    if in_place:
                        here = min(sees - done, w.block_size - (first + done) % w.block_size)
                        row = cache_row(w, table, head, first + done)
                        ahead = cache_row(w, table, head, min(first + done + AHEAD * w.block_size, seen - 1))
                        _dots(
                            queries + i * key_row, key_row, row, w.cache_row, here, scores + 4 * done, ahead
                        )
                    else:
                        here = sees
                        _dots(queries + i * key_row, key_row, keys, key_row, here, scores, keys)
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
                        row = cache_row(w, table, head, first + done) + value_at
                        _mix(scores + 4 * done, row, w.cache_row, here, mixed + i * value_row, value_row)
                    else:
                        here = sees
                        _mix(scores, values, value_row, here, mixed + i * value_row, value_row)
                    done += here
        for i in range(n):
            write_row(w, mixed + i * value_row, output + i * w.output_token + head * w.output_head)


@compiled
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
                position_bias(w, head, nearest, 0, LANES, line)
                score = add(score, reverse(load(line)))
            else:
                score = add(score, reverse(load(w.by_position + 4 * (head * w.distances + nearest))))
        if w.by_time:
            if new:
                query_time = fill_int(load_int(time))
                put_bytes(time_buckets(query_time, load_ints(key_times + 4 * k), w.cells), buckets + k)
            score = add(score, lookup(w.by_time + 4 * TIME_BUCKETS * head, load_bytes(buckets + k)))
        put(silu(score), scores + 4 * k)


@compiled
def _dots(query: int, width: int, row: int, row_stride: int, count: int, scores: int, ahead: int) -> None:
    k = 0
    while k + 4 <= count:
        s0 = s1 = s2 = s3 = fill(0.0)
        for t in range(0, width, VECTOR):
            q = load(query + t)
            s0 = multiply_add(q, load(row + t), s0)
            s1 = multiply_add(q, load(row + row_stride + t), s1)
            s2 = multiply_add(q, load(row + 2 * row_stride + t), s2)
            s3 = multiply_add(q, load(row + 3 * row_stride + t), s3)
        put_one(total(s0), scores + 4 * k)
        put_one(total(s1), scores + 4 * k + 4)
        put_one(total(s2), scores + 4 * k + 8)
        put_one(total(s3), scores + 4 * k + 12)
        for line in range(ahead, ahead + 4 * row_stride, LINE):
            prefetch(line)
        ahead += 4 * row_stride
        row += 4 * row_stride
        k += 4
    while k < count:
        s0 = fill(0.0)
        for t in range(0, width, VECTOR):
            s0 = multiply_add(load(query + t), load(row + t), s0)
        put_one(total(s0), scores + 4 * k)
        row += row_stride
        k += 1


@compiled
def _mix(weights: int, row: int, row_stride: int, count: int, mixed: int, width: int) -> None:
    t = 0
    while t + 4 * VECTOR <= width:
        m0, m1 = load(mixed + t), load(mixed + t + VECTOR)
        m2, m3 = load(mixed + t + 2 * VECTOR), load(mixed + t + 3 * VECTOR)
        at = row + t
        for k in range(count):
            weight = fill(load_one(weights + 4 * k))
            m0 = multiply_add(weight, load(at), m0)
            m1 = multiply_add(weight, load(at + VECTOR), m1)
            m2 = multiply_add(weight, load(at + 2 * VECTOR), m2)
            m3 = multiply_add(weight, load(at + 3 * VECTOR), m3)
            at += row_stride
        put(m0, mixed + t)
        put(m1, mixed + t + VECTOR)
        put(m2, mixed + t + 2 * VECTOR)
        put(m3, mixed + t + 3 * VECTOR)
        t += 4 * VECTOR
    while t < width:
        m0 = load(mixed + t)
        at = row + t
        for k in range(count):
            m0 = multiply_add(fill(load_one(weights + 4 * k)), load(at), m0)
            at += row_stride
        put(m0, mixed + t)
        t += VECTOR
