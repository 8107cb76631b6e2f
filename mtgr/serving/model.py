"""MTGR as a vLLM model: the reference's embeddings, norms and head around vLLM's linears and paged cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import maybe_prefix

from mtgr.additions import Addition
from mtgr.config import GROUPS, TIME_LANES, VIDEO_LANES
from mtgr.features import CANDIDATE, GROUP_LANE, TIME_LANE, VIDEO_LANE
from mtgr.model.embeddings import TokenEmbedding
from mtgr.model.head import NextItemHead
from mtgr.serving.hf_config import model_config_of
from mtgr.serving.layer import ServedLayer
from mtgr.serving.served_config import check_served
from mtgr.serving.videos import CHUNK, ServedVideoEmbedding

NOT_SERVED: Final = "ranking."
"""Tensors of a checkpoint that lists are not made of."""


class MTGRForRecommendation(nn.Module):
    """A checkpoint of `mtgr.model.mtgr.MTGR`, served: rows in as prompt embeddings, catalog logits out."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """InputError if the config asks for what is not served."""
        super().__init__()
        config = model_config_of(vllm_config.model_config.hf_config)
        check_served(config)
        self.config = config
        self.embeddings = TokenEmbedding(config)
        self.embeddings.video = ServedVideoEmbedding(config)
        self.layers = nn.ModuleList(
            ServedLayer(config, vllm_config, maybe_prefix(prefix, f"layers.{index}"))
            for index in range(config.n_layers)
        )
        self.head = NextItemHead(config)
        # what the head's queries meet, made once at loading: the reference makes it at each call. The bias of a place
        # that has no video is -inf, so that nothing is ever sampled from it.
        self.videos = ParallelLMHead(
            config.n_slots,
            config.d_model,
            bias=config.item_bias or config.spare_items > 0,
            prefix=maybe_prefix(prefix, "videos"),
        )
        self.logits_processor = LogitsProcessor(config.n_slots)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(tokens,) item indices to (tokens, row_width) rows, as `mtgr.features.candidate_rows` makes them."""
        rows = self.embeddings.profile.everybody.new_zeros((*input_ids.shape, self.config.row_width))
        rows[..., GROUP_LANE] = CANDIDATE
        for byte in range(VIDEO_LANES):
            rows[..., VIDEO_LANE + byte] = ((input_ids >> (8 * byte)) & 255).to(rows.dtype)
        return rows

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """inputs_embeds: (tokens, row_width) rows; positions: (tokens,) int64. Returns (tokens, d_model)."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        x, groups, _ = self.embeddings(inputs_embeds, positions)  # of the weights' type
        times = None
        if self.config.time_bias:
            times = inputs_embeds[:, TIME_LANE : TIME_LANE + TIME_LANES].to(x.dtype)
        if x.is_cuda and is_forward_context_available() and get_forward_context().attn_metadata is not None:
            group = inputs_embeds[:, GROUP_LANE].clamp(0, GROUPS - 1).to(torch.int32)
            delta: Tensor | None = None
            for layer in self.layers:
                assert isinstance(layer, ServedLayer)
                x, delta = layer.fused(x, delta, group, times)
            assert delta is not None
            total: Tensor = x + delta
            return total
        for layer in self.layers:
            x = layer(x, groups, times)
        hidden: Tensor = x
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """(tokens, d_model) to (tokens, n_slots): as `NextItemHead`, and -inf where no video is."""
        query = self.head.query(hidden_states)
        logits: Tensor | None = self.logits_processor(self.videos, query, self.videos.bias)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the checkpoint's tensors; raises KeyError for one that the model does not have."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        loaded = set()
        for name, tensor in weights:
            if name.startswith(NOT_SERVED):
                continue
            self._load(tensors[name], tensor)
            loaded.add(name)
        self._catalog.settle()
        return loaded | self._load_videos()

    @torch.no_grad()
    def add_videos(self, additions: Sequence[Addition]) -> None:
        """Put new videos into spare places of the catalog: what the reference does by `add_videos`."""
        places = self._catalog.join(additions)
        if self.head.bias is not None:
            buckets = torch.tensor([addition.bucket for addition in additions], device=places.device)
            self.head.bias[places] = self.head.bias[buckets]
        shard = self.videos.shard_indices
        first, last = shard.org_vocab_start_index, shard.org_vocab_end_index
        own = places[(places >= first) & (places < last)]
        self.videos.weight[own - first] = self._keys(own)
        bias = self.head.bias[own] if self.head.bias is not None else 0.0
        self.videos.bias[own - first] = torch.as_tensor(bias, dtype=self.videos.bias.dtype)
        # on a CPU the products are made with a packed copy of the weights
        self.videos.quant_method.process_weights_after_loading(self.videos)

    @torch.no_grad()
    def _load_videos(self) -> set[str]:
        """Fill the head's keys and biases from what was loaded; returns the names of what was filled."""
        slots = torch.arange(self.config.n_slots, device=self._catalog.ids.weight.device)
        self._load(self.videos.weight, torch.cat([self._keys(some) for some in torch.split(slots, CHUNK)]))
        if self.videos.bias is None:
            return {"videos.weight"}
        bias = torch.zeros(len(slots)) if self.head.bias is None else self.head.bias[slots].clone()
        bias[self.config.n_items :] = -torch.inf
        self._load(self.videos.bias, bias)
        return {"videos.weight", "videos.bias"}

    @property
    def _catalog(self) -> ServedVideoEmbedding:
        video = self.embeddings.video
        assert isinstance(video, ServedVideoEmbedding)
        return video

    def _keys(self, indices: Tensor) -> Tensor:
        """(n, d_model) in the weights' type of (n,) item indices, computed in float32."""
        vectors = self._catalog.ids.weight[indices]
        return self.head.key(vectors.float()).to(vectors.dtype)

    @staticmethod
    def _load(parameter: Tensor, tensor: Tensor) -> None:
        getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
