"""SiLU attention over a paged KV cache in torch: a plan made once a step, a kernel run once a layer.

A batch mixes prompts of hundreds of new tokens with users of whom one token is new. Work is cut into tiles
of at most QUERY_TILE consecutive queries of one request, so that a long prompt computes little more than the
causal triangle. Tiles of similar shape form a group, and a group is a handful of torch calls, whatever the
number of its requests.

Where attention has a bias by time, the last lanes of queries and keys are the times of their tokens, as the
bytes of `mtgr.features`: so a time is in the cache with its key, and any of its number formats holds it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.config import TIME_LANES
from mtgr.kernels.paged import BiasTables
from mtgr.model.bias import time_buckets

QUERY_TILE: Final = 64
"""Queries of a tile: longer ones waste more above the diagonal, shorter ones read the cache more often."""

MAX_GROUP_SCORES: Final = 1 << 16
"""Scores of a group, per head: they should stay in the CPU's cache between the passes over them."""

MAX_PADDING: Final = 1.3
"""How much larger than its tiles a padded group may be."""

SMALL_GROUP_SCORES: Final = 1 << 12
"""Below this many scores per head, padding costs less than the torch calls of another group."""


@dataclass(slots=True)
class TileGroup:
    """Tiles that one set of batched calls computes; b tiles, padded to q queries and n cache blocks."""

    shape: tuple[int, int, int]  # b, q, n
    query_rows: Tensor  # (b * q,) int64: rows of the step's queries, padding repeats a tile's last one
    cache_rows: Tensor  # (heads * b * n,) int64: rows of the cache seen as (blocks * heads, ...)
    hidden: Tensor  # (b, q, n * block_size) bool: True where a query must not look
    last: Tensor  # (b,) int64: position of a tile's q-th query in its sequence
    valid: Tensor | None  # flat positions in (b * q) that are no padding; None where all are
    output_rows: Tensor  # rows of the step's output, for the valid positions
    buckets: Tensor | None = (
        None  # (b * q * n * block_size,) uint8, of time: by the first layer, for all others
    )


