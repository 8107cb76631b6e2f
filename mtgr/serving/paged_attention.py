"""SiLU attention over a paged KV cache in torch: a plan made once a step, a kernel run once a layer.

A batch mixes prompts of hundreds of new tokens with users of whom one token is new. Work is cut into tiles
of at most QUERY_TILE consecutive queries of one request, so that a long prompt computes little more than the
causal triangle. Tiles of similar shape form a group, and a group is a handful of torch calls, whatever the
number of its requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

QUERY_TILE: Final = 64
"""Queries of a tile: longer ones waste more above the diagonal, shorter ones read the cache more often."""

MAX_GROUP_SCORES: Final = 1 << 16
"""Scores of a group, per head: they should stay in the CPU's cache between the passes over them."""

MAX_PADDING: Final = 1.3
"""How much larger than its tiles a padded group may be."""

SMALL_GROUP_SCORES: Final = 1 << 12
"""Below this many scores per head, padding costs less than the torch calls of another group."""


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Tiles that one set of batched calls computes; b tiles, padded to q queries and n cache blocks."""

    shape: tuple[int, int, int]  # b, q, n
    query_rows: Tensor  # (b * q,) int64: rows of the step's queries, padding repeats a tile's last one
    cache_rows: Tensor  # (b * heads * n,) int64: rows of the cache seen as (blocks * heads, ...)
    hidden: Tensor  # (b, 1, q, n * block_size) bool: True where a query must not look
    valid: Tensor | None  # flat positions in (b * q) that are no padding; None where all are
    output_rows: Tensor  # rows of the step's output, for the valid positions


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
        cache_rows = table[:, None, :] * heads + np.arange(heads)[:, None]  # (b, heads, n)
        last_seen = position[members][:, None] + steps  # (b, q)
        hidden = np.arange(n * block_size) > last_seen[:, :, None]
        padded = not inside.all()
        groups.append(
            TileGroup(
                shape=(b, q, n),
                query_rows=tensor(rows.reshape(-1).astype(np.int64)),
                cache_rows=tensor(cache_rows.reshape(-1)),
                hidden=tensor(hidden).unsqueeze(1),
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
) -> None:
    """Write silu(Q K^T * scale) * normalizer, causally masked, times V into the output.

    query: (tokens, heads, d_qk); kv_cache: (blocks, heads, block_size, d_qk + d_v);
    output: (tokens, heads, d_v). `mtgr.kernels.silu_attention` has the definition.
    """
    _, heads, block_size, width = kv_cache.shape
    d_qk = query.shape[-1]
    d_v = width - d_qk
    pages = kv_cache.view(-1, block_size * width)
    compute = torch.float32  # half precisions are kept in the cache, sums are not made in them
    for group in groups:
        b, q, n = group.shape
        kv = pages.index_select(0, group.cache_rows).view(b * heads, n * block_size, width).to(compute)
        rows = query.index_select(0, group.query_rows).view(b, q, heads, d_qk)
        rows = rows.transpose(1, 2).reshape(b * heads, q, d_qk).to(compute)
        scores = query.new_empty((b * heads, q, n * block_size), dtype=compute)
        torch.baddbmm(scores, rows, kv[..., :d_qk].transpose(1, 2), beta=0, alpha=scale, out=scores)
        torch.nn.functional.silu(scores, inplace=True)
        scores.view(b, heads, q, n * block_size).masked_fill_(group.hidden, 0.0)
        mixed = query.new_empty((b * heads, q, d_v), dtype=compute)
        torch.baddbmm(mixed, scores, kv[..., d_qk:], beta=0, alpha=normalizer, out=mixed)
        mixed = mixed.view(b, heads, q, d_v).transpose(1, 2).reshape(b * q, heads, d_v)
        if group.valid is not None:
            mixed = mixed.index_select(0, group.valid)
        output.index_copy_(0, group.output_rows, mixed.to(output.dtype))


def store(key: Tensor, value: Tensor, kv_cache: Tensor, slots: Tensor) -> None:
    """Write new keys (tokens, heads, d_qk) and values (tokens, heads, d_v) to their slots of the cache.

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
