"""SiLU attention over the paged KV cache on the GPU: one program for each tile of a step and head.

A tile of one query is one pass over its keys and values, as fast as memory gives them. Larger tiles go through the
tensor cores in blocks of keys; blocks that every query of the tile sees whole need no mask. Nothing is normalised over
a row, so a long row of few queries may be cut among programs, whose sums simply add.
"""

# Triton gives kernels their types, and their constants have the names of constants.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtgr.kernels.device_functions import (
    PORTABLE,
    as_bytes,
    load_time,
    silu,
    time_bucket,
    write_lanes,
    write_numbers,
)
from mtgr.kernels.launches import MOST_PROGRAMS, TileLaunch, row_launch, silu_mode, tile_launch
from mtgr.kernels.paged import TIME_LANES, BiasTables, PagedStep
from mtgr.kernels.time_cells import cells_on

_FP8: Final = torch.float8_e4m3fn
_SMALLEST_DOT: Final = 16


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
    launch: TileLaunch | None = None,
) -> None:
    """As `mtgr.kernels.paged_reference.attend`; `step.tile_queries` is 1, or a power of two from 16 on.

    Every launch depends on shapes alone, never on what the step's tensors hold, so that it can be captured. `launch`
    overrides what `mtgr.kernels.launches` has for the shape.
    """
    tiles, heads, d_v = len(step.tiles), output.shape[1], output.shape[2]
    if not tiles:
        return
    by_position = None if bias is None else bias.by_position
    by_time = None if bias is None else bias.by_time
    head_size = kv_cache.shape[-1] - d_v
    d_qk = head_size - (0 if by_time is None else TIME_LANES)
    single = step.tile_queries == 1
    if not single and (step.tile_queries < _SMALLEST_DOT or step.tile_queries & (step.tile_queries - 1)):
        raise ValueError(
            f"tile_queries is {step.tile_queries}, where 1 or a power of two from 16 on is wanted"
        )
    for name, tensor in (("query", query), ("kv_cache", kv_cache), ("output", output)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"the last stride of {name} is {tensor.stride(-1)}, where 1 is wanted")
    block_d, block_v = (max(_SMALLEST_DOT, triton.next_power_of_2(width)) for width in (d_qk, d_v))
    if launch is None:
        launch = tile_launch(
            step.tile_queries, max(block_d, block_v), query.dtype, tiles * heads, biased=by_time is not None
        )
    splits = launch.splits if single else 1
    # programs that share a row of the output leave their sums side by side, and the last pass adds them in order
    target = output if splits == 1 else output.new_empty((tiles, splits, heads, d_v), dtype=torch.float32)
    total = tiles * splits * heads
    _attend[(total if single else min(total, MOST_PROGRAMS),)](
        query,
        kv_cache,
        target,
        step.query_starts,
        step.lengths,
        step.block_table,
        step.tiles,
        by_position,
        by_time,
        None if by_time is None else cells_on(query.device),
        scale * k_scale,
        normalizer * v_scale,
        0 if by_position is None else by_position.shape[1],
        step.block_table.stride(0),
        0 if by_position is None else by_position.stride(0),
        0 if by_time is None else by_time.stride(0),
        total,
        HEADS=heads,
        SPLITS=splits,
        D_QK=d_qk,
        HEAD_SIZE=head_size,
        D_V=d_v,
        BLOCK_SIZE=kv_cache.shape[2],
        CACHE_BLOCK=kv_cache.stride(0),
        CACHE_HEAD=kv_cache.stride(1),
        CACHE_ROW=kv_cache.stride(2),
        QUERY_TOKEN=query.stride(0),
        QUERY_HEAD=query.stride(1),
        OUT_TOKEN=output.stride(0),
        OUT_HEAD=output.stride(1),
        TILE=step.tile_queries,
        BLOCK_N=launch.keys,
        BLOCK_D=block_d,
        BLOCK_V=block_v,
        # given with a loop, a number of stages is for all that it loads; with a launch, for what products are made of
        LOOP_STAGES=launch.stages if single else None,
        BYTES=kv_cache.dtype == _FP8,
        PACKED=_packed(query, kv_cache, d_qk),
        MODE=silu_mode(query.dtype, launch.tanh),
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    if splits > 1:
        _add_splits[(tiles,)](
            target,
            output,
            step.query_starts,
            step.tiles,
            HEADS=heads,
            SPLITS=splits,
            D_V=d_v,
            OUT_TOKEN=output.stride(0),
            OUT_HEAD=output.stride(1),
            BLOCK_H=triton.next_power_of_2(heads),
            BLOCK_V=triton.next_power_of_2(d_v),
        )


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
    """As `mtgr.kernels.paged_reference.store`."""
    heads, head_size, d_v = key.shape[1], key.shape[2], value.shape[2]
    d_qk = head_size - (TIME_LANES if timed else 0)
    per_program, warps = row_launch(heads, head_size + d_v)
    if not len(slots):
        return
    _store[(len(slots), triton.cdiv(heads, per_program))](
        key,
        value,
        kv_cache,
        slots,
        1.0 / k_scale,
        1.0 / v_scale,
        HEADS=heads,
        D_QK=d_qk,
        HEAD_SIZE=head_size,
        D_V=d_v,
        BLOCK_SIZE=kv_cache.shape[2],
        CACHE_BLOCK=kv_cache.stride(0),
        CACHE_HEAD=kv_cache.stride(1),
        CACHE_ROW=kv_cache.stride(2),
        KEY_TOKEN=key.stride(0),
        KEY_HEAD=key.stride(1),
        VALUE_TOKEN=value.stride(0),
        VALUE_HEAD=value.stride(1),
        BLOCK_H=per_program,
        BLOCK_D=triton.next_power_of_2(head_size),
        BLOCK_V=triton.next_power_of_2(d_v),
        BYTES=kv_cache.dtype == _FP8,
        num_warps=warps,
    )


def _packed(query: Tensor, kv_cache: Tensor, d_qk: int) -> bool:
    """Whether a time's lanes, of one or two bytes each, can be read at once in queries and in the cache."""
    return all(
        tensor.element_size() <= 2
        and tensor.data_ptr() % 8 == 0
        and all(place % TIME_LANES == 0 for place in (d_qk, *tensor.stride()[:-1]))
        for tensor in (query, kv_cache)
    )


# a launch is not to be compiled anew where one of these happens to be a multiple of 16
@triton.jit(
    do_not_specialize=["table_row", "total"],
    do_not_specialize_on_alignment=["query_starts", "lengths", "block_table", "tiles"],
)
def _attend(
    query,
    cache,
    output,
    query_starts,
    lengths,
    block_table,
    tiles,
    by_position,
    by_time,
    cells,
    scale,
    normalizer,
    distances,
    table_row,
    position_row,
    time_row,
    total,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    D_QK: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CACHE_BLOCK: tl.constexpr,
    CACHE_HEAD: tl.constexpr,
    CACHE_ROW: tl.constexpr,
    QUERY_TOKEN: tl.constexpr,
    QUERY_HEAD: tl.constexpr,
    OUT_TOKEN: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    LOOP_STAGES: tl.constexpr,
    BYTES: tl.constexpr,
    PACKED: tl.constexpr,
    MODE: tl.constexpr,
):
    work = tl.program_id(0)
    request = tl.load(tiles + 2 * (work // (HEADS * SPLITS)))
    if TILE == 1:
        if request >= 0:
            _attend_tile(
                work, request, query, cache, output, query_starts, lengths, block_table, tiles,
                by_position, by_time, cells, scale, normalizer, distances, table_row, position_row,
                time_row, HEADS, SPLITS, D_QK, HEAD_SIZE, D_V, BLOCK_SIZE, CACHE_BLOCK, CACHE_HEAD,
                CACHE_ROW, QUERY_TOKEN, QUERY_HEAD, OUT_TOKEN, OUT_HEAD, TILE, BLOCK_N, BLOCK_D,
                BLOCK_V, LOOP_STAGES, BYTES, PACKED, MODE,
            )  # fmt: skip
    else:
        # padding is behind all tiles that there are: where it begins, nothing is left to do
        while request >= 0:
            _attend_tile(
                work, request, query, cache, output, query_starts, lengths, block_table, tiles,
                by_position, by_time, cells, scale, normalizer, distances, table_row, position_row,
                time_row, HEADS, SPLITS, D_QK, HEAD_SIZE, D_V, BLOCK_SIZE, CACHE_BLOCK, CACHE_HEAD,
                CACHE_ROW, QUERY_TOKEN, QUERY_HEAD, OUT_TOKEN, OUT_HEAD, TILE, BLOCK_N, BLOCK_D,
                BLOCK_V, LOOP_STAGES, BYTES, PACKED, MODE,
            )  # fmt: skip
            work += tl.num_programs(0)
            request = tl.load(tiles + 2 * (work // (HEADS * SPLITS)), mask=work < total, other=-1)


@triton.jit
def _attend_tile(
    work,
    request,
    query,
    cache,
    output,
    query_starts,
    lengths,
    block_table,
    tiles,
    by_position,
    by_time,
    cells,
    scale,
    normalizer,
    distances,
    table_row,
    position_row,
    time_row,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    D_QK: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CACHE_BLOCK: tl.constexpr,
    CACHE_HEAD: tl.constexpr,
    CACHE_ROW: tl.constexpr,
    QUERY_TOKEN: tl.constexpr,
    QUERY_HEAD: tl.constexpr,
    OUT_TOKEN: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    LOOP_STAGES: tl.constexpr,
    BYTES: tl.constexpr,
    PACKED: tl.constexpr,
    MODE: tl.constexpr,
):
    """One tile of one head, or, of a single query, one part of its keys."""
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_V)
    # heads stand side by side: programs that run together read one stretch of memory
    head = work % HEADS
    tile = work // (HEADS * SPLITS)
    first = tl.load(tiles + 2 * tile + 1)
    begin = tl.load(query_starts + request)
    new = tl.load(query_starts + request + 1) - begin
    position = tl.load(lengths + request) - new + first  # of the tile's first query in its sequence
    count = tl.minimum(TILE, new - first)
    token = (begin + first).to(tl.int64)
    blocks = block_table + request.to(tl.int64) * table_row
    own = cache + head * CACHE_HEAD
    lanes = as_bytes(own) if BYTES else own
    position_biases = None if by_position is None else by_position + head * position_row
    time_biases = None if by_time is None else by_time + head * time_row
    row = query + token * QUERY_TOKEN + head * QUERY_HEAD
    # keys from `last` on are seen by no query of the tile
    last = position + count
    if TILE == 1:
        q = tl.load(row + d, mask=d < D_QK, other=0.0).to(tl.float32)  # (BLOCK_D,)
        positions = position
        query_times = 0 if by_time is None else load_time(row + D_QK, token >= 0, PACKED)
        first_key = 0
        if SPLITS > 1:
            share = tl.cdiv(tl.cdiv(last, BLOCK_N), SPLITS) * BLOCK_N
            first_key = (work // HEADS) % SPLITS * share
            last = tl.minimum(last, first_key + share)
        acc = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    else:
        m = tl.arange(0, TILE)
        rows = row + m[:, None] * QUERY_TOKEN
        q = tl.load(rows + d[None, :], mask=(m[:, None] < count) & (d[None, :] < D_QK), other=0.0)
        if MODE == PORTABLE:
            q = q.to(tl.float32)
        elif BYTES:  # FP8 becomes float16 in one instruction, bfloat16 in many
            q = q.to(tl.float16)
        positions = (position + m)[:, None]  # (TILE, 1)
        query_times = 0 if by_time is None else load_time(rows + D_QK, m[:, None] < count, PACKED)
        acc = tl.zeros([TILE, BLOCK_V], tl.float32)
        # keys up to here are seen by all queries of the tile, and come in whole blocks
        first_key = (position + 1) // BLOCK_N * BLOCK_N
        for start in tl.range(0, first_key, BLOCK_N, num_stages=LOOP_STAGES):
            acc = _add_keys(
                acc, q, positions, query_times, own, lanes, blocks, start, last, position_biases, time_biases,
                cells, scale, distances, D_QK, HEAD_SIZE, D_V, BLOCK_SIZE, CACHE_BLOCK, CACHE_ROW,
                TILE, BLOCK_N, BLOCK_D, BLOCK_V, PACKED, MODE, False,
            )  # fmt: skip
    # for one query, whose keys memory has to bring anyway, a mask costs less than a loop of its own for the last
    for start in tl.range(first_key, last, BLOCK_N, num_stages=LOOP_STAGES):
        acc = _add_keys(
            acc, q, positions, query_times, own, lanes, blocks, start, last, position_biases, time_biases,
            cells, scale, distances, D_QK, HEAD_SIZE, D_V, BLOCK_SIZE, CACHE_BLOCK, CACHE_ROW,
            TILE, BLOCK_N, BLOCK_D, BLOCK_V, PACKED, MODE, True,
        )  # fmt: skip
    acc *= normalizer
    out = output + token * OUT_TOKEN + head * OUT_HEAD
    if TILE > 1:
        inside = (m[:, None] < count) & (e[None, :] < D_V)
        tl.store(out + m[:, None] * OUT_TOKEN + e[None, :], acc.to(output.dtype.element_ty), mask=inside)
    else:
        if SPLITS > 1:
            out = output + work.to(tl.int64) * D_V  # (tiles, splits, heads, d_v)
        tl.store(out + e, tl.sum(acc, 0).to(output.dtype.element_ty), mask=e < D_V)


@triton.jit
def _add_keys(
    acc,
    q,
    positions,
    query_times,
    cache,
    lanes,
    blocks,
    start,
    last,
    by_position,
    by_time,
    cells,
    scale,
    distances,
    D_QK: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CACHE_BLOCK: tl.constexpr,
    CACHE_ROW: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PACKED: tl.constexpr,
    MODE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """acc + silu(scores) V of the keys from `start` on; MASKED where some query does not see some of them."""
    keys = start + tl.arange(0, BLOCK_N)
    stored = keys < last
    if BLOCK_SIZE % BLOCK_N == 0:  # all in one block of the cache
        block = tl.load(blocks + start // BLOCK_SIZE).to(tl.int64)
        rows = block * CACHE_BLOCK + (start % BLOCK_SIZE + tl.arange(0, BLOCK_N)) * CACHE_ROW
    else:
        if MASKED:
            block = tl.load(blocks + keys // BLOCK_SIZE, mask=stored, other=0).to(tl.int64)
        else:
            block = tl.load(blocks + keys // BLOCK_SIZE).to(tl.int64)
        rows = block * CACHE_BLOCK + (keys % BLOCK_SIZE) * CACHE_ROW
    k = _load_rows(cache, rows, stored, D_QK, BLOCK_D, MASKED)
    # what lies past a sequence may be no number at all, and 0 times that would be none
    v = _load_rows(cache + HEAD_SIZE, rows, stored, D_V, BLOCK_V, MASKED)
    if TILE == 1:
        scores = tl.sum(q[None, :] * k.to(tl.float32), 1) * scale  # (BLOCK_N,)
        away = positions - keys
    else:
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee") * scale  # (TILE, BLOCK_N)
        away = positions - keys[None, :]
    if by_position is not None:
        at = tl.minimum(tl.maximum(away, 0), distances - 1)
        scores += tl.load(by_position + at).to(tl.float32)
    if by_time is not None:
        if TILE == 1:
            key_times = load_time(lanes + D_QK + rows, stored, PACKED)
        else:
            key_times = load_time(lanes + D_QK + rows[None, :], stored[None, :], PACKED)
        scores += tl.load(by_time + time_bucket(query_times, key_times, cells)).to(tl.float32)
    weights = silu(scores, MODE)
    if MASKED:
        weights = tl.where(away >= 0, weights, 0.0)
    if TILE == 1:
        acc += weights[:, None] * v.to(tl.float32)
    else:
        acc = tl.dot(weights.to(q.dtype), v.to(q.dtype), acc, input_precision="ieee")
    return acc


@triton.jit
def _load_rows(cache, rows, stored, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """(BLOCK_N, BLOCK) of the cache's rows, 0 past their width and past what is stored."""
    d = tl.arange(0, BLOCK)
    pointers = cache + rows[:, None] + d[None, :]
    if MASKED:
        return tl.load(pointers, mask=stored[:, None] & (d[None, :] < WIDTH), other=0.0)
    if WIDTH < BLOCK:
        return tl.load(pointers, mask=(d < WIDTH)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit(do_not_specialize_on_alignment=["query_starts", "tiles"])
def _add_splits(
    sums,
    output,
    query_starts,
    tiles,
    HEADS: tl.constexpr,
    SPLITS: tl.constexpr,
    D_V: tl.constexpr,
    OUT_TOKEN: tl.constexpr,
    OUT_HEAD: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    tile = tl.program_id(0)
    request = tl.load(tiles + 2 * tile)
    if request < 0:
        return
    token = (tl.load(query_starts + request) + tl.load(tiles + 2 * tile + 1)).to(tl.int64)
    h = tl.arange(0, BLOCK_H)[:, None]
    e = tl.arange(0, BLOCK_V)[None, :]
    inside = (h < HEADS) & (e < D_V)
    total = tl.zeros([BLOCK_H, BLOCK_V], tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(sums + ((tile * SPLITS + split) * HEADS + h) * D_V + e, mask=inside, other=0.0)
    out = output + token * OUT_TOKEN + h * OUT_HEAD + e
    tl.store(out, total.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def _store(
    key,
    value,
    cache,
    slots,
    per_k_scale,
    per_v_scale,
    HEADS: tl.constexpr,
    D_QK: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CACHE_BLOCK: tl.constexpr,
    CACHE_HEAD: tl.constexpr,
    CACHE_ROW: tl.constexpr,
    KEY_TOKEN: tl.constexpr,
    KEY_HEAD: tl.constexpr,
    VALUE_TOKEN: tl.constexpr,
    VALUE_HEAD: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BYTES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:
        return
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_V)[None, :]
    row = cache + (slot // BLOCK_SIZE) * CACHE_BLOCK + h * CACHE_HEAD + (slot % BLOCK_SIZE) * CACHE_ROW
    keys = tl.load(key + token * KEY_TOKEN + h * KEY_HEAD + d, mask=(h < HEADS) & (d < HEAD_SIZE), other=0.0)
    values = tl.load(
        value + token * VALUE_TOKEN + h * VALUE_HEAD + e, mask=(h < HEADS) & (e < D_V), other=0.0
    )
    write_numbers(row + d, keys, (h < HEADS) & (d < D_QK), per_k_scale, BYTES)
    if HEAD_SIZE > D_QK:
        write_lanes(row + d, keys, (h < HEADS) & (d >= D_QK) & (d < HEAD_SIZE), BYTES)
    write_numbers(row + HEAD_SIZE + e, values, (h < HEADS) & (e < D_V), per_v_scale, BYTES)
