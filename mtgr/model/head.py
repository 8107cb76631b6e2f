"""The next-item head: how near a hidden state is to each video."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from mtgr.config import ModelConfig


class NextItemHead(nn.Module):
    """logits = normalize(LN(h)) . normalize(video) / temperature."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.temperature = config.temperature

    def query(self, hidden: Tensor) -> Tensor:
        """(..., d_model) hidden states to unit vectors over the temperature, ready to meet unit videos."""
        return functional.normalize(self.norm(hidden), dim=-1) / self.temperature

    def forward(self, hidden: Tensor, videos: Tensor) -> Tensor:
        """hidden: (..., d_model); videos: (n, d_model), as embedded. Returns logits (..., n)."""
        return self.query(hidden) @ functional.normalize(videos, dim=-1).T
