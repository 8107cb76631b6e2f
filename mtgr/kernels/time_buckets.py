"""The logarithmic buckets that gaps in time fall into, of which a bias by time has a number each."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

_RATIO: Final = 1.351  # e ** 0.301, as in HSTU's published code
_BUCKETS: Final = 64
THRESHOLDS: Final = tuple(sorted({math.ceil(_RATIO**power) for power in range(_BUCKETS)}))
"""Gaps in seconds at which buckets begin; whole numbers, so that every device draws the same line. The last is
about five years, and a profile, which has no time, lies beyond it.
"""
TIME_BUCKETS: Final = len(THRESHOLDS) + 1


def time_buckets(query_times: Tensor, key_times: Tensor) -> Tensor:
    """The bucket of each gap query - key, int64, the two broadcast; 0 for a gap below a second or a negative one.

    A candidate has the time 0, so that to it everything is now.
    """
    thresholds = torch.tensor(THRESHOLDS, device=query_times.device)
    return torch.bucketize(query_times - key_times, thresholds, right=True)
