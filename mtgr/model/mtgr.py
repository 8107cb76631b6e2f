"""The whole model: feature rows in, hidden states out, and logits over the catalog."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtgr.config import ModelConfig
from mtgr.model.embeddings import TokenEmbedding
from mtgr.model.head import NextItemHead
from mtgr.model.layer import HSTULayer
from mtgr.model.masks import causal_mask


class MTGR(nn.Module):
    """MTGR with a next-item head; its state dict is the checkpoint's format.

    embeddings.video.ids.weight             (n_items + unknown_buckets, d_model)
    embeddings.discrete.NAME.weight         (size, d_model), one for each discrete feature
    embeddings.continuous_in.{weight,bias}  (d_model, n_continuous), (d_model,)
    embeddings.continuous_out.{weight,bias} (d_model, d_model), (d_model,)
    embeddings.profile                      (d_model,)
    embeddings.positions.weight             (max_length, d_model), where positions are absolute
    layers.I.norm_in.{weight,bias}          (GROUPS, d_model)
    layers.I.uvqk.weight                    (2 * n_heads * (d_v + d_qk), d_model), order U, V, Q, K
    layers.I.norm_attention.{weight,bias}   (GROUPS, n_heads * d_v)
    layers.I.out.weight                     (d_model, n_heads * d_v)
    layers.I.norm_mlp.{weight,bias}         (GROUPS, d_model), this and the next two where d_ff > 0
    layers.I.mlp_up.weight                  (d_ff, d_model)
    layers.I.mlp_down.weight                (d_model, d_ff)
    head.norm.{weight,bias}                 (d_model,)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbedding(config)
        self.layers = nn.ModuleList(HSTULayer(config) for _ in range(config.n_layers))
        self.head = NextItemHead(config)

    def forward(self, rows: Tensor) -> Tensor:
        """rows: (B, L, row_width), padded on the right. Returns hidden states (B, L, d_model).

        The causal mask keeps padding out of every real token; what stands at padded places means nothing.
        """
        tokens = rows.shape[1]
        x: Tensor
        groups: Tensor
        x, groups = self.embeddings(rows, torch.arange(tokens, device=rows.device))
        mask = causal_mask(tokens, rows.device)
        for layer in self.layers:
            x = layer(x, groups, mask)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., d_model) hidden states to (..., n_items) logits of the video watched next."""
        scores: Tensor = self.head(hidden, self.embeddings.video.catalog())
        return scores


def parameter_counts(config: ModelConfig) -> tuple[int, int]:
    """(all parameters, those of the video embedding), counted on a model without storage."""
    with torch.device("meta"):
        model = MTGR(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, sum(parameter.numel() for parameter in model.embeddings.video.parameters())
