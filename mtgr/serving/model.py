"""MTGR as a vLLM model: the reference's embeddings, norms and head around vLLM's linears and paged cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed import tensor_model_parallel_all_reduce as all_reduce
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.utils import maybe_prefix

from mtgr.additions import Addition
from mtgr.config import GROUPS, TIME_LANES, VIDEO_LANES, ModelConfig
from mtgr.features import CANDIDATE, GROUP_LANE, TIME_LANE, VIDEO_LANE
from mtgr.model.embeddings import TokenEmbedding
from mtgr.model.head import NextItemHead
from mtgr.model.norm import GroupLayerNorm
from mtgr.serving.attention import SiluAttentionBackend
from mtgr.serving.bias import ServedBias
from mtgr.serving.hf_config import model_config_of
from mtgr.serving.options import check_served, head_size
from mtgr.serving.videos import CHUNK, ServedVideoEmbedding

NOT_SERVED: Final = "ranking."
"""Tensors of a checkpoint that lists are not made of."""


class ShardedGroupLayerNorm(GroupLayerNorm):
    """GroupLN over a width of which each tensor-parallel rank holds a part."""

    def __init__(self, width: int, eps: float, groups: int) -> None:
        self.ranks = get_tensor_model_parallel_world_size()
        self.width = width
        super().__init__(width // self.ranks, eps, groups)
        for parameter in (self.weight, self.bias):
            parameter.weight_loader = self._load_part  # type: ignore[attr-defined]

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        """As GroupLayerNorm, with the statistics of the whole width."""
        if self.ranks == 1:
            return super().forward(x, groups)
        wide = x.float()
        mean = all_reduce(wide.sum(-1, keepdim=True)) / self.width
        centred = wide - mean
        variance = all_reduce(centred.square().sum(-1, keepdim=True)) / self.width
        normed = (centred * torch.rsqrt(variance + self.eps)).to(x.dtype)
        if len(self.weight) == 1:
            return torch.addcmul(self.bias[0], normed, self.weight[0])
        return torch.addcmul(groups @ self.bias, normed, groups @ self.weight)

    def _load_part(self, parameter: nn.Parameter, loaded: Tensor) -> None:
        part = parameter.shape[-1]
        first = part * get_tensor_model_parallel_rank()
        default_weight_loader(parameter, loaded[..., first : first + part])


class ServedLayer(nn.Module):
    """`mtgr.model.layer.HSTULayer`, token by token: what a token sees lies in the cache."""

    def __init__(self, config: ModelConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        quant = vllm_config.quant_config
        ranks = get_tensor_model_parallel_world_size()
        if config.n_heads % ranks:
            raise ValueError(
                f"tensor_parallel_size is {ranks}, where a divisor of n_heads {config.n_heads} is wanted"
            )
        width_v, width_qk = config.n_heads * config.d_v, config.n_heads * config.d_qk
        widths = [width_v, width_v, width_qk, width_qk]
        self.widths = [width // ranks for width in widths]
        self.heads = config.n_heads // ranks
        norms = GROUPS if config.group_norm else 1
        self.norm_in = GroupLayerNorm(config.d_model, config.norm_eps, norms)
        self.uvqk = MergedColumnParallelLinear(
            config.d_model, widths, bias=False, quant_config=quant, prefix=f"{prefix}.uvqk"
        )
        self.bias = ServedBias(config) if config.position_bias or config.time_bias else None
        self.attention = Attention(
            self.heads,
            head_size(config),
            config.d_qk**-0.5,
            head_size_v=config.d_v,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attention",
            attn_backend=SiluAttentionBackend,
            length=config.max_length,
            bias=self.bias,
        )
        self.norm_attention = ShardedGroupLayerNorm(width_v, config.norm_eps, norms)
        self.out = RowParallelLinear(
            width_v, config.d_model, bias=False, quant_config=quant, prefix=f"{prefix}.out"
        )
        self.has_mlp = config.d_ff > 0
        if self.has_mlp:
            self.norm_mlp = GroupLayerNorm(config.d_model, config.norm_eps, norms)
            self.mlp_up = ColumnParallelLinear(
                config.d_model, config.d_ff, bias=False, quant_config=quant, prefix=f"{prefix}.mlp_up"
            )
            self.mlp_down = RowParallelLinear(
                config.d_ff, config.d_model, bias=False, quant_config=quant, prefix=f"{prefix}.mlp_down"
            )

    def forward(self, x: Tensor, groups: Tensor, times: Tensor | None) -> Tensor:
        """x: (tokens, d_model); groups: (tokens, GROUPS) one-hot; times: (tokens, TIME_LANES) where there is a bias
        by them."""
        projected, _ = self.uvqk(self.norm_in(x, groups))
        u, v, q, k = torch.split(functional.silu(projected), self.widths, dim=-1)
        if times is not None:
            q, k = self._timed(q, times), self._timed(k, times)
        attended = self.attention(q, k, v, output_shape=v.shape)
        mixed, _ = self.out(self.norm_attention(attended, groups) * u)
        x = x + mixed
        if self.has_mlp:
            up, _ = self.mlp_up(self.norm_mlp(x, groups))
            down, _ = self.mlp_down(functional.silu(up))
            x = x + down
        return x

    def _timed(self, joined: Tensor, times: Tensor) -> Tensor:
        """(tokens, heads * d_qk) queries or keys with the times of their tokens after each head's."""
        lanes = times.unsqueeze(1).expand(-1, self.heads, -1)
        return torch.cat([joined.view(len(joined), self.heads, -1), lanes], dim=-1).flatten(1)


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
        x, groups, _ = self.embeddings(inputs_embeds, positions)
        times = None
        if self.config.time_bias:
            times = inputs_embeds[:, TIME_LANE : TIME_LANE + TIME_LANES].to(x.dtype)
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
