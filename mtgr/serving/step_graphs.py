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

import torch
from torch import Tensor

from mtgr.kernels.paged import tile_for
from mtgr.serving.step_inputs import NO_STEP, HostStep, Layout, StepInputs

TOKENS: Final = {
    1: (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    16: (16, 32, 64, 128, 256, 512, 1024, 2048),
    64: (64, 128, 256, 384, 512, 640, 832, 1024, 1536, 2048, 3072, 4096),
}
"""Tokens of the graphs, by the queries of a tile: users with one event each, with some, and whole histories. Longer
steps keep the GPU busy for longer than launching them takes."""

Forward = Callable[[StepInputs], Tensor]
"""A step's inputs to its hidden states (tokens, d_model)."""


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
    layout: Layout
    inputs: StepInputs


class StepGraphs:
    """The graphs of one worker's model, all over the same memory: one of them runs at a time."""

    def __init__(
        self,
        forward: Forward,
        *,
        lanes: int,
        requests: int,
        blocks: int,
        block_size: int,
        step_tokens: int,
        device: torch.device,
    ) -> None:
        """`requests` of a step at most, each of at most so many `blocks`; graphs are captured by `capture`."""
        self._forward: Final = forward
        self._block_size: Final = block_size
        most = min(step_tokens, max(map(max, TOKENS.values())))
        self._sizes: Final = {
            tile: _up_to(min(most, requests) if tile == 1 else most, sizes) for tile, sizes in TOKENS.items()
        }

        def layout(tile: int, tokens: int) -> Layout:
            some = min(tokens, requests)
            # tiles that any step of so many tokens is cut to at most: all its requests may have a single token
            tiles = some if tile == 1 else some + (tokens - some) // tile
            return Layout(
                tokens=tokens, requests=some, blocks=blocks, tiles=tiles, lanes=lanes, tile_queries=tile
            )

        self._layouts: Final = {
            (tile, tokens): layout(tile, tokens) for tile, sizes in self._sizes.items() for tokens in sizes
        }
        self._buffer: Final = torch.zeros(
            max(one.size for one in self._layouts.values()), dtype=torch.uint8, device=device
        )
        self._graphs: Final[dict[tuple[int, int], _Graph]] = {}

    def capture(self, record: Callable[[Compute], Recording]) -> int:
        """Record the forward of each shape; returns how many there are.

        The largest come first: the others find room in the memory that those have taken.
        """
        for key, layout in sorted(self._layouts.items(), key=lambda item: item[0][::-1], reverse=True):
            self._fill(layout, NO_STEP)
            inputs = layout.inputs(self._buffer)
            self._graphs[key] = _Graph(record(partial(self._forward, inputs)), layout, inputs)
        return len(self._graphs)

    def run(self, host: HostStep) -> tuple[Tensor, StepInputs] | None:
        """The hidden states of a step and its inputs on the device, without padding, both valid until the next step;
        None if no graph is large enough."""
        tokens, requests = int(host.new.sum()), len(host.new)
        tile = tile_for(int(host.new.max()))
        sizes = self._sizes[tile]
        place = bisect_left(sizes, tokens)
        if place == len(sizes):
            return None
        graph = self._graphs[tile, sizes[place]]
        self._fill(graph.layout, host)
        inputs = graph.inputs.of(tokens, requests)
        inputs.take_over(host)
        graph.recording.replay()
        return graph.recording.result[:tokens], inputs

    def _fill(self, layout: Layout, host: HostStep) -> None:
        """Put what the host knows of a step where the graphs of a layout read it, while the host goes on."""
        pack = torch.empty(layout.size, dtype=torch.uint8, pin_memory=self._buffer.is_cuda)
        size = layout.pack(host, self._block_size, pack.numpy())
        self._buffer[:size].copy_(pack[:size], non_blocking=True)


def _up_to(most: int, sizes: Sequence[int]) -> list[int]:
    """The sizes below the largest one that is wanted, and that one."""
    return [*(size for size in sizes if size < most), min(most, sizes[-1])]
