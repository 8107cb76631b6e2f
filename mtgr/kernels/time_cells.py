"""The bucket of a gap in time, found by one look-up and one comparison instead of a search among the thresholds.

A gap as a float32 has its power of two and its first binary places in its upper bits, and these are the number of its
cell. Cells are so narrow that none holds two thresholds: what is left is whether the gap has reached the one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtgr.kernels.time_buckets import THRESHOLDS

CELL_SHIFT: Final = 21
"""Lower bits of a float32 that a cell disregards: of the 23 binary places it keeps two, so that no gap of a cell is
more than 1.25 times another, while thresholds that are no neighbouring whole numbers lie 1.33 times apart or more.
"""

FIRST_CELL: Final = (127 << 23 >> CELL_SHIFT) - 1
"""Upper bits of the float32 before the cell of the gap 1; the gap 0 counts as there."""

_GAPS: Final = 1 << 32  # times are four bytes


def cell_table() -> npt.NDArray[np.int64]:
    """(cells,) int64, bucket << 32 | threshold: a gap's bucket is its cell's, and one more from the threshold on."""
    numbers = np.arange(_cell(_GAPS - 1) + 1)
    table = np.empty(len(numbers), np.int64)
    table[0] = 1  # bucket 0, and no gap of this cell is 1
    for number in numbers[1:].tolist():
        low = _first_gap(number)
        high = _first_gap(number + 1) - 1 if number < numbers[-1] else _GAPS - 1
        bucket = bisect_right(THRESHOLDS, low)
        inside = THRESHOLDS[bucket : bisect_right(THRESHOLDS, high)]
        assert len(inside) <= 1, (low, high, inside)
        # with no threshold inside, all have reached the one before
        table[number] = bucket << 32 | inside[0] if inside else (bucket - 1) << 32 | low
    return table


@cache
def cells_on(device: torch.device) -> Tensor:
    """`cell_table` on a device, made once: before a graph is captured, which may not copy from the host."""
    return torch.from_numpy(cell_table()).to(device)


def _cell(gap: int) -> int:
    bits = int(np.float32(gap).view(np.int32))
    return max((bits >> CELL_SHIFT) - FIRST_CELL, 0)


def _first_gap(number: int) -> int:
    """The smallest gap of a cell, or of the next that has any: gaps are whole and float32 rounds large ones."""
    return bisect_left(range(_GAPS), number, key=_cell)
