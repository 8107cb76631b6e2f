"""CUDA graphs of the model for the shapes of steps that a stream makes: one launch where eager code makes hundreds.

A graph is captured for a number of tokens and a size of tiles, and serves every step that fits: what is over is
padding, tokens that are stored nowhere and tiles of no request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.kernels.paged import PADDING, PagedStep, cut_tiles
from mtgr.serving.attention import tile_for

TOKENS: Final = {
    1: (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    16: (16, 32, 64, 128, 256, 512, 1024, 2048),
    64: (64, 128, 256, 384, 512, 640, 832, 1024, 1536, 2048, 3072, 4096),
}
"""Tokens of the graphs, by the queries of a tile: users with one event each, with some, and whole histories. Longer
steps keep the GPU busy for longer than launching them takes."""

Forward = Callable[[Tensor, Tensor, Tensor, PagedStep], Tensor]
"""Rows (tokens, lanes), positions and slots (tokens,) and the step to hidden states (tokens, d_model)."""


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: Any
    tokens: int
    requests: int
    step: PagedStep
    hidden: Tensor


class StepGraphs:
    """The graphs of one worker's model, all over the same buffers: one of them runs at a time."""

    def __init__(
        self,
        forward: Forward,
        *,
        lanes: int,
        requests: int,
        blocks: int,
        step_tokens: int,
        device: torch.device,
    ) -> None:
        """`requests` of a step at most, each of at most so many `blocks`; graphs are captured by `capture`."""
        self._forward: Final = forward
        self._requests: Final = requests
        most = min(step_tokens, max(map(max, TOKENS.values())))
        self._sizes: Final = {
            tile: [tokens for tokens in sizes if tokens <= most and (tile > 1 or tokens <= requests)]
            for tile, sizes in TOKENS.items()
        }

        def numbers(*shape: int, dtype: torch.dtype = torch.int32, value: int = 0) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self._rows: Final = numbers(most, lanes, dtype=torch.float32)
        self._positions: Final = numbers(most, dtype=torch.int64)
        self._slots: Final = numbers(most, dtype=torch.int64, value=PADDING)
        self._starts: Final = numbers(requests + 1)
        self._lengths: Final = numbers(requests)
        self._blocks: Final = numbers(requests, blocks)
        self._tiles: Final = {
            tile: numbers(max(self._tile_count(tile, tokens) for tokens in sizes), 2, value=PADDING)
            for tile, sizes in self._sizes.items()
            if sizes
        }
        self._graphs: Final[dict[tuple[int, int], _Graph]] = {}

    def capture(self) -> int:
        """Run each shape once, so that its kernels are compiled, and capture it; returns how many there are.

        The largest come first: the others find room in the memory that those have taken.
        """
        pool = None
        for tokens, tile in sorted(
            ((tokens, tile) for tile, sizes in self._sizes.items() for tokens in sizes), reverse=True
        ):
            tiles = self._tiles[tile][: self._tile_count(tile, tokens)]
            step = PagedStep(self._starts, self._lengths, self._blocks, tiles, tile)
            inputs = self._rows[:tokens], self._positions[:tokens], self._slots[:tokens], step
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._forward(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                hidden = self._forward(*inputs)
            pool = pool or graph.pool()
            self._graphs[tile, tokens] = _Graph(graph, tokens, self._requests_of(tile, tokens), step, hidden)
        torch.cuda.synchronize()
        return len(self._graphs)

    def run(
        self,
        rows: Tensor,
        positions: npt.NDArray[np.int64],
        slots: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int32],
        blocks: npt.NDArray[np.int32],
    ) -> Tensor | None:
        """The hidden states of a step, valid until the next one; None if no graph is large enough."""
        new = np.diff(starts)
        tile = tile_for(int(new.max()))
        sizes = self._sizes[tile]
        place = bisect_left(sizes, len(positions))
        if place == len(sizes) or len(new) > self._requests_of(tile, sizes[place]):
            return None
        graph = self._graphs[tile, sizes[place]]
        tokens, requests = len(positions), len(new)
        tiles = np.full((len(graph.step.tiles), 2), PADDING, np.int32)
        cut = cut_tiles(new, lengths, tile)
        tiles[: len(cut)] = cut
        padded = np.full(graph.tokens, PADDING, np.int64)
        padded[:tokens] = slots
        self._rows[:tokens].copy_(rows, non_blocking=True)
        for buffer, array in (
            (self._positions[:tokens], positions),
            (self._slots[: graph.tokens], padded),
            (self._starts[: requests + 1], starts),
            (self._lengths[:requests], lengths),
            (self._blocks[:requests, : blocks.shape[1]], blocks),
            (graph.step.tiles, tiles),
        ):
            buffer.copy_(torch.from_numpy(np.ascontiguousarray(array)), non_blocking=True)
        graph.graph.replay()
        return graph.hidden[:tokens]

    def _requests_of(self, tile: int, tokens: int) -> int:
        """Requests of a step of so many tokens: all of them may have a single one."""
        return min(tokens, self._requests)

    def _tile_count(self, tile: int, tokens: int) -> int:
        """Tiles that any step of so many tokens is cut to at most."""
        requests = self._requests_of(tile, tokens)
        return requests if tile == 1 else requests + (tokens - requests) // tile
