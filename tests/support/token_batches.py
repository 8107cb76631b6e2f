"""Checks of the fused token operations against their twins, on any device that runs Triton.

It needs torch and the kernels alone, so that a machine that has a GPU and little else can run such tests.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from mtgr.kernels import token_ops, token_ops_triton
from mtgr.kernels.paged import TIME_LANES
from mtgr.kernels.top_k_triton import top_k

GROUPS = 3
FP8 = torch.float8_e4m3fn


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """A few units of the last place of what is written, and two where a device may cut off instead of rounding."""
    last = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    return {"atol": last, "rtol": last}


def check_norms(tokens: int, width: int, dtype: torch.dtype, device: str, shared: bool = False) -> None:
    """All three norms."""
    generator = torch.Generator().manual_seed(tokens * width)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    x, delta, u = numbers(tokens, width), numbers(tokens, width), numbers(tokens, width)
    groups = torch.randint(0, GROUPS, (tokens,), generator=generator, dtype=torch.uint8).to(device)
    rows = 1 if shared else GROUPS
    arguments = (groups, numbers(rows, width), numbers(rows, width), 1e-5)
    near = tolerance(dtype)
    assert_close(token_ops_triton.group_norm(x, *arguments), token_ops.group_norm(x, *arguments), **near)
    assert_close(
        token_ops_triton.gated_group_norm(x, u, *arguments),
        token_ops.gated_group_norm(x, u, *arguments),
        **near,
    )
    found, wanted = (module.add_group_norm(x, delta, *arguments) for module in (token_ops_triton, token_ops))
    assert_close(found[0], wanted[0], **near)
    assert_close(found[1], wanted[1], **near)


def check_split_silu_store(
    tokens: int,
    dtype: torch.dtype,
    device: str,
    *,
    heads: int = 4,
    d_qk: int = 64,
    d_v: int = 64,
    block_size: int = 16,
    timed: bool = False,
    cache_dtype: torch.dtype | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """What is returned and, number by number, what is cached; one token in five is padding, as are the last."""
    generator = torch.Generator().manual_seed(tokens * d_qk)
    projected = torch.randn(tokens, 2 * heads * (d_qk + d_v), generator=generator).to(device, dtype)
    times = None
    if timed:
        times = torch.randint(0, 256, (tokens, TIME_LANES), generator=generator).to(device, dtype)
    blocks = -(-tokens // block_size) + 1
    slots = torch.randperm(blocks * block_size, generator=generator)[:tokens]
    slots = slots.masked_fill(torch.rand(tokens, generator=generator) < 0.2, -1)[: tokens - tokens // 4].to(
        device
    )
    width = d_qk + (TIME_LANES if timed else 0)
    results = []
    for module in (token_ops_triton, token_ops):
        cache = torch.zeros(blocks, heads, block_size, width + d_v, device=device).to(cache_dtype or dtype)
        u, q = module.split_silu_store(
            projected,
            cache,
            slots,
            times,
            heads=heads,
            d_qk=d_qk,
            d_v=d_v,
            k_scale=k_scale,
            v_scale=v_scale,
        )
        lanes = cache.view(torch.uint8) if cache_dtype == FP8 else cache
        results.append((u, q, cache.float(), lanes[..., d_qk:width]))
    found, wanted = results
    near = tolerance(dtype)
    assert_close(found[0], wanted[0], **near)
    assert_close(found[1], wanted[1], **near)
    assert_close(found[3], wanted[3], rtol=0, atol=0)
    parts = [slice(None, d_qk), slice(width, None)]
    for part in parts:
        # in FP8 a number in another type that is off by its last place may round to the neighbour
        around = {"atol": 0.02, "rtol": 0.13} if cache_dtype == FP8 else near
        assert_close(found[2][..., part], wanted[2][..., part], **around)


def check_silu(count: int, dtype: torch.dtype, device: str) -> None:
    """In place, of large and small numbers."""
    x = (8 * torch.randn(count, generator=torch.Generator().manual_seed(count))).to(device, dtype)
    wanted = token_ops.silu_(x.clone())
    assert token_ops_triton.silu_(x) is x
    assert_close(x, wanted, **tolerance(dtype))


def check_mask_seen(rows: int, slots: int, items: int, device: str) -> None:
    """With lengths and without, with items that are no slots."""
    generator = torch.Generator().manual_seed(items)
    seen = torch.randint(-2, slots + 2, (rows, items), generator=generator, dtype=torch.int32).to(device)
    lengths = torch.randint(0, items + 1, (rows,), generator=generator, dtype=torch.int32).to(device)
    for counts in (None, lengths):
        found, wanted = torch.zeros(2, rows, slots, device=device).unbind()
        token_ops_triton.mask_seen(found, seen, counts)
        token_ops.mask_seen(wanted, seen, counts)
        assert torch.equal(found, wanted)


def check_top_k(rows: int, slots: int, k: int, device: str, dtype: torch.dtype = torch.float32) -> None:
    """Equal logits and -inf among them: places are exact too, since of equals the first is listed first."""
    generator = torch.Generator().manual_seed(slots + k)
    logits = torch.randn(rows, slots, generator=generator)
    logits = torch.where(torch.rand(rows, slots, generator=generator) < 0.3, logits.round(), logits)
    logits[:, ::3] = -torch.inf
    logits[0, : slots // 2] = 2.0
    logits = logits.to(device, dtype)
    found, wanted = top_k(logits, k), token_ops.top_k(logits, k)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    found, wanted = top_k(logits, k, normalized=True), token_ops.top_k(logits, k, normalized=True)
    assert_close(found[0], wanted[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(found[1], wanted[1])
