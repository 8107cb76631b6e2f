"""The largest logits of each row on the GPU: of each chunk of a row first, then of what the chunks have left.

A logit and its place are one 64-bit number, whose order is that of the logits and, among equals, of the first place: so
no two are equal, and the largest is found, and struck out, by a maximum alone.
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

_CHUNK: Final = 2048
_NOTHING = tl.constexpr(-(1 << 63))


def top_k(logits: Tensor, k: int, *, normalized: bool = False) -> tuple[Tensor, Tensor]:
    """As `mtgr.kernels.token_ops.top_k`, in k passes over what lies in registers: for a k of tens.

    ValueError where a row has fewer than k logits.
    """
    rows, slots = logits.shape
    if not 0 < k <= slots:
        raise ValueError(f"k is {k}, where 1 to {slots} is wanted: a row has no more logits")
    values = torch.empty((rows, k), dtype=torch.float32 if normalized else logits.dtype, device=logits.device)
    places = torch.empty((rows, k), dtype=torch.int32, device=logits.device)
    if not rows:
        return values, places
    chunks = triton.cdiv(slots, _CHUNK)
    best = torch.empty((rows, chunks, k), dtype=torch.int64, device=logits.device)
    sums = torch.empty((rows, chunks, 2), dtype=torch.float32, device=logits.device) if normalized else None
    _best_of_chunk[(rows, chunks)](logits, best, sums, slots, k, logits.stride(0), CHUNK=_CHUNK, num_warps=4)
    left = triton.next_power_of_2(chunks * k)
    _best_of_row[(rows,)](
        best,
        sums,
        values,
        places,
        chunks * k,
        k,
        chunks,
        LEFT=left,
        CHUNKS=triton.next_power_of_2(chunks),
        num_warps=max(1, min(8, left // 256)),
    )
    return values, places


@triton.jit(do_not_specialize=["k"])
def _best_of_chunk(logits, best, sums, slots, k, row_stride, CHUNK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    place = chunk * CHUNK + tl.arange(0, CHUNK)
    logit = tl.load(logits + row * row_stride + place, mask=place < slots, other=float("-inf")).to(tl.float32)
    if sums is not None:
        shift = _finite(tl.max(logit, 0))
        of_chunk = sums + (row * tl.num_programs(1) + chunk) * 2
        tl.store(of_chunk, shift)
        tl.store(of_chunk + 1, tl.sum(tl.exp(logit - shift), 0))
    # -0.0 is made 0.0, and negative numbers, whose bits run the other way, are turned round
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    keys = tl.where(place < slots, (ordered << 32) | (0x7FFFFFFF - place).to(tl.int64), _NOTHING)
    out = best + (row * tl.num_programs(1) + chunk) * k
    for rank in range(k):
        largest = tl.max(keys, 0)
        tl.store(out + rank, largest)
        keys = tl.where(keys == largest, _NOTHING, keys)


@triton.jit(do_not_specialize=["count", "k", "chunks"])
def _best_of_row(best, sums, values, places, count, k, chunks, LEFT: tl.constexpr, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, LEFT)
    keys = tl.load(best + row * count + at, mask=at < count, other=_NOTHING)
    log_sum = 0.0
    if sums is not None:
        chunk = tl.arange(0, CHUNKS)
        of_chunk = sums + (row * chunks + chunk) * 2
        shifts = tl.load(of_chunk, mask=chunk < chunks, other=float("-inf"))
        shift = tl.max(shifts, 0)
        parts = tl.load(of_chunk + 1, mask=chunk < chunks, other=0.0) * tl.exp(shifts - shift)
        log_sum = shift + tl.log(tl.sum(parts, 0))
    for rank in range(k):
        largest = tl.max(keys, 0)
        ordered = (largest >> 32).to(tl.int32)
        bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
        logit = bits.to(tl.float32, bitcast=True) - log_sum
        tl.store(values + row * k + rank, logit.to(values.dtype.element_ty))
        tl.store(places + row * k + rank, 0x7FFFFFFF - (largest & 0xFFFFFFFF).to(tl.int32))
        keys = tl.where(keys == largest, _NOTHING, keys)


@triton.jit
def _finite(largest):
    """What to take from logits before their exponentials; the lowest number there is where all are -inf."""
    return tl.maximum(largest, -3.0e38)
