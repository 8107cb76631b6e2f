"""Steps over a paged cache with random contents, for the tests of every kernel that computes them.

It needs torch, numpy and the kernels alone, so that a machine that has a GPU and little else can run such tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mtgr.kernels.paged import PADDING, TIME_LANES, BiasTables, PagedStep, plan_step
from mtgr.kernels.time_buckets import TIME_BUCKETS

FP8 = torch.float8_e4m3fn
SCALE, NORMALIZER = 0.3, 1 / 50
UNWRITTEN = 7.0
"""What an output holds where no kernel has written."""


@dataclass(frozen=True)
class Shape:
    """What a batch is made of.

    requests: tokens cached before and new tokens of each; distances: how many the bias by position knows, 0 for no
    such bias; timed: whether there is a bias by time; padding: tiles and tokens that there are not, behind those that
    there are.
    """

    requests: tuple[tuple[int, int], ...]
    tile_queries: int = 16
    heads: int = 2
    d_qk: int = 8
    d_v: int = 4
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    distances: int = 0
    timed: bool = False
    k_scale: float = 1.0
    v_scale: float = 1.0
    padding: int = 0


class PagedBatch:
    """Requests whose keys and values are to lie scattered over a cache full of what is no number.

    keys, values: (tokens, heads, width) of all requests, one after the other, as `store` takes them, with `slots`;
    query: of their new tokens. Times are anything from 1970 to 2106, in any order.
    """

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        self.shape = shape
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(sum(map(sum, shape.requests)) + shape.block_size)
        cached = np.array([cached for cached, _ in shape.requests], np.int32)
        new = np.array([new for _, new in shape.requests], np.int32)
        self.lengths = cached + new
        tokens = int(self.lengths.sum())
        self.times = self._some_times(tokens, generator)
        first = np.repeat(np.cumsum(self.lengths) - self.lengths + cached, new)
        self.starts = np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
        self.new_rows = torch.from_numpy(first + np.arange(len(first)) - np.repeat(self.starts[:-1], new))

        fp8 = shape.cache_dtype == FP8

        def numbers(width: int, scale: float) -> Tensor:
            drawn = torch.randn(tokens, shape.heads, width, generator=generator)
            if fp8:  # such as FP8 holds exactly: how a device rounds to it is a matter of its own
                drawn = drawn.to(FP8).float() * scale
            return drawn.to(shape.dtype)

        keys, self.values = numbers(shape.d_qk, shape.k_scale), numbers(shape.d_v, shape.v_scale)
        queries = torch.randn(tokens, shape.heads, shape.d_qk, generator=generator).to(shape.dtype)
        self.keys, self.all_queries = self._timed(keys), self._timed(queries)
        self.query = self.all_queries[self.new_rows]
        if shape.padding:
            self.query = torch.cat([self.query, self.query[:1].expand(shape.padding, -1, -1)])
        self._lay_out(generator)
        self.tables = BiasTables(
            torch.randn(shape.heads, shape.distances, generator=generator).to(shape.dtype)
            if shape.distances
            else None,
            torch.randn(shape.heads, TIME_BUCKETS, generator=generator).to(shape.dtype)
            if shape.timed
            else None,
        )
        for name in ("keys", "values", "query", "slots", "table"):
            setattr(self, name, getattr(self, name).to(self.device))
        self.tables = BiasTables(
            *(
                None if t is None else t.to(self.device)
                for t in (self.tables.by_position, self.tables.by_time)
            )
        )

    @property
    def bias(self) -> BiasTables | None:
        """As kernels take it."""
        return self.tables if self.shape.distances or self.shape.timed else None

    def empty_cache(self) -> Tensor:
        """(blocks, heads, block_size, head_size + d_v) in which nothing is a number."""
        shape = (self.blocks, self.shape.heads, self.shape.block_size)
        width = self.keys.shape[-1] + self.shape.d_v
        cache = torch.full((*shape, width), torch.nan).to(self.shape.cache_dtype or self.shape.dtype)
        return cache.to(self.device)

    def filled_cache(self, store: Callable[..., None]) -> Tensor:
        """A cache with all that the step will read."""
        cache = self.empty_cache()
        shape = self.shape
        store(
            self.keys,
            self.values,
            cache,
            self.slots,
            timed=shape.timed,
            k_scale=shape.k_scale,
            v_scale=shape.v_scale,
        )
        return cache

    def step(self) -> PagedStep:
        """The plan, with the padding that the shape asks for."""
        shape = self.shape
        step = plan_step(
            self.starts, self.lengths, self.table, tile_queries=shape.tile_queries, device=self.device
        )
        nothing = step.tiles.new_full((shape.padding, 2), PADDING)
        return replace(step, tiles=torch.cat([step.tiles, nothing]))

    def attend(self, attend: Callable[..., None], cache: Tensor, **more: object) -> Tensor:
        """(tokens, heads, d_v) that a kernel makes of the step."""
        shape = self.shape
        output = torch.full((len(self.query), shape.heads, shape.d_v), UNWRITTEN, device=self.device)
        output = output.to(shape.dtype)
        attend(
            self.query,
            cache,
            output,
            self.step(),
            scale=SCALE,
            normalizer=NORMALIZER,
            bias=self.bias,
            k_scale=shape.k_scale,
            v_scale=shape.v_scale,
            **more,
        )
        return output

    def _lay_out(self, generator: torch.Generator) -> None:
        """Give every request blocks of its own, in no order, and its tokens their slots."""
        size = self.shape.block_size
        counts = -(-self.lengths // size)
        self.blocks = int(counts.sum()) + 1
        free = (1 + torch.randperm(self.blocks - 1, generator=generator)).to(torch.int32)
        # what is past a request's blocks is no block at all
        self.table = torch.full((len(counts), int(counts.max()) + 1), 1 << 24, dtype=torch.int32)
        slots = []
        for row, own in enumerate(torch.split(free, counts.tolist())):
            self.table[row, : len(own)] = own
            at = torch.arange(int(self.lengths[row]))
            slots.append(own[at // size].long() * size + at % size)
        self.slots = torch.cat(slots)

    def _timed(self, vectors: Tensor) -> Tensor:
        if not self.shape.timed:
            return vectors
        lanes = torch.stack([self.times >> 8 * byte & 255 for byte in range(TIME_LANES)], dim=-1)
        return torch.cat(
            [vectors, lanes.unsqueeze(1).expand(-1, self.shape.heads, -1).to(vectors.dtype)], dim=-1
        )

    @staticmethod
    def _some_times(count: int, generator: torch.Generator) -> Tensor:
        """Some near each other, so that every bucket is met, some anywhere, and some 0, as a candidate's."""
        near = torch.randint(0, 2, (count,), generator=generator) * 2.0 ** (
            32 * torch.rand(count, generator=generator, dtype=torch.float64)
        )
        start = int(torch.randint(0, 2**31, (1,), generator=generator))
        times = (start + near.long()).clamp(max=2**32 - 1)
        return times.masked_fill(torch.rand(count, generator=generator) < 0.1, 0)
