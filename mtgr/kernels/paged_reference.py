"""SiLU attention over the paged KV cache in plain PyTorch: what every faster kernel must agree with, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from mtgr.kernels.paged import PADDING, TIME_LANES, BiasTables, PagedStep
from mtgr.kernels.silu_attention import silu_attention
from mtgr.kernels.time_buckets import time_buckets

FP8 = torch.float8_e4m3fn


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
    """Write silu(Q K^T * scale + bias) * normalizer, causally masked, times V, for the queries of the step's tiles.

    query: (tokens, heads, head_size), the last TIME_LANES of which are a time where the bias is by time; kv_cache:
    (blocks, heads, block_size, head_size + d_v); output: (tokens, heads, d_v), untouched where no tile is. `k_scale`
    and `v_scale` are what the numbers of an FP8 cache are multiples of, and 1 for any other. Sums are float32.
    """
    starts, lengths = step.query_starts.tolist(), step.lengths.tolist()
    for request, first in step.tiles.tolist():
        if request == PADDING:
            continue
        begin, new = starts[request] + first, starts[request + 1] - starts[request]
        count = min(step.tile_queries, new - first)
        position = lengths[request] - new + first  # of the tile's first query in its sequence
        q = query[begin : begin + count].transpose(0, 1)  # (heads, queries, head_size)
        k, key_times, v = _cached(
            kv_cache, step.block_table[request], position + count, output.shape[2], bias
        )
        positions = torch.arange(position, position + count, device=query.device)
        distances = positions[:, None] - torch.arange(
            position + count, device=query.device
        )  # (queries, keys)
        mixed = silu_attention(
            q[..., : k.shape[-1]].float(),
            k,
            v,
            distances >= 0,
            scale=scale * k_scale,
            length=1,
            bias=_bias(bias, distances, q[0, :, -TIME_LANES:], key_times),
        )
        output[begin : begin + count] = (mixed * (normalizer * v_scale)).transpose(0, 1).to(output.dtype)


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
    """Write new keys (tokens, heads, head_size) and values (tokens, heads, d_v) to their slots of the cache.

    slots: (tokens,) block * block_size + offset, or PADDING for a token that is kept nowhere. An FP8 cache holds
    multiples of `k_scale` and `v_scale`, as large as it can where they would be larger; `timed` says that the last
    TIME_LANES of a key are the bytes of a time, which it holds as bytes.
    """
    block_size = kv_cache.shape[2]
    kept = slots != PADDING
    block, offset = slots[kept] // block_size, slots[kept] % block_size
    key, value = key[: len(slots)][kept], value[: len(slots)][kept]
    if kv_cache.dtype != FP8:
        kv_cache[block, :, offset] = torch.cat([key, value], dim=-1).to(kv_cache.dtype)
        return
    d_qk = key.shape[-1] - (TIME_LANES if timed else 0)
    parts = [_to_fp8(key[..., :d_qk], k_scale), key[..., d_qk:].to(torch.uint8), _to_fp8(value, v_scale)]
    kv_cache.view(torch.uint8)[block, :, offset] = torch.cat(parts, dim=-1)


def _to_fp8(x: Tensor, scale: float) -> Tensor:
    """The bytes of the nearest e4m3 numbers."""
    most = torch.finfo(FP8).max
    return (x.float() * (1.0 / scale)).clamp(-most, most).to(FP8).view(torch.uint8)


def _cached(
    kv_cache: Tensor, blocks: Tensor, length: int, d_v: int, bias: BiasTables | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A request's first keys (heads, length, d_qk), lanes of times (length, lanes) and values (heads, length, d_v)."""
    block_size = kv_cache.shape[2]
    own = blocks[: -(-length // block_size)].long()
    fp8 = kv_cache.dtype == FP8
    rows = (kv_cache.view(torch.uint8) if fp8 else kv_cache)[own]  # not every device can index FP8
    rows = rows.transpose(0, 1).flatten(1, 2)[:, :length]  # (heads, length, head_size + d_v)
    head_size = rows.shape[-1] - d_v
    d_qk = head_size - (TIME_LANES if bias is not None and bias.by_time is not None else 0)
    times = rows[0, :, d_qk:head_size]
    numbers = rows.view(FP8) if fp8 else rows
    return numbers[..., :d_qk].float(), times, numbers[..., head_size:].float()


def _bias(
    tables: BiasTables | None, distances: Tensor, query_lanes: Tensor, key_lanes: Tensor
) -> Tensor | None:
    """(heads, queries, keys), or None where there is none."""
    if tables is None:
        return None
    total: Tensor | None = None
    if tables.by_position is not None:
        total = tables.by_position.float()[:, distances.clamp(0, tables.by_position.shape[1] - 1)]
    if tables.by_time is not None:
        buckets = time_buckets(_times(query_lanes)[:, None], _times(key_lanes))
        by_time = tables.by_time.float()[:, buckets]
        total = by_time if total is None else total + by_time
    return total


def _times(lanes: Tensor) -> Tensor:
    """(..., TIME_LANES) bytes, lowest first, to (...) int64."""
    shifts = torch.arange(0, 8 * TIME_LANES, 8, device=lanes.device)
    return (lanes.long() << shifts).sum(-1)
