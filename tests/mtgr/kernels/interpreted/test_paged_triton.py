"""Paged attention and its cache update in Triton equal the twin; the interpreter is slow, so batches are small."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_batches import FP8, UNWRITTEN, PagedBatch, Shape
from torch.testing import assert_close

from mtgr.kernels import paged_reference, paged_triton
from mtgr.kernels.launches import TileLaunch

FEW = settings(max_examples=12)

few_requests = st.lists(
    st.tuples(st.integers(0, 70) | st.just(0), st.integers(1, 30) | st.just(1)), min_size=1, max_size=3
).map(tuple)
single_tokens = st.lists(st.tuples(st.integers(0, 100), st.just(1)), min_size=1, max_size=3).map(tuple)


def check_attend(shape: Shape, atol: float, launch: TileLaunch | None = None) -> None:
    """The kernel on the cache that the twin has filled."""
    batch = PagedBatch(shape)
    cache = batch.filled_cache(paged_reference.store)
    assert_close(
        batch.attend(paged_triton.attend, cache, launch=launch),
        batch.attend(paged_reference.attend, cache),
        atol=atol,
        rtol=atol,
    )


@FEW
@given(
    requests=few_requests,
    tile_queries=st.sampled_from([16, 32]),
    block_size=st.sampled_from([16, 32, 64]),
    d_qk=st.sampled_from([8, 16, 25]),
    distances=st.sampled_from([0, 1, 40, 400]),
    timed=st.booleans(),
    keys=st.sampled_from([16, 32]),
)
def test_tiles_of_many_queries_equal_the_twin(
    requests: tuple[tuple[int, int], ...],
    tile_queries: int,
    block_size: int,
    d_qk: int,
    distances: int,
    timed: bool,
    keys: int,
) -> None:
    """Whatever is cached and new, blocks of keys larger and smaller than the cache's, with any bias."""
    shape = Shape(
        requests,
        tile_queries,
        block_size=block_size,
        d_qk=d_qk,
        distances=distances,
        timed=timed,
        heads=1,
        padding=2,
    )
    check_attend(shape, 2e-6, TileLaunch(keys, warps=4, stages=2))


@FEW
@given(
    requests=single_tokens,
    block_size=st.sampled_from([16, 128]),
    d_v=st.sampled_from([4, 25]),
    distances=st.sampled_from([0, 40]),
    timed=st.booleans(),
    splits=st.sampled_from([1, 2, 8]),
)
def test_single_queries_equal_the_twin(
    requests: tuple[tuple[int, int], ...], block_size: int, d_v: int, distances: int, timed: bool, splits: int
) -> None:
    """However many programs share a row's keys, also more than it has blocks of keys."""
    shape = Shape(
        requests, 1, block_size=block_size, d_v=d_v, distances=distances, timed=timed, heads=1, padding=1
    )
    check_attend(shape, 2e-6, TileLaunch(16, warps=4, stages=2, splits=splits))


@pytest.mark.parametrize("tile_queries", [1, 16])
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "atol"),
    # the interpreter rounds to bfloat16 by cutting off
    [(torch.bfloat16, None, 1e-2), (torch.float16, None, 1e-3), (torch.float16, FP8, 1e-3)],
)
def test_half_precision_and_fp8_equal_the_twin(
    dtype: torch.dtype, cache_dtype: torch.dtype | None, atol: float, tile_queries: int
) -> None:
    """Keys and values are scaled back as they are read, and times are exact in every format."""
    scale = 1.0 if cache_dtype is None else 0.5
    check_attend(
        Shape(
            ((33, 1), (0, 1), (70, 1)),
            tile_queries,
            dtype=dtype,
            cache_dtype=cache_dtype,
            d_qk=25,
            timed=True,
            distances=30,
            k_scale=scale,
            v_scale=4 * scale,
        ),
        atol,
    )


@pytest.mark.parametrize(("d_qk", "d_v"), [(64, 32), (16, 128)])
def test_widths_of_keys_and_values_may_differ(d_qk: int, d_v: int) -> None:
    """Each is padded to a power of two of its own."""
    check_attend(Shape(((20, 17),), 32, d_qk=d_qk, d_v=d_v), 1e-5)


def test_programs_go_on_from_tile_to_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more tiles than programs at once, whether padding or not."""
    monkeypatch.setattr(paged_triton, "MOST_PROGRAMS", 3)
    check_attend(Shape(((0, 40), (3, 1), (20, 17)), 16, padding=7), 2e-6)


def test_padding_is_not_computed() -> None:
    """What no tile covers is left as it was."""
    batch = PagedBatch(Shape(((3, 20),), padding=3))
    output = batch.attend(paged_triton.attend, batch.filled_cache(paged_reference.store))
    assert (output[20:] == UNWRITTEN).all()


@pytest.mark.parametrize("tile_queries", [2, 48])
def test_tiles_that_no_tensor_core_takes_are_refused(tile_queries: int) -> None:
    """By name and value."""
    batch = PagedBatch(Shape(((3, 20),), tile_queries))
    with pytest.raises(ValueError, match=f"tile_queries is {tile_queries}"):
        batch.attend(paged_triton.attend, batch.filled_cache(paged_reference.store))


@FEW
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    fp8=st.booleans(),
    timed=st.booleans(),
    heads=st.integers(1, 5),
    d_qk=st.sampled_from([8, 25]),
)
def test_what_is_stored_equals_the_twin_byte_for_byte(
    dtype: torch.dtype, fp8: bool, timed: bool, heads: int, d_qk: int
) -> None:
    """In every format, with times and without, and nothing beside it is touched."""
    shape = Shape(
        ((0, 9), (4, 3)),
        dtype=dtype,
        cache_dtype=FP8 if fp8 else None,
        timed=timed,
        heads=heads,
        d_qk=d_qk,
        k_scale=2.0 if fp8 else 1.0,
        v_scale=0.25 if fp8 else 1.0,
    )
    batch = PagedBatch(shape)
    batch.slots[3] = -1
    stored = batch.filled_cache(paged_triton.store).view(torch.uint8)
    assert torch.equal(stored, batch.filled_cache(paged_reference.store).view(torch.uint8))
