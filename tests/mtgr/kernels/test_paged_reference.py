"""The twin of the kernels over the paged cache computes what SiLU attention is defined to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_batches import FP8, NORMALIZER, SCALE, UNWRITTEN, PagedBatch, Shape
from torch import Tensor

from mtgr import config
from mtgr.kernels.paged import PADDING, TIME_LANES
from mtgr.kernels.paged_reference import attend, store
from mtgr.kernels.silu_attention import silu_attention
from mtgr.kernels.time_buckets import time_buckets
from mtgr.model.masks import causal_mask

requests = st.lists(
    st.tuples(st.integers(0, 60) | st.just(0), st.integers(1, 40) | st.just(1)), min_size=1, max_size=4
).map(tuple)


def wanted(batch: PagedBatch) -> Tensor:
    """Each request by itself, whole, by the definition."""
    shape = batch.shape
    parts = []
    every = (batch.all_queries, batch.keys, batch.values, batch.times)
    for q, k, v, times in zip(*(torch.split(one, batch.lengths.tolist()) for one in every), strict=True):
        bias = None
        if batch.tables.by_position is not None:
            places = torch.arange(len(times))
            distances = (places[:, None] - places).clamp(0, batch.tables.by_position.shape[1] - 1)
            bias = batch.tables.by_position.float()[:, distances]
        if batch.tables.by_time is not None:
            by_time = batch.tables.by_time.float()[:, time_buckets(times[:, None], times)]
            bias = by_time if bias is None else bias + by_time
        q, k, v = (one.float().transpose(0, 1) for one in (q[..., : shape.d_qk], k[..., : shape.d_qk], v))
        mixed = silu_attention(
            q, k, v, causal_mask(len(times)), scale=SCALE, length=round(1 / NORMALIZER), bias=bias
        )
        parts.append(mixed.transpose(0, 1))
    return torch.cat(parts)[batch.new_rows]


@settings(max_examples=40)
@given(
    requests=requests,
    tile_queries=st.sampled_from([1, 3, 16]),
    block_size=st.sampled_from([1, 5, 16]),
    distances=st.sampled_from([0, 1, 40, 400]),
    timed=st.booleans(),
)
def test_any_step_equals_the_definition(
    requests: tuple[tuple[int, int], ...], tile_queries: int, block_size: int, distances: int, timed: bool
) -> None:
    """However a step is cut into tiles and its keys into blocks, with either bias, both or none."""
    batch = PagedBatch(
        Shape(requests, tile_queries, block_size=block_size, distances=distances, timed=timed, d_qk=5)
    )
    output = batch.attend(attend, batch.filled_cache(store))
    torch.testing.assert_close(output, wanted(batch), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cache_dtype", "k_scale", "v_scale"), [(None, 1.0, 1.0), (FP8, 0.5, 4.0)])
def test_a_small_cache_costs_the_rounding_of_what_it_holds(
    dtype: torch.dtype, cache_dtype: torch.dtype | None, k_scale: float, v_scale: float
) -> None:
    """Sums are float32, and times are exact in every format."""
    shape = Shape(((0, 70), (30, 2)), dtype=dtype, cache_dtype=cache_dtype, distances=50, timed=True)
    batch = PagedBatch(replace(shape, k_scale=k_scale, v_scale=v_scale))
    output = batch.attend(attend, batch.filled_cache(store))
    torch.testing.assert_close(output.float(), wanted(batch), atol=1e-3, rtol=1e-2)


def test_padding_is_neither_computed_nor_stored() -> None:
    """Tiles of no request leave the output as it was, slots of no token the cache."""
    batch = PagedBatch(Shape(((3, 20),), padding=3))
    output = batch.attend(attend, batch.filled_cache(store))
    assert (output[20:] == UNWRITTEN).all()
    cache = batch.empty_cache()
    store(batch.keys, batch.values, cache, torch.full_like(batch.slots, PADDING))
    assert cache.isnan().all()


def test_fp8_holds_the_largest_it_can() -> None:
    """What is too large for the format is not made to be no number."""
    batch = PagedBatch(Shape(((0, 4),), cache_dtype=FP8))
    cache = batch.empty_cache()
    store(batch.keys + 1e6, batch.values, cache, batch.slots)
    block, offset = int(batch.slots[0]) // 16, int(batch.slots[0]) % 16
    assert (cache[block, :, offset, : batch.shape.d_qk].float() == 448).all()


def test_a_time_has_the_lanes_that_the_rows_give_it() -> None:
    """The kernels and the model's rows mean the same."""
    assert TIME_LANES == config.TIME_LANES
