"""What the model computes a step from, on the device: all that the host knows of it goes there in one copy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.kernels.paged import PADDING, PagedStep, cut_tiles, tile_for
from mtgr.serving.session_steps import NO_ITEM
from mtgr.serving.step_places import place_tokens

_ALIGNMENT: Final = 16  # bytes, of each part: what compiled kernels count on
_INT: Final = 4  # bytes

Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class HostStep:
    """A step as the host has it; rows and items are on the device already where it has made them itself.

    rows: float32 (tokens, lanes); items: int32 (tokens,); cached, new: int32 (requests,) tokens that each request has
    and gets; blocks: int32 (requests, n) of the cache.
    """

    rows: npt.NDArray[np.float32] | Tensor
    items: Numbers | Tensor
    cached: Numbers
    new: Numbers
    blocks: Numbers


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The same on the device: rows, items, positions and slots of tokens, and the step that attention wants.

    positions, slots: int64 (tokens,) places in sequences and in the cache, or PADDING; the rest as in `HostStep`.
    """

    rows: Tensor
    items: Tensor
    positions: Tensor
    slots: Tensor
    step: PagedStep

    def take_over(self, host: HostStep) -> None:
        """Copy what of a step is on the device already."""
        for view, part in ((self.rows, host.rows), (self.items, host.items)):
            if isinstance(part, Tensor):
                view.copy_(part)

    def of(self, tokens: int, requests: int) -> StepInputs:
        """The first so many, of inputs that have padding behind them; all of the tiles."""
        step = self.step
        return StepInputs(
            self.rows[:tokens],
            self.items[:tokens],
            self.positions[:tokens],
            self.slots[:tokens],
            PagedStep(
                step.query_starts[: requests + 1],
                step.lengths[:requests],
                step.block_table[:requests],
                step.tiles,
                step.tile_queries,
            ),
        )


class Layout:
    """Where in a buffer the parts of a step lie, with room for so much of each; what a step leaves of it is padding."""

    def __init__(
        self, *, tokens: int, requests: int, blocks: int, tiles: int, lanes: int, tile_queries: int
    ) -> None:
        self.tile_queries: Final = tile_queries
        self._row: Final = _INT * blocks  # bytes of a request's blocks
        self._parts: Final[list[tuple[int, int, tuple[int, ...], type[np.generic]]]] = []
        self.size = 0
        """Bytes of the buffer."""
        for shape, kind in (
            ((tokens,), np.int64),  # positions
            ((tokens,), np.int64),  # slots
            ((tokens, lanes), np.float32),  # rows
            ((tokens,), np.int32),  # items
            ((requests + 1,), np.int32),  # query_starts
            ((requests,), np.int32),  # lengths
            ((tiles, 2), np.int32),
            ((requests, blocks), np.int32),
        ):
            end = self.size + math.prod(shape) * np.dtype(kind).itemsize
            self._parts.append((self.size, end, shape, kind))
            self.size = -(-end // _ALIGNMENT) * _ALIGNMENT

    def inputs(self, buffer: Tensor) -> StepInputs:
        """The parts of a buffer of bytes, padding and all."""
        positions, slots, rows, items, starts, lengths, tiles, blocks = (
            buffer[begin:end].view(_TORCH[kind]).view(shape) for begin, end, shape, kind in self._parts
        )
        return StepInputs(
            rows, items, positions, slots, PagedStep(starts, lengths, blocks, tiles, self.tile_queries)
        )

    def pack(self, host: HostStep, block_size: int, buffer: npt.NDArray[np.uint8]) -> int:
        """Write a step and its padding to a buffer; returns how many bytes of it there are to copy: it ends with the
        blocks of the requests there are."""
        positions, slots, rows, items, starts, lengths, tiles, blocks = (
            np.ndarray(shape, kind, buffer, begin) for begin, _, shape, kind in self._parts
        )
        place_tokens(host.cached, host.new, host.blocks, block_size, positions, slots)
        tokens, requests = int(host.new.sum()), len(host.new)
        positions[tokens:], slots[tokens:] = 0, PADDING
        for array, part, padding in ((rows, host.rows, 0.0), (items, host.items, NO_ITEM)):
            if isinstance(part, np.ndarray):
                array[:tokens] = part
            array[tokens:] = padding
        starts[0] = 0
        np.cumsum(host.new, out=starts[1 : requests + 1])
        lengths[:requests] = host.cached + host.new
        cut = cut_tiles(host.new, lengths[:requests], self.tile_queries)
        tiles[: len(cut)], tiles[len(cut) :] = cut, PADDING
        blocks[:requests, : host.blocks.shape[1]] = host.blocks
        return self._parts[-1][0] + requests * self._row


def inputs_on(device: torch.device, host: HostStep, block_size: int) -> StepInputs:
    """A step's inputs in memory of their own, without padding; a GPU gets them while the host goes on."""
    tile = tile_for(int(host.new.max()))
    layout = Layout(
        tokens=int(host.new.sum()),
        requests=len(host.new),
        blocks=host.blocks.shape[1],
        tiles=int((-(-host.new // tile)).sum()),
        lanes=host.rows.shape[1],
        tile_queries=tile,
    )
    buffer = torch.empty(layout.size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    layout.pack(host, block_size, buffer.numpy())
    inputs = layout.inputs(buffer.to(device, non_blocking=True))
    inputs.take_over(host)
    return inputs


_NONE: Final = np.zeros(0, np.int32)

NO_STEP: Final = HostStep(np.zeros((0, 1), np.float32), _NONE, _NONE, _NONE, _NONE.reshape(0, 1))
"""All of it padding."""

_TORCH: Final[dict[type[np.generic], torch.dtype]] = {
    np.int64: torch.int64,
    np.int32: torch.int32,
    np.float32: torch.float32,
}
