"""Relative attention bias: a learnt number for each head by how far a key lies back, in tokens and in time.

Both distances are fixed once the later token is there, so a bias leaves what is cached exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from mtgr.kernels.time_buckets import TIME_BUCKETS

if TYPE_CHECKING:
    from mtgr.config import ModelConfig


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
