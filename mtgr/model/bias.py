"""Relative attention bias: a learnt number for each head by how far a key lies back, in tokens and in time.

Both distances are fixed once the later token is there, so a bias leaves what is cached exact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from mtgr.config import ModelConfig

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


class RelativeBias(nn.Module):
    """The biases of one layer, those of the two that the config asks for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.by_position = nn.Embedding(config.max_length, config.n_heads) if config.position_bias else None
        self.by_time = nn.Embedding(TIME_BUCKETS, config.n_heads) if config.time_bias else None
        for table in (self.by_position, self.by_time):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, distances: Tensor, buckets: Tensor | None) -> Tensor:
        """Distances in tokens (..., L, S) and time buckets (..., L, S), both int64, to (..., heads, L, S).

        A distance outside the model's length, of a key that the mask hides, counts as the nearest inside.
        """
        bias: Tensor | None = None
        if self.by_position is not None:
            places = distances.clamp(0, self.by_position.num_embeddings - 1)
            bias = functional.embedding(places, self.by_position.weight)
        if self.by_time is not None:
            assert buckets is not None
            gaps = functional.embedding(buckets, self.by_time.weight)
            bias = gaps if bias is None else bias + gaps
        assert bias is not None
        return bias.movedim(-1, -3)
