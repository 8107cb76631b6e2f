"""The compiled kernel on the CPU equals its twin, however a step's work is cut and cached, on any number of threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_batches import UNWRITTEN, PagedBatch, Shape
from torch.testing import assert_close

from mtgr.kernels import paged_cpu, paged_reference
from mtgr.kernels.paged import PADDING

requests = st.lists(
    st.tuples(st.integers(0, 150) | st.just(0), st.integers(1, 150) | st.sampled_from([1, 2])),
    min_size=1,
    max_size=5,
).map(tuple)


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """No example waits for the compiler."""
    paged_cpu.warm_up()


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many for torch, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check(shape: Shape, atol: float = 5e-6) -> None:
    """The compiled kernels, both, against the twins."""
    batch = PagedBatch(shape)
    assert_close(
        batch.attend(paged_cpu.attend, batch.filled_cache(paged_cpu.store)),
        batch.attend(paged_reference.attend, batch.filled_cache(paged_reference.store)),
        atol=atol,
        rtol=atol,
    )


@settings(max_examples=60)
@given(
    requests=requests,
    tile_queries=st.sampled_from([1, 7, 16, 64, 100]),
    block_size=st.sampled_from([1, 5, 16, 32]),
    widths=st.sampled_from([(8, 4), (25, 25), (32, 32), (16, 80), (64, 33), (128, 128)]),
    distances=st.sampled_from([0, 1, 40, 400]),
    timed=st.booleans(),
)
def test_any_step_equals_the_twin(
    requests: tuple[tuple[int, int], ...],
    tile_queries: int,
    block_size: int,
    widths: tuple[int, int],
    distances: int,
    timed: bool,
) -> None:
    """Prompts, chunks of prompts and single new tokens, side by side, with either bias, both or none.

    What a cache holds that is no request's own is no number, and must not be read.
    """
    d_qk, d_v = widths
    check(
        Shape(
            requests,
            tile_queries,
            d_qk=d_qk,
            d_v=d_v,
            block_size=block_size,
            distances=distances,
            timed=timed,
            padding=2,
        )
    )


@pytest.mark.parametrize("timed", [False, True])
def test_threads_share_the_work(threads: int, timed: bool) -> None:
    """Tiles and heads are computed once, whoever takes them; more threads than work are no harm."""
    check(Shape(((0, 300), (70, 1), (5, 90)), 16, heads=3, distances=200, timed=timed))
    check(Shape(((5, 1),), 64, heads=1, timed=timed))


@pytest.mark.parametrize("widths", [(8, 4), (32, 64)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype, widths: tuple[int, int]) -> None:
    """A cache of half the size costs the rounding of what it holds, not more: times have none."""
    d_qk, d_v = widths
    shape = Shape(
        ((0, 140), (100, 2), (77, 1)), 64, d_qk=d_qk, d_v=d_v, dtype=dtype, distances=90, timed=True
    )
    # both sum in float32: apart from its order, only the output is rounded
    check(shape, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("number", [1e-7, 6e4, float("inf"), float("nan")])
def test_any_float16_is_read_as_what_it_is(number: float) -> None:
    """The smallest, which are denormal, the largest, and what is no number."""
    batch = PagedBatch(Shape(((2, 1),), 64, dtype=torch.float16, d_v=17))
    batch.values[:] = number
    assert_close(
        batch.attend(paged_cpu.attend, batch.filled_cache(paged_cpu.store)),
        batch.attend(paged_reference.attend, batch.filled_cache(paged_reference.store)),
        atol=0.0,
        rtol=1e-3,
        equal_nan=True,
    )


def test_scores_of_any_size_have_their_silu() -> None:
    """Scores far from 0 neither overflow nor lose what they are."""
    for size in (1e-3, 1.0, 30.0, 1e4, 1e15):
        batch = PagedBatch(Shape(((0, 70), (40, 1)), 64, d_qk=16))
        batch.query *= size
        computed = batch.attend(paged_cpu.attend, batch.filled_cache(paged_cpu.store))
        twin = batch.attend(paged_reference.attend, batch.filled_cache(paged_reference.store))
        assert_close(computed / size, twin / size, atol=5e-6, rtol=5e-6)


def test_strided_queries_keys_and_outputs_are_taken_as_they_are() -> None:
    """A layer has them in one matrix, side by side."""
    batch = PagedBatch(Shape(((30, 40),), 64, d_qk=16, d_v=16))
    keys, values, cache = batch.keys, batch.values, batch.empty_cache()
    joined = torch.cat([keys, values], dim=-1).flatten(1)
    batch.keys, batch.values = joined.view(-1, 2, 32)[..., :16], joined.view(-1, 2, 32)[..., 16:]
    batch.query = torch.cat([batch.query, batch.query], dim=1)[:, :2]
    paged_cpu.store(batch.keys, batch.values, cache, batch.slots)
    assert not batch.keys.is_contiguous()
    assert not batch.query.is_contiguous()
    assert_close(
        batch.attend(paged_cpu.attend, cache),
        batch.attend(paged_reference.attend, batch.filled_cache(paged_reference.store)),
        atol=5e-6,
        rtol=5e-6,
    )


def test_padding_is_neither_computed_nor_stored() -> None:
    """Tiles of no request leave the output as it was, slots of no token the cache."""
    batch = PagedBatch(Shape(((3, 20),), padding=3))
    output = batch.attend(paged_cpu.attend, batch.filled_cache(paged_cpu.store))
    assert (output[20:] == UNWRITTEN).all()
    cache = batch.empty_cache()
    paged_cpu.store(batch.keys, batch.values, cache, torch.full_like(batch.slots, PADDING))
    assert cache.isnan().all()


def test_a_step_without_tokens_does_nothing() -> None:
    """Nothing to do is nothing done."""
    batch = PagedBatch(Shape(((0, 5),), 16))
    cache, nothing = batch.filled_cache(paged_cpu.store), torch.empty(0, 2, 4)
    paged_cpu.store(batch.keys[:0], batch.values[:0], cache, batch.slots[:0])
    step = batch.step()
    empty = type(step)(step.query_starts, step.lengths, step.block_table, step.tiles[:0], 16)
    paged_cpu.attend(batch.query, cache, nothing, empty, scale=1.0, normalizer=1.0)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a processor of this architecture")
def test_a_processor_with_shorter_vectors_computes_the_same() -> None:
    """In a process that compiles for one from its start on."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "threads or half", __file__],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


def test_vllm_may_ask_the_compiler_for_its_attributes() -> None:
    """A CPU worker of vLLM, started after the kernels, asks every module's objects for theirs."""
    from llvmlite.binding import ffi

    assert isinstance(vars(ffi.lib), dict)
