"""The whole model: feature rows in, hidden states out, and logits over the catalog."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.config import ModelConfig
from mtgr.kernels.time_buckets import time_buckets
from mtgr.model.embeddings import TokenEmbedding
from mtgr.model.head import NextItemHead, RankingHead
from mtgr.model.jagged import Layout
from mtgr.model.layer import HSTULayer, Sight
from mtgr.model.masks import Roles, causal_mask, history_roles, mixed_mask


class MTGR(nn.Module):
    """MTGR with a next-item head; its state dict is the checkpoint's format.

    embeddings.video.ids.weight             (n_indices, d_model): catalog, spare places, buckets
    embeddings.video.categories             (n_indices, columns) int32, what is known of each video; this and the
    embeddings.video.numbers                (n_indices, numbers) float32     next four where the config says so
    embeddings.video.attributes.categories.weight  (1 + sizes, d_model)
    embeddings.video.attributes.numbers.{weight,bias}
    embeddings.video.attributes.out.{weight,bias}
    embeddings.profile.everybody            (d_model,)
    embeddings.profile.attributes.*         as those of a video
    embeddings.discrete.NAME.weight         (size, d_model), one for each discrete feature
    embeddings.continuous_in.{weight,bias}  (d_model, n_continuous), (d_model,)
    embeddings.continuous_out.{weight,bias} (d_model, d_model), (d_model,)
    embeddings.positions.weight             (max_length, d_model), where positions are absolute
    layers.I.norm_in.{weight,bias}          (GROUPS, d_model)
    layers.I.uvqk.weight                    (2 * n_heads * (d_v + d_qk), d_model), order U, V, Q, K
    layers.I.bias.by_position.weight        (max_length, n_heads), where the config has a position bias
    layers.I.bias.by_time.weight            (TIME_BUCKETS, n_heads), where it has a time bias
    layers.I.norm_attention.{weight,bias}   (GROUPS, n_heads * d_v)
    layers.I.out.weight                     (d_model, n_heads * d_v)
    layers.I.norm_mlp.{weight,bias}         (GROUPS, d_model), this and the next two where d_ff > 0
    layers.I.mlp_up.weight                  (d_ff, d_model)
    layers.I.mlp_down.weight                (d_model, d_ff)
    head.norm.{weight,bias}                 (d_model,)
    head.bias                               (n_indices,), where the config has an item bias
    ranking.*                               where the config names ranking heads
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        """`dropout` is of the tokens and of what each layer adds, while the model trains."""
        super().__init__()
        self.config = config
        self.dropout = dropout
        self.embeddings = TokenEmbedding(config)
        self.layers = nn.ModuleList(HSTULayer(config, dropout) for _ in range(config.n_layers))
        self.head = NextItemHead(config)
        self.ranking = RankingHead(config) if config.ranking else None

    def forward(
        self, rows: Tensor, layout: Layout, roles: Roles | None = None, cold: Tensor | None = None
    ) -> Tensor:
        """Hidden states (T, d_model) of joined sequences; rows: (T, row_width), taken apart by the layout.

        roles: of the T tokens; without them they are whole histories, under the config's mask. cold: (T,) bool, as in
        `mtgr.model.videos.VideoEmbedding`.
        """
        if roles is None and self.config.mask == "mixed":
            roles = history_roles(layout, self.config.recent_events)
        order = layout.positions if roles is None else roles.order
        x, groups, times = self.embeddings(rows, order, cold)
        x = functional.dropout(x, self.dropout, self.training)
        sights = [
            self._sight(group_number, layout, roles, times) for group_number in range(len(layout.groups))
        ]
        for layer in self.layers:
            x = layer(x, groups, sights)
        hidden: Tensor = x
        return hidden

    def _sight(self, number: int, layout: Layout, roles: Roles | None, times: Tensor | None) -> Sight:
        group = layout.groups[number]
        longest = group.places.shape[1]
        device = group.places.device
        if roles is None:
            mask = causal_mask(longest, device)
            order = torch.arange(longest, device=device)
        else:
            of_group = roles.at(group.places)
            mask = mixed_mask(of_group, both_ways=self.config.mask == "mixed").unsqueeze(1)
            order = of_group.order
        distances = buckets = None
        if self.config.position_bias or self.config.time_bias:
            distances = order.unsqueeze(-1) - order.unsqueeze(-2)
        if times is not None:
            of_tokens = times[group.places]
            buckets = time_buckets(of_tokens.unsqueeze(-1), of_tokens.unsqueeze(-2))
        return Sight(group, mask, distances, buckets)

    def logits(self, hidden: Tensor, videos: int | None = None) -> Tensor:
        """(..., d_model) hidden states to (..., videos) logits of the video watched next; n_items by default."""
        scores: Tensor = self.head(hidden, self.embeddings.video.catalog(videos))
        return scores


def parameter_counts(config: ModelConfig) -> tuple[int, int]:
    """(all parameters, those of the video embedding), counted on a model without storage."""
    with torch.device("meta"):
        model = MTGR(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, sum(parameter.numel() for parameter in model.embeddings.video.parameters())
