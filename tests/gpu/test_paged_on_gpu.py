"""Paged attention and its cache update equal their twins on the GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged_batches import FP8, NORMALIZER, SCALE, UNWRITTEN, PagedBatch, Shape
from torch import Tensor
from torch.testing import assert_close

from mtgr.kernels import paged_reference, paged_triton
from mtgr.kernels.launches import TileLaunch
from mtgr.kernels.paged import PADDING, PagedStep

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# a prompt, a chunk of a longer one, single new tokens beside short and long histories
MIXED = ((0, 300), (500, 70), (37, 1), (0, 1), (1000, 1), (63, 65))
SINGLE = ((0, 1), (15, 1), (16, 1), (200, 1), (1000, 1), (2047, 1))

EXACT = {"distances": 0, "timed": False}
BIASED = {"distances": 700, "timed": True}


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a part of the largest number."""
    assert not found.isnan().any()
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def check(shape: Shape, launch: TileLaunch | None = None) -> None:
    """The kernel and its twin on one cache."""
    batch = PagedBatch(shape, "cuda")
    cache = batch.filled_cache(paged_reference.store)
    found = batch.attend(paged_triton.attend, cache, launch=launch)
    wanted = batch.attend(paged_reference.attend, cache)
    if shape.padding:
        assert (found[-shape.padding :] == UNWRITTEN).all()
        found, wanted = found[: -shape.padding], wanted[: -shape.padding]
    # weights are rounded to the format of the queries before they meet the values, results when they are written
    assert error(found, wanted) < {F32: 1e-5, F16: 2e-3, BF16: 1.6e-2}[shape.dtype]


