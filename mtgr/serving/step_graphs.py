"""CUDA graphs of the model for the shapes of steps that a stream makes: one launch where eager code makes hundreds.

A graph is captured for a number of tokens and a size of tiles, and serves every step that fits: what is over is
padding, tokens that are stored nowhere and tiles of no request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.kernels.paged import PADDING, PagedStep, cut_tiles, tile_for

TOKENS: Final = {
    1: (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    16: (16, 32, 64, 128, 256, 512, 1024, 2048),
    64: (64, 128, 256, 384, 512, 640, 832, 1024, 1536, 2048, 3072, 4096),
}
"""Tokens of the graphs, by the queries of a tile: users with one event each, with some, and whole histories. Longer
steps keep the GPU busy for longer than launching them takes."""

Forward = Callable[[Tensor, Tensor, Tensor, PagedStep], Tensor]
"""Rows (tokens, lanes), positions and slots (tokens,) and the step to hidden states (tokens, d_model)."""


Compute = Callable[[], Tensor]
"""Hidden states of what the buffers hold."""


class Recording(Protocol):
    """Some work on fixed buffers that can be done again."""

    @property
    def result(self) -> Tensor: ...

    def replay(self) -> None:
        """Do it; `result` has it then."""


class CudaGraphs:
    """Records work as CUDA graphs that share their memory: one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Compute) -> Recording:
        """Do the work once, so that its kernels are compiled, and record it."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute()
        self._pool = self._pool or graph.pool()
        return _CudaRecording(graph, result)


@dataclass(frozen=True, slots=True)
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    result: Tensor

    def replay(self) -> None:
        self.graph.replay()


@dataclass(frozen=True, slots=True)
class _Graph:
    recording: Recording
    tokens: int
    step: PagedStep


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
            tile: _up_to(min(most, requests) if tile == 1 else most, sizes) for tile, sizes in TOKENS.items()
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

    def capture(self, record: Callable[[Compute], Recording]) -> int:
        """Record the forward of each shape; returns how many there are.

        The largest come first: the others find room in the memory that those have taken.
        """
        for tokens, tile in sorted(
            ((tokens, tile) for tile, sizes in self._sizes.items() for tokens in sizes), reverse=True
        ):
            tiles = self._tiles[tile][: self._tile_count(tile, tokens)]
            step = PagedStep(self._starts, self._lengths, self._blocks, tiles, tile)
            inputs = self._rows[:tokens], self._positions[:tokens], self._slots[:tokens], step
            self._graphs[tile, tokens] = _Graph(record(partial(self._forward, *inputs)), tokens, step)
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
        if place == len(sizes):
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
            buffer.copy_(pinned(array) if buffer.is_cuda else torch.from_numpy(array), non_blocking=True)
        graph.recording.replay()
        return graph.recording.result[:tokens]

    def _tile_count(self, tile: int, tokens: int) -> int:
        """Tiles that any step of so many tokens is cut to at most: all its requests may have a single token."""
        requests = min(tokens, self._requests)
        return requests if tile == 1 else requests + (tokens - requests) // tile


def pinned(array: npt.NDArray[Any]) -> Tensor:
    """A copy that a GPU reads by itself, while the host goes on."""
    copy = torch.empty(array.shape, dtype=torch.from_numpy(array[:0].copy()).dtype, pin_memory=True)
    copy.numpy()[...] = array
    return copy


def _up_to(most: int, sizes: Sequence[int]) -> list[int]:
    """The sizes below the largest one that is wanted, and that one."""
    return [*(size for size in sizes if size < most), min(most, sizes[-1])]
