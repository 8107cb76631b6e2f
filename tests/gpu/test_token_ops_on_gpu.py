"""The fused token operations equal their twins on the GPU."""

from __future__ import annotations

import pytest
import token_batches as check
import torch

from mtgr.kernels import token_ops, token_ops_triton
from mtgr.kernels.top_k_triton import top_k

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [50, 1024, 4096])
def test_norms(width: int, dtype: torch.dtype) -> None:
    """By themselves, after a sum and before a gate; a weight for each group and one for all."""
    check.check_norms(300, width, dtype, "cuda")
    check.check_norms(300, width, dtype, "cuda", shared=True)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_split_silu_store(dtype: torch.dtype, timed: bool) -> None:
    """At the shape of the large models and at another."""
    check.check_split_silu_store(300, dtype, "cuda", heads=16, timed=timed)
    check.check_split_silu_store(33, dtype, "cuda", heads=3, d_qk=25, d_v=50, timed=timed, block_size=64)


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_split_silu_store_in_fp8(dtype: torch.dtype, timed: bool) -> None:
    """With scales, and times as bytes."""
    check.check_split_silu_store(
        300,
        dtype,
        "cuda",
        heads=16,
        timed=timed,
        cache_dtype=check.FP8,
        k_scale=0.05,
        v_scale=0.02,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_silu(dtype: torch.dtype) -> None:
    """In place."""
    check.check_silu(100_001, dtype, "cuda")


@pytest.mark.parametrize("items", [1, 100, 1300])
def test_mask_seen(items: int) -> None:
    """With lengths and without."""
    check.check_mask_seen(64, 50_000, items, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("slots", "k"), [(100, 10), (50_000, 1), (50_000, 10), (50_001, 64)])
def test_top_k(slots: int, k: int, dtype: torch.dtype) -> None:
    """Scores and places, of equals the first."""
    check.check_top_k(70, slots, k, "cuda", dtype)


def test_a_captured_graph_follows_its_buffers() -> None:
    """The operations of a layer and of a list, captured once and replayed on other numbers."""
    x, delta = torch.randn(2, 64, 1024, device="cuda", dtype=torch.bfloat16).unbind()
    groups = torch.zeros(64, dtype=torch.uint8, device="cuda")
    weight, bias = torch.randn(2, 3, 1024, device="cuda", dtype=torch.bfloat16).unbind()
    logits = torch.randn(64, 5000, device="cuda")
    seen = torch.full((64, 100), -1, dtype=torch.int32, device="cuda")

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        normed = token_ops_triton.add_group_norm(x, delta, groups, weight, bias, 1e-6)[1]
        token_ops_triton.mask_seen(logits, seen)
        return normed, top_k(logits, 10)[1]

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        normed, places = run()
    x.normal_()
    groups.random_(0, 3)
    logits.normal_()
    seen[:, :50].random_(0, 5000)
    wanted = logits.clone()
    token_ops.mask_seen(wanted, seen)
    graph.replay()
    right = token_ops.add_group_norm(x, delta, groups, weight, bias, 1e-6)[1]
    torch.testing.assert_close(normed, right, atol=2e-2, rtol=2e-2)
    assert torch.equal(places, token_ops.top_k(wanted, 10)[1])
