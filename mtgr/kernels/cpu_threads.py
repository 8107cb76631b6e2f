"""What the threads of a CPU compute over the paged KV cache, and the work that they are given."""

# numba gives functions their types; to it, addresses are integers.
# mypy: disable-error-code="untyped-decorator, no-any-return, assignment"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np

from mtgr.kernels.cpu_rows import FEW, KEYS, LINE, VECTOR, compiled, rounded_up
from mtgr.kernels.cpu_tiles import attend_few, attend_many
from mtgr.kernels.simd import LANES, copy, fill, load_int, load_long, put, take_next

TOKENS_AT_ONCE: Final = 64
"""Tokens that a thread takes to store."""


def _integers(names: str) -> list[tuple[str, type]]:
    return [(name, np.int64) for name in names.split()]


Attending: Final = np.dtype(
    [
        # addresses and, in bytes, how far it is from one token, head, block, row, request or thread to the next
        *_integers("query query_token query_head output output_token output_head"),
        *_integers("cache cache_block cache_head cache_row block_table block_table_row"),
        *_integers("query_starts lengths tiles by_position by_time cells turns scratch scratch_part"),
        # bytes of a number in the cache, vectors of a tile's queries, tokens that no request has more of, and sizes
        *_integers("number columns longest heads d_qk d_v block_size distances"),
        *_integers("format tile_count tile_queries head_groups"),
        ("scale", np.float32),
        ("normalizer", np.float32),
    ],
    align=True,
)
"""What threads attend to. by_position, by_time: 0 where there is no such bias; turns: two int64, 0 at the start."""

Storing: Final = np.dtype(
    [
        *_integers("key key_token key_head key_bytes value value_token value_head value_bytes"),
        *_integers("cache cache_block cache_head cache_row slots turns tokens heads block_size"),
    ]
)
"""What threads store; addresses and distances as of `Attending`; turns: one int64."""


def scratch_bytes(d_qk: int, d_v: int, columns: int, longest: int, *, timed: bool) -> int:
    """How much memory a thread needs to attend with."""
    key, value = _whole_vectors(d_qk), _whole_vectors(d_v)
    queries = columns * LANES
    numbers = (
        KEYS * (key + value)
        + max((queries + LANES) * d_qk, FEW * key)
        + max(queries, FEW) * value
        + (queries + 1) * KEYS  # scores, and times of keys
        + KEYS  # biases of a block by position, with as many as there are queries
        + 2 * queries
        + 2 * LINE
    )
    return 4 * numbers + (longest * max(queries, FEW) if timed else 0)


def _whole_vectors(numbers: int) -> int:
    return -(-numbers // LANES) * LANES


@compiled
def _attend(w: Any) -> None:
    """What each thread does: one tile after another, until none is left."""
    part = w.scratch + take_next(w.turns) * w.scratch_part
    # rows are read to whole vectors, past what is ever written to them
    for at in range(part, part + 4 * KEYS * (rounded_up(w.d_qk, LANES) + rounded_up(w.d_v, LANES)), VECTOR):
        put(fill(0.0), at)
    item = take_next(w.turns + 8)
    while item < w.tile_count * w.head_groups:
        tile, group = item // w.head_groups, item % w.head_groups
        item = take_next(w.turns + 8)
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
        if n <= FEW:
            attend_few(w, table, query, output, position, n, head_from, head_to, part)
        else:
            attend_many(w, table, query, output, position, n, head_from, head_to, part)


@compiled
def _store(w: Any) -> None:
    """What each thread does: some tokens after others, until none is left."""
    first = take_next(w.turns) * TOKENS_AT_ONCE
    while first < w.tokens:
        for token in range(first, min(first + TOKENS_AT_ONCE, w.tokens)):
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
        first = take_next(w.turns) * TOKENS_AT_ONCE


def attend_entry(sources: str) -> Callable[[Any], None]:
    """The function of a thread that attends, for an address of `Attending`.

    sources: what stands for the code of other files; numba's cache on the disk knows this one and the values that a
    function closes over, and would take what it has for what it is asked for.
    """

    def attend(works: Any) -> None:
        sources  # noqa: B018
        _attend(numba.carray(works, 1)[0])

    return attend


def store_entry(sources: str) -> Callable[[Any], None]:
    """The function of a thread that stores, for an address of `Storing`; otherwise as `attend_entry`."""

    def store(works: Any) -> None:
        sources  # noqa: B018
        _store(numba.carray(works, 1)[0])

    return store
