"""The HSTU layer of MTGR: gated SiLU attention between group layer norms, and an optional SiLU MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mtgr.config import GROUPS, ModelConfig
from mtgr.kernels.silu_attention import silu_attention, softmax_attention
from mtgr.model.bias import RelativeBias
from mtgr.model.jagged import Group
from mtgr.model.norm import GroupLayerNorm

_RECOMPUTED_LENGTH: Final = 256
"""From so many tokens on a training keeps no scores for the backward, but computes them again: they are what grows
with the square of the length.
"""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the attention of all layers shares, for one group of sequences.

    mask: (L, L) or (b, 1, L, L) bool; distances: (L, L) or (b, L, L) int64, in tokens; buckets: (b, L, L) int64,
    of time; the last two where the config has a bias.
    """

    group: Group
    mask: Tensor
    distances: Tensor | None
    buckets: Tensor | None


class HSTULayer(nn.Module):
    """One layer, X to X, both (T, d_model), the tokens of all sequences joined:

        U, V, Q, K = split(silu(GroupLN(X) W_uvqk))
        A = silu(Q K^T * d_qk^-0.5 + bias) * (1 / N) * M
        X = W_o(GroupLN(A V) * U) + X
        X = W_down(silu(GroupLN(X) W_up)) + X       where the config has d_ff > 0

    `uvqk` is one weight, (2 * n_heads * (d_v + d_qk), d_model), in the order U, V, Q, K, each with its heads
    one after the other. The second norm runs over all heads together. No linear has a bias.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads, self.d_qk, self.d_v = config.n_heads, config.d_qk, config.d_v
        self.length = config.max_length
        self.softmax = config.attention == "softmax"
        self.dropout = dropout
        width_v, width_qk = config.n_heads * config.d_v, config.n_heads * config.d_qk
        self.widths = [width_v, width_v, width_qk, width_qk]
        norms = GROUPS if config.group_norm else 1
        self.norm_in = GroupLayerNorm(config.d_model, config.norm_eps, norms)
        self.uvqk = nn.Linear(config.d_model, sum(self.widths), bias=False)
        self.bias = RelativeBias(config) if config.position_bias or config.time_bias else None
        self.norm_attention = GroupLayerNorm(width_v, config.norm_eps, norms)
        self.out = nn.Linear(width_v, config.d_model, bias=False)
        self.has_mlp = config.d_ff > 0
        if self.has_mlp:
            self.norm_mlp = GroupLayerNorm(config.d_model, config.norm_eps, norms)
            self.mlp_up = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.mlp_down = nn.Linear(config.d_ff, config.d_model, bias=False)
        for linear in self.children():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, x: Tensor, groups: Tensor, sights: list[Sight]) -> Tensor:
        """x: (T, d_model); groups: (T, GROUPS) one-hot; sights: one for each group of the layout."""
        fused = functional.silu(self.uvqk(self.norm_in(x, groups)))
        u, v, q, k = torch.split(fused, self.widths, dim=-1)
        attended = self._attend(q, k, v, sights)
        gated = self.norm_attention(attended, groups) * u
        x = x + self.out(functional.dropout(gated, self.dropout, self.training))
        if self.has_mlp:
            mixed = self.mlp_down(functional.silu(self.mlp_up(self.norm_mlp(x, groups))))
            x = x + functional.dropout(mixed, self.dropout, self.training)
        return x

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sights: list[Sight]) -> Tensor:
        """Joined (T, heads * d) queries, keys and values to what was attended to, (T, heads * d_v)."""
        parts = []
        for sight in sights:
            b, tokens = sight.group.places.shape
            queries, keys, values = (
                # (b, L, H * width) to (b, H, L, width)
                joined[sight.group.places].view(b, tokens, self.n_heads, width).transpose(1, 2)
                for joined, width in ((q, self.d_qk), (k, self.d_qk), (v, self.d_v))
            )
            if torch.is_grad_enabled() and tokens >= _RECOMPUTED_LENGTH:
                mixed: Tensor = checkpoint(self._mix, queries, keys, values, sight, use_reentrant=False)
            else:
                mixed = self._mix(queries, keys, values, sight)
            flat = mixed.transpose(1, 2).reshape(b * tokens, -1)  # (b * L, H * d_v)
            parts.append(flat if sight.group.inside is None else flat[sight.group.inside])
        if len(parts) == 1 and sights[0].group.inside is None:
            return parts[0]  # nothing is padded, and the order was kept
        joined = torch.cat(parts)
        rows = torch.cat([sight.group.rows for sight in sights])
        return torch.empty_like(joined).index_copy(0, rows, joined)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Tensor:
        """(b, heads, L, d) queries, keys and values to (b, heads, L, d_v)."""
        bias = None
        if self.bias is not None:
            assert sight.distances is not None
            bias = self.bias(sight.distances, sight.buckets)
        scale = self.d_qk**-0.5
        if self.softmax:
            return softmax_attention(q, k, v, sight.mask, scale=scale, bias=bias)
        return silu_attention(q, k, v, sight.mask, scale=scale, length=self.length, bias=bias)
