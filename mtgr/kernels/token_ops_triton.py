"""`mtgr.kernels.token_ops` on the GPU: each one pass over its tokens, since memory is all that bounds them."""

# Triton gives kernels their types, and their constants have the names of constants.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtgr.kernels.device_functions import silu, write_lanes, write_numbers
from mtgr.kernels.launches import row_launch, silu_mode
from mtgr.kernels.paged import TIME_LANES

_SILU_BLOCK: Final = 2048
_SEEN_BLOCK: Final = 512


def group_norm(x: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `mtgr.kernels.token_ops.group_norm`."""
    return _norm(x, None, None, groups, weight, bias, eps)[1]


def add_group_norm(
    x: Tensor, delta: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `mtgr.kernels.token_ops.add_group_norm`."""
    return _norm(x, delta, None, groups, weight, bias, eps)


def gated_group_norm(
    attended: Tensor, u: Tensor, groups: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """As `mtgr.kernels.token_ops.gated_group_norm`."""
    return _norm(attended, None, u, groups, weight, bias, eps)[1]


def silu_(x: Tensor) -> Tensor:
    """As `mtgr.kernels.token_ops.silu_`; ValueError where x is not contiguous."""
    if not x.is_contiguous():
        raise ValueError("x is not contiguous")
    if x.numel():
        blocks = triton.cdiv(x.numel(), _SILU_BLOCK)
        _silu[(blocks,)](x, x.numel(), BLOCK=_SILU_BLOCK, MODE=silu_mode(x.dtype), num_warps=8)
    return x


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
    """As `mtgr.kernels.token_ops.split_silu_store`."""
    tokens = len(projected)
    head_size = d_qk + (0 if times is None else TIME_LANES)
    u = projected.new_empty((tokens, heads * d_v))
    q = projected.new_empty((tokens, heads, head_size))
    if not tokens:
        return u, q
    per_program, warps = row_launch(heads, max(d_qk, d_v))
    _split_silu_store[(tokens, triton.cdiv(heads, per_program))](
        projected,
        kv_cache,
        slots,
        times,
        u,
        q,
        1.0 / k_scale,
        1.0 / v_scale,
        0 if times is None else times.stride(0),
        len(slots),
        HEADS=heads,
        D_QK=d_qk,
        HEAD_SIZE=head_size,
        D_V=d_v,
        BLOCK_SIZE=kv_cache.shape[2],
        CACHE_BLOCK=kv_cache.stride(0),
        CACHE_HEAD=kv_cache.stride(1),
        CACHE_ROW=kv_cache.stride(2),
        TOKEN=projected.stride(0),
        BLOCK_H=per_program,
        BLOCK_D=triton.next_power_of_2(d_qk),
        BLOCK_V=triton.next_power_of_2(d_v),
        BYTES=kv_cache.dtype == torch.float8_e4m3fn,
        MODE=silu_mode(projected.dtype),
        num_warps=warps,
    )
    return u, q


def mask_seen(logits: Tensor, items: Tensor, lengths: Tensor | None = None) -> None:
    """As `mtgr.kernels.token_ops.mask_seen`."""
    rows, most = items.shape
    if rows and most:
        _mask_seen[(rows, triton.cdiv(most, _SEEN_BLOCK))](
            logits,
            items,
            lengths,
            logits.shape[1],
            most,
            logits.stride(0),
            items.stride(0),
            BLOCK=_SEEN_BLOCK,
        )


def _norm(
    x: Tensor,
    delta: Tensor | None,
    gate: Tensor | None,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """x + delta, or x where there is none to add, and its GroupLN, times the gate where there is one."""
    tokens, width = x.shape
    normed = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    total = x if delta is None else torch.empty_like(normed)
    if tokens:
        block = triton.next_power_of_2(width)
        _group_norm[(tokens,)](
            x,
            delta,
            gate,
            groups,
            weight,
            bias,
            total,
            normed,
            eps,
            x.stride(0),
            0 if delta is None else delta.stride(0),
            0 if gate is None else gate.stride(0),
            WIDTH=width,
            BLOCK=block,
            SHARED=len(weight) == 1,
            num_warps=max(1, min(8, block // 256)),
        )
    return total, normed


@triton.jit(do_not_specialize_on_alignment=["groups"])
def _group_norm(
    x,
    delta,
    gate,
    groups,
    weight,
    bias,
    total,
    normed,
    eps,
    x_token,
    delta_token,
    gate_token,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    # what does not hang on each other is read before any of it is waited for
    row = tl.load(x + token * x_token + column, mask=inside, other=0.0).to(tl.float32)
    if delta is not None:
        row += tl.load(delta + token * delta_token + column, mask=inside, other=0.0).to(tl.float32)
        summed = row.to(total.dtype.element_ty)
        tl.store(total + token * WIDTH + column, summed, mask=inside)
        row = summed.to(tl.float32)
    if gate is not None:
        by = tl.load(gate + token * gate_token + column, mask=inside, other=0.0).to(tl.float32)
    first = column
    if not SHARED:
        first += tl.load(groups + token).to(tl.int32) * WIDTH
    scale = tl.load(weight + first, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + first, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(row, 0) / WIDTH
    centred = tl.where(inside, row - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / WIDTH
    result = centred * tl.rsqrt(variance + eps) * scale + shift
    if gate is not None:
        result *= by
    tl.store(normed + token * WIDTH + column, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _silu(x, count, BLOCK: tl.constexpr, MODE: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    numbers = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(x + at, silu(numbers, MODE).to(x.dtype.element_ty), mask=at < count)


@triton.jit(do_not_specialize=["stored"], do_not_specialize_on_alignment=["slots", "times"])
def _split_silu_store(
    projected,
    cache,
    slots,
    times,
    u,
    q,
    per_k_scale,
    per_v_scale,
    times_token,
    stored,
    HEADS: tl.constexpr,
    D_QK: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CACHE_BLOCK: tl.constexpr,
    CACHE_HEAD: tl.constexpr,
    CACHE_ROW: tl.constexpr,
    TOKEN: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BYTES: tl.constexpr,
    MODE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token, mask=token < stored, other=-1).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    e = tl.arange(0, BLOCK_V)[None, :]
    in_qk = (h < HEADS) & (d < D_QK)
    in_v = (h < HEADS) & (e < D_V)
    of_u = projected + token * TOKEN + h * D_V + e
    of_q = projected + token * TOKEN + 2 * HEADS * D_V + h * D_QK + d
    numbers_u = tl.load(of_u, mask=in_v, other=0.0).to(tl.float32)
    numbers_v = tl.load(of_u + HEADS * D_V, mask=in_v, other=0.0).to(tl.float32)
    numbers_q = tl.load(of_q, mask=in_qk, other=0.0).to(tl.float32)
    numbers_k = tl.load(of_q + HEADS * D_QK, mask=in_qk, other=0.0).to(tl.float32)
    dtype = projected.dtype.element_ty
    tl.store(u + token * (HEADS * D_V) + h * D_V + e, silu(numbers_u, MODE).to(dtype), mask=in_v)
    of_out = q + token * (HEADS * HEAD_SIZE) + h * HEAD_SIZE + d
    tl.store(of_out, silu(numbers_q, MODE).to(dtype), mask=in_qk)
    row = cache + (slot // BLOCK_SIZE) * CACHE_BLOCK + h * CACHE_HEAD + (slot % BLOCK_SIZE) * CACHE_ROW
    kept = slot >= 0
    # in the type of the product first: what is cached is what would have been stored by itself
    write_numbers(row + d, silu(numbers_k, MODE).to(dtype), in_qk & kept, per_k_scale, BYTES)
    write_numbers(row + HEAD_SIZE + e, silu(numbers_v, MODE).to(dtype), in_v & kept, per_v_scale, BYTES)
    if times is not None:
        lane = tl.arange(0, HEAD_SIZE - D_QK)[None, :]
        time = tl.load(times + token * times_token + lane)
        inside = (h < HEADS) & (lane < HEAD_SIZE - D_QK)
        of_lane = q + token * (HEADS * HEAD_SIZE) + h * HEAD_SIZE + D_QK + lane
        time = tl.broadcast_to(time, [BLOCK_H, HEAD_SIZE - D_QK])
        tl.store(of_lane, time.to(dtype), mask=inside)
        write_lanes(row + D_QK + lane, time, inside & kept, BYTES)


@triton.jit(do_not_specialize=["most", "items_row"], do_not_specialize_on_alignment=["items", "lengths"])
def _mask_seen(logits, items, lengths, slots, most, logits_row, items_row, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    count = most
    if lengths is not None:
        count = tl.minimum(count, tl.load(lengths + row).to(tl.int32))
    item = tl.load(items + row * items_row + at, mask=at < count, other=-1)
    tl.store(logits + row * logits_row + item, float("-inf"), mask=(item >= 0) & (item < slots))