def plan_tiles(
    query_starts: npt.NDArray[np.int32],
    sequence_lengths: npt.NDArray[np.int32],
    block_table: npt.NDArray[np.int32],
    *,
    block_size: int,
    heads: int,
    device: torch.device | None = None,
) -> list[TileGroup]:
    """Cut a step's queries into tiles and group them by shape.

    query_starts: (requests + 1,) offsets of each request's new tokens in the step; sequence_lengths:
    (requests,) tokens of each request, the new ones included; block_table: (requests, blocks) cache blocks.
    `device` is the cache's.
    """

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    new_tokens = np.diff(query_starts)
    tiles_of = -(-new_tokens // QUERY_TILE)
    request = np.repeat(np.arange(len(new_tokens)), tiles_of)
    ordinal = np.arange(len(request)) - np.repeat(np.cumsum(tiles_of) - tiles_of, tiles_of)
    first = ordinal * QUERY_TILE  # within the request's new tokens
    queries = np.minimum(QUERY_TILE, new_tokens[request] - first)
    position = (sequence_lengths - new_tokens)[request] + first  # of a tile's first query in its sequence
    blocks = -(-(position + queries) // block_size)

    groups = []
    order = np.lexsort((blocks, queries))
    for members in _pack(order, queries, blocks * block_size):
        b, q, n = len(members), int(queries[members].max()), int(blocks[members].max())
        steps = np.arange(q)
        inside = steps < queries[members][:, None]  # (b, q)
        start = query_starts[request[members]] + first[members]
        rows = start[:, None] + np.minimum(steps, queries[members][:, None] - 1)
        table = block_table[request[members], :n].astype(np.int64)  # (b, n)
        # entries past a tile's own blocks are stale: the null block is always there to be read
        table[np.arange(n) >= blocks[members][:, None]] = 0
        cache_rows = table * heads + np.arange(heads)[:, None, None]  # (heads, b, n)
        last_seen = position[members][:, None] + steps  # (b, q)
        hidden = np.arange(n * block_size) > last_seen[:, :, None]
        padded = not inside.all()
        groups.append(
            TileGroup(
                shape=(b, q, n),
                query_rows=tensor(rows.reshape(-1).astype(np.int64)),
                cache_rows=tensor(cache_rows.reshape(-1)),
                hidden=tensor(hidden),
                last=tensor(last_seen[:, -1].astype(np.int64)),
                valid=tensor(np.flatnonzero(inside)) if padded else None,
                output_rows=tensor(rows[inside].astype(np.int64)),
            )
        )
    return groups


def _pack(
    order: npt.NDArray[np.int64], queries: npt.NDArray[np.int32], keys: npt.NDArray[np.int32]
) -> list[npt.NDArray[np.int64]]:
    """Cut the ordered tiles where a group would grow too large or too uneven."""
    groups = []
    begin = 0
    widest = deepest = filled = 0
    for at, (q, k) in enumerate(zip(queries[order].tolist(), keys[order].tolist(), strict=True)):
        wider, deeper = max(widest, q), max(deepest, k)
        padded = wider * deeper * (at - begin + 1)
        too_uneven = padded > MAX_PADDING * (filled + q * k) and padded > SMALL_GROUP_SCORES
        if at > begin and (padded > MAX_GROUP_SCORES or too_uneven):
            groups.append(order[begin:at])
            begin, wider, deeper, filled = at, q, k, 0
        widest, deepest, filled = wider, deeper, filled + q * k
    if len(order):
        groups.append(order[begin:])
    return groups


def attend(
    groups: list[TileGroup],
    query: Tensor,
    kv_cache: Tensor,
    output: Tensor,
    *,
    scale: float,
    normalizer: float,
    bias: BiasTables | None = None,
) -> None:
    """Write silu(Q K^T * scale + bias) * normalizer, causally masked, times V into the output.

    query: (tokens, heads, d_qk + lanes); kv_cache: (blocks, heads, block_size, d_qk + lanes + d_v), with lanes where
    the bias is by time; output: (tokens, heads, d_v). `mtgr.kernels.silu_attention` has the definition.
    """
    _, heads, block_size, width = kv_cache.shape
    head_size = query.shape[-1]
    d_qk = head_size - (TIME_LANES if bias is not None and bias.by_time is not None else 0)
    d_v = width - head_size
    pages = kv_cache.view(-1, block_size * width)
    compute = torch.float32  # half precisions are kept in the cache, sums are not made in them
    for group in groups:
        b, q, n = group.shape
        keys = n * block_size
        kv = pages.index_select(0, group.cache_rows).view(heads * b, keys, width).to(compute)
        rows = query.index_select(0, group.query_rows).transpose(0, 1)  # (heads, b * q, head_size)
        rows = rows.reshape(heads * b, q, head_size).to(compute)
        if bias is None:
            scores = query.new_empty((heads * b, q, keys), dtype=compute)
        else:
            if bias.by_time is not None and group.buckets is None:
                # the same for every head and layer, and dearer than a layer's products
                group.buckets = _buckets(rows[:b, :, d_qk:], kv[:b, :, d_qk:head_size])
            scores = _bias(bias, group, keys).view(heads * b, q, keys)
        torch.baddbmm(
            scores,
            rows[..., :d_qk],
            kv[..., :d_qk].transpose(1, 2),
            beta=0 if bias is None else 1,
            alpha=scale,
            out=scores,
        )
        torch.nn.functional.silu(scores, inplace=True)
        scores.view(heads, b, q, keys).masked_fill_(group.hidden, 0.0)
        mixed = query.new_empty((heads * b, q, d_v), dtype=compute)
        torch.baddbmm(mixed, scores, kv[..., head_size:], beta=0, alpha=normalizer, out=mixed)
        mixed = mixed.view(heads, b * q, d_v).transpose(0, 1)
        if group.valid is not None:
            mixed = mixed.index_select(0, group.valid)
        output.index_copy_(0, group.output_rows, mixed.to(output.dtype))


def _buckets(query_lanes: Tensor, key_lanes: Tensor) -> Tensor:
    """(b, q, lanes) and (b, keys, lanes) bytes of times to the buckets of their gaps: (b * q * keys,) uint8."""
    queries, keys = _times(query_lanes), _times(key_lanes)
    return time_buckets(queries.unsqueeze(2), keys.unsqueeze(1)).to(torch.uint8).view(-1)


def _times(lanes: Tensor) -> Tensor:
    """(..., lanes) bytes, lowest first, to (...) int64; anything at all where nothing was ever stored."""
    shifts = torch.arange(0, 8 * lanes.shape[-1], 8, device=lanes.device)
    return (lanes.long() << shifts).sum(-1)


def _bias(tables: BiasTables, group: TileGroup, keys: int) -> Tensor:
    """(heads, b, q, keys) float32, of a group's queries and keys, contiguous."""
    b, q, _ = group.shape
    total: Tensor | None = None
    if tables.by_time is not None:
        assert group.buckets is not None
        total = tables.by_time.float().index_select(1, group.buckets.int()).view(-1, b, q, keys)
    if tables.by_position is not None:
        # the biases of a tile's queries are one row, in which each query begins a place later than the one after it
        steps = torch.arange(q + keys - 1, device=group.last.device)
        distances = (group.last.unsqueeze(1) - steps).clamp_(0, tables.by_position.shape[1] - 1)
        row = tables.by_position.float().index_select(1, distances.view(-1)).view(-1, b, q + keys - 1)
        by_position = row.unfold(2, keys, 1).flip(2)
        total = by_position if total is None else total.add_(by_position)
    assert total is not None
    return total


def store(key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> None:
    """Write new keys (tokens, heads, d_qk + lanes) and values (tokens, heads, d_v) to their slots of the cache.

    slots: (tokens,) int64, block * block_size + offset, -1 for padding.
    """
    _, heads, block_size, width = kv_cache.shape
    tokens = len(slots)
    slots = slots.clamp(min=0)  # block 0 is vLLM's null block, which nobody reads
    block = slots // block_size
    first = block * (heads * block_size) + (slots - block * block_size)
    rows = first[:, None] + torch.arange(heads, device=slots.device) * block_size  # (tokens, heads)
    new = torch.cat([key[:tokens], value[:tokens]], dim=-1).view(-1, width)
    kv_cache.view(-1, width).index_copy_(0, rows.view(-1), new.to(kv_cache.dtype))
