"""A look-up finds every gap's bucket."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtgr.kernels.time_buckets import THRESHOLDS, time_buckets
from mtgr.kernels.time_cells import CELL_SHIFT, FIRST_CELL, cell_table

TABLE = cell_table()


def bucket(gap: int) -> int:
    """As a kernel finds it."""
    bits = int(np.float32(gap).view(np.int32))
    entry = int(TABLE[max((bits >> CELL_SHIFT) - FIRST_CELL, 0)])
    return (entry >> 32) + (gap >= entry & 0xFFFFFFFF)


@given(
    gap=st.integers(0, 2**32 - 1)
    | st.integers(0, 32).map(lambda power: min(2**power, 2**32 - 1))
    | st.sampled_from(THRESHOLDS).flatmap(lambda at: st.integers(at - 2, at + 2)).filter(lambda gap: gap >= 0)
)
def test_the_cell_of_any_gap_knows_its_bucket(gap: int) -> None:
    """Also next to each threshold, and where float32 has no number of its own for a gap."""
    assert bucket(gap) == int(time_buckets(torch.tensor(gap), torch.tensor(0)))


def test_every_threshold_is_met_exactly() -> None:
    """A second before it, the bucket is still the one before."""
    for number, threshold in enumerate(THRESHOLDS):
        assert (bucket(threshold - 1), bucket(threshold)) == (number, number + 1)
