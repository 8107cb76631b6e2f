"""The heads: how near a hidden state is to each video, and how a candidate would be met."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.config import ModelConfig


class NextItemHead(nn.Module):
    """logits = normalize(LN(h)) . normalize(video) / temperature, or without the normalize; plus a video's bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.temperature = config.temperature
        self.cosine = config.similarity == "cosine"
        self.bias = nn.Parameter(torch.zeros(config.n_indices)) if config.item_bias else None

    def query(self, hidden: Tensor, added: Tensor | None = None) -> Tensor:
        """(..., d_model) hidden states to what meets `key` by a product: the temperature is in it.

        added: (..., d_model), of what training knows beside the history; see `mtgr.training.conditions`.
        """
        normed = self.norm(hidden)
        if added is not None:
            normed = normed + added
        return (functional.normalize(normed, dim=-1) if self.cosine else normed) / self.temperature

    def key(self, videos: Tensor) -> Tensor:
        """(..., d_model) videos as embedded to what `query` meets."""
        return functional.normalize(videos, dim=-1) if self.cosine else videos

    def forward(self, hidden: Tensor, videos: Tensor) -> Tensor:
        """hidden: (..., d_model); videos: (n, d_model), those of the item indices below n. Returns (..., n)."""
        logits = self.query(hidden) @ self.key(videos).T
        return logits if self.bias is None else logits + self.bias[: len(videos)]


class RankingHead(nn.Module):
    """A candidate's hidden state to one logit for each outcome the config names: watched to its end, liked, shared."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.inner = nn.Linear(config.d_model, config.d_model)
        self.out = nn.Linear(config.d_model, len(config.ranking))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d_model) to (..., len(config.ranking)) logits."""
        logits: Tensor = self.out(functional.silu(self.inner(self.norm(hidden))))
        return logits
