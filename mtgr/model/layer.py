"""The HSTU layer of MTGR: gated SiLU attention between group layer norms, and an optional SiLU MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.config import ModelConfig
from mtgr.kernels.silu_attention import silu_attention
from mtgr.model.norm import GroupLayerNorm


class HSTULayer(nn.Module):
    """One layer, X to X, both (B, L, d_model):

        U, V, Q, K = split(silu(GroupLN(X) W_uvqk))
        A = silu(Q K^T * d_qk^-0.5) * (1 / N) * M
        X = W_o(GroupLN(A V) * U) + X
        X = W_down(silu(GroupLN(X) W_up)) + X       where the config has d_ff > 0

    `uvqk` is one weight, (2 * n_heads * (d_v + d_qk), d_model), in the order U, V, Q, K, each with its heads
    one after the other. The second norm runs over all heads together. No linear has a bias.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.d_qk, self.d_v = config.n_heads, config.d_qk, config.d_v
        self.length = config.max_length
        width_v, width_qk = config.n_heads * config.d_v, config.n_heads * config.d_qk
        self.widths = [width_v, width_v, width_qk, width_qk]
        self.norm_in = GroupLayerNorm(config.d_model, config.norm_eps)
        self.uvqk = nn.Linear(config.d_model, sum(self.widths), bias=False)
        self.norm_attention = GroupLayerNorm(width_v, config.norm_eps)
        self.out = nn.Linear(width_v, config.d_model, bias=False)
        self.has_mlp = config.d_ff > 0
        if self.has_mlp:
            self.norm_mlp = GroupLayerNorm(config.d_model, config.norm_eps)
            self.mlp_up = nn.Linear(config.d_model, config.d_ff, bias=False)
            self.mlp_down = nn.Linear(config.d_ff, config.d_model, bias=False)
        for linear in self.children():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, x: Tensor, groups: Tensor, mask: Tensor) -> Tensor:
        """x: (B, L, d_model); groups: (B, L, GROUPS) one-hot; mask: broadcasts to (B, n_heads, L, L)."""
        batch, tokens, _ = x.shape
        fused = functional.silu(self.uvqk(self.norm_in(x, groups)))
        u, v, q, k = torch.split(fused, self.widths, dim=-1)
        attended = silu_attention(
            q.view(batch, tokens, self.n_heads, self.d_qk).transpose(1, 2),  # (B, H, L, d_qk)
            k.view(batch, tokens, self.n_heads, self.d_qk).transpose(1, 2),
            v.view(batch, tokens, self.n_heads, self.d_v).transpose(1, 2),  # (B, H, L, d_v)
            mask,
            scale=self.d_qk**-0.5,
            length=self.length,
        )
        attended = attended.transpose(1, 2).reshape(batch, tokens, -1)  # (B, L, H * d_v)
        x = x + self.out(self.norm_attention(attended, groups) * u)
        if self.has_mlp:
            x = x + self.mlp_down(functional.silu(self.mlp_up(self.norm_mlp(x, groups))))
        return x
