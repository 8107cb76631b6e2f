"""SiLU attention on the paged cache equals the definition, however a step's work is cut and cached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtgr.config import TIME_LANES
from mtgr.kernels.silu_attention import silu_attention
from mtgr.model.bias import TIME_BUCKETS, time_buckets
from mtgr.model.masks import causal_mask
from mtgr.serving import paged_attention
from mtgr.serving.paged_attention import BiasTables, attend, plan_tiles, store

HEADS, D_QK, D_V = 2, 8, 4
SCALE, LENGTH = 0.3, 50

# (tokens cached before, new tokens) of each request of a step
steps = st.lists(
    st.tuples(st.integers(0, 150) | st.just(0), st.integers(1, 150) | st.just(1)), min_size=1, max_size=9
)


class Batch:
    """Random requests whose keys and values lie scattered over a cache full of old numbers.

    distances: how many the bias by position knows, 0 for no such bias; timed: whether there is one by time. Times are
    anything from 1970 to 2106, in any order.
    """

    def __init__(
        self,
        requests: list[tuple[int, int]],
        block_size: int,
        dtype: torch.dtype = torch.float32,
        *,
        distances: int = 0,
        timed: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(len(requests) + block_size)
        self.block_size = block_size
        self.cached = [cached for cached, _ in requests]
        self.new = [new for _, new in requests]
        lengths = [cached + new for cached, new in requests]
        q, k, v = (
            [torch.randn(length, HEADS, width, generator=generator).to(dtype) for length in lengths]
            for width in (D_QK, D_QK, D_V)
        )
        self.keys, self.values, self.all_queries = k, v, q
        self.times = [self._some_times(length, generator) for length in lengths]
        self.tables = BiasTables(
            torch.randn(HEADS, distances, generator=generator).to(dtype) if distances else None,
            torch.randn(HEADS, TIME_BUCKETS, generator=generator).to(dtype) if timed else None,
        )
        self.queries = [
            self._timed(one, times)[cached:]
            for one, times, cached in zip(q, self.times, self.cached, strict=True)
        ]
        blocks = [-(-length // block_size) for length in lengths]
        total = sum(blocks) + 1
        width = D_QK + (TIME_LANES if timed else 0) + D_V
        self.cache = 1e3 * torch.randn(total, HEADS, block_size, width, generator=generator).to(dtype)
        free = (1 + torch.randperm(total - 1, generator=generator)).tolist()
        # what is past a request's blocks is whatever stood there before
        self.table = np.full((len(requests), max(blocks) + 2), total - 1, np.int32)
        for row, count in enumerate(blocks):
            self.table[row, :count] = [free.pop() for _ in range(count)]
        self.lengths = np.array(lengths, np.int32)
        self.starts = np.concatenate([[0], np.cumsum(self.new)]).astype(np.int32)

    @staticmethod
    def _some_times(length: int, generator: torch.Generator) -> Tensor:
        """Some near each other, so that every bucket is met, some anywhere, and some 0, as a candidate's."""
        near = torch.randint(0, 2, (length,), generator=generator) * 2.0 ** (
            32 * torch.rand(length, generator=generator, dtype=torch.float64)
        )
        start = int(torch.randint(0, 2**32, (1,), generator=generator))
        times = (start + near.long()).clamp(max=2**32 - 1)
        return times.masked_fill(torch.rand(length, generator=generator) < 0.1, 0)

    def _timed(self, vectors: Tensor, times: Tensor) -> Tensor:
        if self.tables.by_time is None:
            return vectors
        lanes = torch.stack([times >> 8 * byte & 255 for byte in range(TIME_LANES)], dim=-1)
        return torch.cat([vectors, lanes.unsqueeze(1).expand(-1, HEADS, -1).to(vectors.dtype)], dim=-1)

    def slots(self, row: int, first: int, last: int) -> Tensor:
        at = np.arange(first, last)
        return torch.from_numpy(
            self.table[row, at // self.block_size].astype(np.int64) * self.block_size + at % self.block_size
        )

    def store_all(self) -> None:
        for row, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            store(self._timed(keys, self.times[row]), values, self.cache, self.slots(row, 0, len(keys)))

    def attend(self, layers: int = 1) -> Tensor:
        groups = plan_tiles(self.starts, self.lengths, self.table, block_size=self.block_size, heads=HEADS)
        query = torch.cat(self.queries)
        output = query.new_full((len(query), HEADS, D_V), torch.nan)
        has_bias = self.tables != BiasTables(None, None)
        for _ in range(layers):
            attend(
                groups,
                query,
                self.cache,
                output,
                scale=SCALE,
                normalizer=1 / LENGTH,
                bias=self.tables if has_bias else None,
            )
        return output

    def wanted(self) -> Tensor:
        """Each request by itself, whole, by the definition."""
        outputs = []
        for row, cached in enumerate(self.cached):
            q, k, v = (one[row].float().transpose(0, 1) for one in (self.all_queries, self.keys, self.values))
            whole = silu_attention(
                q,
                k,
                v,
                causal_mask(q.shape[1]),
                scale=SCALE,
                length=LENGTH,
                bias=self._wanted_bias(self.times[row]),
            )
            outputs.append(whole.transpose(0, 1)[cached:])
        return torch.cat(outputs)

    def _wanted_bias(self, times: Tensor) -> Tensor | None:
        bias = None
        if self.tables.by_position is not None:
            places = torch.arange(len(times))
            last = self.tables.by_position.shape[1] - 1
            bias = self.tables.by_position.float()[:, (places[:, None] - places).clamp(0, last)]
        if self.tables.by_time is not None:
            by_time = self.tables.by_time.float()[:, time_buckets(times[:, None], times)]
            bias = by_time if bias is None else bias + by_time
        return bias


@given(requests=steps, block_size=st.sampled_from([1, 5, 16, 32]))
def test_any_step_equals_the_definition(requests: list[tuple[int, int]], block_size: int) -> None:
    """Prompts, chunks of prompts and single new tokens, side by side, read what is theirs and nothing else."""
    batch = Batch(requests, block_size)
    batch.store_all()
    torch.testing.assert_close(batch.attend(), batch.wanted(), atol=1e-5, rtol=1e-4)


@given(
    requests=steps,
    block_size=st.sampled_from([1, 5, 16, 32]),
    distances=st.sampled_from([0, 1, 40, 400]),
    timed=st.booleans(),
)
def test_any_step_with_biases_equals_the_definition(
    requests: list[tuple[int, int]], block_size: int, distances: int, timed: bool
) -> None:
    """By position, also beyond the last distance that has a number of its own, and by time, forwards and back."""
    batch = Batch(requests, block_size, distances=distances, timed=timed)
    batch.store_all()
    torch.testing.assert_close(batch.attend(), batch.wanted(), atol=2e-5, rtol=1e-4)


def test_every_layer_of_a_step_has_the_biases() -> None:
    """What the first one finds out about times is true for all."""
    batch = Batch([(0, 90), (33, 1), (64, 20)], 16, distances=100, timed=True)
    batch.store_all()
    torch.testing.assert_close(batch.attend(layers=3), batch.wanted(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tile", [1, 7, 64])
@pytest.mark.parametrize("scores", [1, 1 << 10, 1 << 20])
def test_how_work_is_cut_changes_no_result(monkeypatch: pytest.MonkeyPatch, tile: int, scores: int) -> None:
    """Tiles and groups are for speed alone."""
    monkeypatch.setattr(paged_attention, "QUERY_TILE", tile)
    monkeypatch.setattr(paged_attention, "MAX_GROUP_SCORES", scores)
    batch = Batch([(0, 130), (40, 3), (129, 1), (0, 1), (63, 65)], 16, distances=60, timed=True)
    batch.store_all()
    torch.testing.assert_close(batch.attend(), batch.wanted(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    """A cache of half the size costs the rounding of what it holds, not more: times have none."""
    batch = Batch([(0, 140), (100, 2)], 16, dtype, distances=200, timed=True)
    batch.store_all()
    torch.testing.assert_close(batch.attend().float(), batch.wanted(), atol=1e-3, rtol=1e-2)


def test_padding_is_stored_where_nobody_reads() -> None:
    """A slot of -1 changes no block but the null block."""
    batch = Batch([(0, 20)], 16)
    before = batch.cache.clone()
    store(batch.keys[0][:2], batch.values[0][:2], batch.cache, torch.tensor([-1, -1]))
    torch.testing.assert_close(batch.cache[1:], before[1:], rtol=0, atol=0)


def test_a_step_without_requests_has_no_groups() -> None:
    """Nothing to do is nothing done."""
    empty = np.zeros((0, 4), np.int32)
    assert plan_tiles(np.zeros(1, np.int32), empty[:, 0], empty, block_size=16, heads=HEADS) == []
