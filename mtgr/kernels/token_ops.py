"""What a layer does to each token between its matrix products, and what turns logits into lists, in plain PyTorch.

Each function has a twin of the same signature in `mtgr.kernels.token_ops_triton`, which rounds where this does: once
for each tensor that it writes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mtgr.kernels.paged import TIME_LANES
from mtgr.kernels.paged_reference import store


def group_norm(x: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GroupLN (MTGR, arXiv 2505.18654): a layer norm, scaled and shifted by the token's group.

    x: (tokens, width); groups: (tokens,) whole numbers; weight, bias: (GROUPS, width), or (1, width) where the groups
    share one.
    """
    return _normed(x.float(), groups, weight, bias, eps).to(x.dtype)


def add_group_norm(
    x: Tensor, delta: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + delta, GroupLN of that sum); delta as x, the rest as in `group_norm`."""
    total = x + delta
    return total, group_norm(total, groups, weight, bias, eps)


def gated_group_norm(
    attended: Tensor, u: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """GroupLN(attended) * u; attended, u: (tokens, width), the rest as in `group_norm`."""
    return (_normed(attended.float(), groups, weight, bias, eps) * u.float()).to(attended.dtype)


def silu_(x: Tensor) -> Tensor:
    """x * sigmoid(x) in place of x, which is returned."""
    return functional.silu(x, inplace=True)


def split_silu_store(
    projected: Tensor,
    kv_cache: Tensor,
    slots: Tensor,
    times: Tensor | None,
    *,
    heads: int,
    d_qk: int,
    d_v: int,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """U and Q of silu(projected) as a layer goes on with them; its keys and values are written to the cache.

    projected: (tokens, heads * (2 * d_v + 2 * d_qk)), in the order U, V, Q, K; times: (tokens, TIME_LANES) bytes where
    the bias is by time, and these then are the last lanes of queries and keys; the cache, slots and scales as in
    `mtgr.kernels.paged_reference.store`; tokens behind the last slot are kept nowhere. Returns u (tokens, heads * d_v)
    and q (tokens, heads, head_size).
    """
    tokens = len(projected)
    widths = [heads * d_v, heads * d_v, heads * d_qk, heads * d_qk]
    u, v, q, k = torch.split(functional.silu(projected), widths, dim=-1)
    q, k = (
        _timed(joined.reshape(tokens, heads, d_qk), None if times is None else times[:tokens])
        for joined in (q, k)
    )
    value = v.reshape(tokens, heads, d_v)
    store(k, value, kv_cache, slots, timed=times is not None, k_scale=k_scale, v_scale=v_scale)
    return u.contiguous(), q


def mask_seen(logits: Tensor, items: Tensor, lengths: Tensor | None = None) -> None:
    """Write -inf over the logits of each row's items.

    logits: (rows, slots); items: (rows, items) int32, of which those that are no slot are passed over; lengths:
    (rows,), how many of a row's items count, None for all.
    """
    slots = logits.shape[1]
    counts = (items >= 0) & (items < slots)
    if lengths is not None:
        counts &= torch.arange(items.shape[1], device=items.device) < lengths[:, None]
    rows, columns = counts.nonzero(as_tuple=True)
    logits[rows, items[rows, columns].long()] = -torch.inf


def top_k(logits: Tensor, k: int, *, normalized: bool = False) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row, largest first, and their places (rows, k) int32; of equals the first place.

    As log-probabilities, float32, where they are to be `normalized`.
    """
    values, places = logits.sort(dim=-1, descending=True, stable=True)
    best = values[:, :k].contiguous()
    if normalized:
        best = best.float() - logits.float().logsumexp(-1, keepdim=True)
    return best, places[:, :k].to(torch.int32)


def _normed(wide: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `group_norm`, all of it float32."""
    normed = functional.layer_norm(wide, wide.shape[-1:], eps=eps)
    if len(weight) == 1:
        return normed * weight[0].float() + bias[0].float()
    group = groups.long()
    return normed * weight[group].float() + bias[group].float()


def _timed(vectors: Tensor, times: Tensor | None) -> Tensor:
    """(tokens, heads, d_qk), with the times of the tokens after them where there are any."""
    if times is None:
        return vectors.contiguous()
    lanes = times[:, None].to(vectors.dtype).expand(-1, vectors.shape[1], TIME_LANES)
    return torch.cat([vectors, lanes], dim=-1)
