"""How the GPU kernels are launched: chosen by shape from tables, so that nothing is tuned or compiled while serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import triton

from mtgr.kernels.device_functions import BY_EXP, BY_TANH, PORTABLE

INTERPRETED: Final = bool(triton.knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU, which knows no machine instructions."""

_PROGRAMS: Final = 264
"""Programs that keep a GPU busy, two for each multiprocessor of a Hopper GPU."""

_MOST_SPLITS: Final = 16

MOST_PROGRAMS: Final = 2112
"""Programs of a launch for tiles of many queries, sixteen for each multiprocessor, which then go on from tile to tile:
a graph has tiles for the worst cut of its tokens, and a program for each that there is not would cost more than some
that there are. Tiles of one query are hardly ever padding, and balance best if the GPU hands them out.
"""


@dataclass(frozen=True, slots=True)
class TileLaunch:
    """A launch of attention: keys of a block, warps, stages of the loop over blocks, programs that share a row.

    Only rows of one query are shared, as larger tiles are many anyway. `tanh` makes SiLU of it, in half formats.
    """

    keys: int
    warps: int
    stages: int
    splits: int = 1
    tanh: bool = False


def tile_launch(
    tile_queries: int, width: int, dtype: torch.dtype, programs: int, *, biased: bool = False
) -> TileLaunch:
    """The launch for tiles of so many queries and heads up to `width` wide, a power of two; programs: unsplit.

    Chosen so that nothing spills from the registers of a Hopper GPU and that several programs share a multiprocessor.
    """
    wide = dtype.itemsize > 2
    if tile_queries == 1:
        # a loop in stages would put all that biases are looked up in through shared memory, too
        stages = 1 if wide or biased else 3
        return TileLaunch(max(16, 4096 // width), warps=4, stages=stages, splits=key_splits(programs))
    if wide:  # float32 products are made outside the tensor cores, from registers
        small = tile_queries * width <= 4096
        return TileLaunch(32 if small else 16, warps=8 if small else 16, stages=2)
    keys = 64 if width <= 128 else 32
    warps = 8 if tile_queries >= 128 or width >= 256 else 4
    return TileLaunch(32 if biased else keys, warps, stages=3 if width <= 128 else 2)


def silu_mode(dtype: torch.dtype, tanh: bool = False) -> int:
    """How kernels make SiLU of numbers of a type; see `mtgr.kernels.device_functions.silu`."""
    if INTERPRETED or dtype.itemsize > 2:
        return int(PORTABLE)
    return int(BY_TANH if tanh else BY_EXP)


def key_splits(programs: int) -> int:
    """Among how many programs a row's keys are cut, so that few rows keep the GPU as busy as many."""
    splits = 1
    while splits < _MOST_SPLITS and 2 * splits * programs <= _PROGRAMS:
        splits *= 2
    return splits


def row_launch(heads: int, width: int) -> tuple[int, int]:
    """Heads of a program that handles a token's heads, each `width` numbers wide, and its warps."""
    width = triton.next_power_of_2(width)
    per_program = max(1, min(triton.next_power_of_2(heads), 1024 // width))
    return per_program, max(1, min(4, per_program * width // 256))