@pytest.mark.parametrize("bias", [EXACT, BIASED], ids=["plain", "biased"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("tile_queries", [1, 16, 64, 128])
def test_every_tile_and_format(tile_queries: int, dtype: torch.dtype, bias: dict[str, int]) -> None:
    """At the head size of the large models."""
    requests = SINGLE if tile_queries == 1 else MIXED
    check(Shape(requests, tile_queries, heads=4, d_qk=64, d_v=64, dtype=dtype, padding=5, **bias))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("tile_queries", [1, 64])
@pytest.mark.parametrize(("d_qk", "d_v"), [(16, 16), (25, 25), (50, 25), (32, 128), (128, 128), (256, 256)])
def test_every_width(d_qk: int, d_v: int, tile_queries: int, dtype: torch.dtype) -> None:
    """Powers of two and others, keys and values alike and not."""
    requests = SINGLE if tile_queries == 1 else MIXED
    timed = d_qk % 4 != 0
    check(Shape(requests, tile_queries, heads=2, d_qk=d_qk, d_v=d_v, dtype=dtype, timed=timed))


@pytest.mark.parametrize("tile_queries", [1, 64])
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_every_block_size(block_size: int, tile_queries: int) -> None:
    """Blocks of the cache larger than a block of keys, and smaller."""
    requests = SINGLE if tile_queries == 1 else MIXED
    check(Shape(requests, tile_queries, heads=2, d_qk=64, d_v=64, dtype=BF16, block_size=block_size))


@pytest.mark.parametrize("bias", [EXACT, BIASED], ids=["plain", "biased"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("tile_queries", [1, 64])
def test_an_fp8_cache(tile_queries: int, dtype: torch.dtype, bias: dict[str, int]) -> None:
    """Read with its scales, and with times that are exact."""
    check(
        Shape(
            SINGLE if tile_queries == 1 else MIXED,
            tile_queries,
            heads=2,
            d_qk=64,
            d_v=64,
            dtype=dtype,
            cache_dtype=FP8,
            k_scale=0.5,
            v_scale=2.0,
            **bias,
        )
    )


@pytest.mark.parametrize("splits", [1, 2, 16])
def test_any_number_of_programs_may_share_a_row(splits: int) -> None:
    """Also more of them than a short row has keys for."""
    shape = Shape(SINGLE, 1, heads=4, d_qk=64, d_v=64, dtype=BF16, padding=2)
    check(shape, TileLaunch(64, warps=4, stages=3, splits=splits))


def test_programs_go_on_from_tile_to_tile() -> None:
    """With more tiles and heads than a launch has programs, and with more padding."""
    check(
        Shape(tuple((user, 70) for user in range(64)), 16, heads=16, d_qk=64, d_v=64, dtype=BF16, padding=900)
    )


def test_silu_by_tanh_is_near() -> None:
    """Half the instructions of the special function unit cost less than bfloat16 does."""
    shape = Shape(MIXED, 64, heads=4, d_qk=64, d_v=64, dtype=BF16)
    check(shape, TileLaunch(64, warps=4, stages=3, tanh=True))


requests = st.lists(
    st.tuples(st.integers(0, 300) | st.just(0), st.integers(1, 200) | st.just(1)), min_size=1, max_size=12
).map(tuple)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(requests=requests, tile_queries=st.sampled_from([16, 64]), padding=st.integers(0, 3))
def test_any_step_equals_the_twin(
    requests: tuple[tuple[int, int], ...], tile_queries: int, padding: int
) -> None:
    """Whatever is cached and new beside each other."""
    check(Shape(requests, tile_queries, heads=4, d_qk=64, d_v=64, dtype=BF16, padding=padding))


def test_a_token_decoded_is_a_token_of_a_prompt() -> None:
    """The last token of each request is the same by itself and at the end of a tile, up to the rounding of weights."""
    whole = Shape(tuple((0, old + new) for old, new in SINGLE), 64, heads=4, d_qk=64, d_v=64, dtype=BF16)
    prompts = PagedBatch(whole, "cuda")
    cache = prompts.filled_cache(paged_triton.store)
    last = torch.from_numpy(prompts.starts[1:] - 1).cuda()
    of_prompts = prompts.attend(paged_triton.attend, cache)[last]
    singles = PagedBatch(dataclasses.replace(whole, requests=SINGLE, tile_queries=1), "cuda")
    singles.query, singles.table = prompts.query[last], prompts.table
    assert error(singles.attend(paged_triton.attend, cache), of_prompts) < 1.6e-2


@pytest.mark.parametrize("tile_queries", [1, 64])
def test_a_captured_graph_computes_whatever_its_buffers_hold(tile_queries: int) -> None:
    """Captured once with many tiles, replayed with other requests, tables and lengths and with fewer tiles."""
    tiles, rows, blocks, tokens = 24, 8, 80, 800
    many = ((400, 30), (0, 200), (70, 1), (900, 77)) if tile_queries == 64 else SINGLE
    steps = [many, many[:1], (*many[1:], (5, 1))]
    base = Shape(many, tile_queries, heads=4, d_qk=64, d_v=64, dtype=BF16)
    largest = [PagedBatch(dataclasses.replace(base, requests=some), "cuda") for some in steps]
    cache = torch.zeros(max(batch.blocks for batch in largest), 4, 16, 128, device="cuda", dtype=BF16)
    query = torch.zeros(tokens, 4, 64, device="cuda", dtype=BF16)
    output = torch.zeros_like(query)

    def whole(*shape: int) -> Tensor:
        return torch.zeros(shape, device="cuda", dtype=torch.int32)

    step = PagedStep(whole(rows + 1), whole(rows), whole(rows, blocks * 2), whole(tiles, 2), tile_queries)
    step.tiles.fill_(PADDING)

    def run() -> None:
        paged_triton.attend(query, cache, output, step, scale=SCALE, normalizer=NORMALIZER)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for batch in largest:
        filled = batch.filled_cache(paged_reference.store)
        cache[: len(filled)].copy_(filled)
        query[: len(batch.query)].copy_(batch.query)
        planned = batch.step()
        step.query_starts[: len(planned.query_starts)].copy_(planned.query_starts)
        step.lengths[: len(planned.lengths)].copy_(planned.lengths)
        step.block_table[: len(planned.block_table), : planned.block_table.shape[1]].copy_(
            planned.block_table
        )
        step.tiles.fill_(PADDING)
        step.tiles[: len(planned.tiles)].copy_(planned.tiles)
        output.fill_(UNWRITTEN)
        graph.replay()
        wanted = batch.attend(paged_reference.attend, filled)
        assert error(output[: len(wanted)], wanted) < 1.6e-2
        assert (output[len(wanted) :] == UNWRITTEN).all()


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("cache_dtype", [None, FP8], ids=str)
def test_what_is_stored_equals_the_twin_byte_for_byte(
    dtype: torch.dtype, cache_dtype: torch.dtype | None, timed: bool
) -> None:
    """In every format, rounded as torch does, the largest number where one is too large."""
    scale = 1.0 if cache_dtype is None else 0.37
    shape = Shape(MIXED, heads=3, d_qk=64, d_v=50, dtype=dtype, cache_dtype=cache_dtype, timed=timed)
    batch = PagedBatch(dataclasses.replace(shape, k_scale=scale, v_scale=2 * scale), "cuda")
    batch.keys[..., : shape.d_qk] = torch.randn_like(batch.keys[..., : shape.d_qk]) * 200
    batch.values = torch.randn_like(batch.values)
    batch.slots[::7] = PADDING
    stored = batch.filled_cache(paged_triton.store).view(torch.uint8)
    assert_close(stored, batch.filled_cache(paged_reference.store).view(torch.uint8), rtol=0, atol=0)
