"""MTGR as a vLLM model: the reference's embeddings, norms and head around vLLM's linears and paged cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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

from mtgr.config import VIDEO_LANES, ModelConfig
from mtgr.features import EVENT, GROUP_LANE, PROFILE, VIDEO_LANE
from mtgr.model.embeddings import TokenEmbedding
from mtgr.model.head import NextItemHead
from mtgr.model.norm import GroupLayerNorm
from mtgr.serving.attention import SiluAttentionBackend
from mtgr.serving.hf_config import model_config_of

VIDEO_WEIGHT = "embeddings.video.ids.weight"


class ShardedGroupLayerNorm(GroupLayerNorm):
    """GroupLN over a width of which each tensor-parallel rank holds a part."""

    def __init__(self, width: int, eps: float) -> None:
        self.ranks = get_tensor_model_parallel_world_size()
        self.width = width
        super().__init__(width // self.ranks, eps)
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
        self.norm_in = GroupLayerNorm(config.d_model, config.norm_eps)
        self.uvqk = MergedColumnParallelLinear(
            config.d_model, widths, bias=False, quant_config=quant, prefix=f"{prefix}.uvqk"
        )
        self.attention = Attention(
            config.n_heads // ranks,
            config.d_qk,
            config.d_qk**-0.5,
            head_size_v=config.d_v,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attention",
            attn_backend=SiluAttentionBackend,
            length=config.max_length,
        )
        self.norm_attention = ShardedGroupLayerNorm(width_v, config.norm_eps)
        self.out = RowParallelLinear(
            width_v, config.d_model, bias=False, quant_config=quant, prefix=f"{prefix}.out"
        )
        self.has_mlp = config.d_ff > 0
        if self.has_mlp:
            self.norm_mlp = GroupLayerNorm(config.d_model, config.norm_eps)
            self.mlp_up = ColumnParallelLinear(
                config.d_model, config.d_ff, bias=False, quant_config=quant, prefix=f"{prefix}.mlp_up"
            )
            self.mlp_down = RowParallelLinear(
                config.d_ff, config.d_model, bias=False, quant_config=quant, prefix=f"{prefix}.mlp_down"
            )

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        """x: (tokens, d_model); groups: (tokens, GROUPS) one-hot."""
        projected, _ = self.uvqk(self.norm_in(x, groups))
        u, v, q, k = torch.split(functional.silu(projected), self.widths, dim=-1)
        attended = self.attention(q, k, v, output_shape=v.shape)
        mixed, _ = self.out(self.norm_attention(attended, groups) * u)
        x = x + mixed
        if self.has_mlp:
            up, _ = self.mlp_up(self.norm_mlp(x, groups))
            down, _ = self.mlp_down(functional.silu(up))
            x = x + down
        return x


class MTGRForRecommendation(nn.Module):
    """A checkpoint of `mtgr.model.mtgr.MTGR`, served: rows in as prompt embeddings, catalog logits out."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = model_config_of(vllm_config.model_config.hf_config)
        self.config = config
        self.embeddings = TokenEmbedding(config)
        self.layers = nn.ModuleList(
            ServedLayer(config, vllm_config, maybe_prefix(prefix, f"layers.{index}"))
            for index in range(config.n_layers)
        )
        self.head = NextItemHead(config)
        # the catalog's unit vectors, made once at loading: the head of the reference makes them at each call
        self.videos = ParallelLMHead(config.n_items, config.d_model, prefix=maybe_prefix(prefix, "videos"))
        self.logits_processor = LogitsProcessor(config.n_items)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """(tokens,) token ids to (tokens, row_width) rows: the video or the profile, without features."""
        rows = self.embeddings.profile.new_zeros((*input_ids.shape, self.config.row_width))
        profile = input_ids >= self.config.profile_id
        rows[..., GROUP_LANE] = torch.where(profile, PROFILE, EVENT).to(rows.dtype)
        for byte in range(VIDEO_LANES):
            lane = (input_ids >> (8 * byte)) & 255
            rows[..., VIDEO_LANE + byte] = lane.masked_fill(profile, 0).to(rows.dtype)
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
        # the positions of a profiling run may lie past the longest sequence
        x, groups = self.embeddings(inputs_embeds, positions.clamp(max=self.config.max_length - 1))
        for layer in self.layers:
            x = layer(x, groups)
        hidden: Tensor = x
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """(tokens, d_model) to (tokens, n_items): the cosine with each video, over the temperature."""
        logits: Tensor | None = self.logits_processor(self.videos, self.head.query(hidden_states))
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the checkpoint's tensors; raises KeyError for one that the model does not have."""
        parameters = dict(self.named_parameters())
        loaded = set()
        for name, tensor in weights:
            self._load(parameters[name], tensor)
            loaded.add(name)
            if name == VIDEO_WEIGHT:
                unit = functional.normalize(tensor[: self.config.n_items].float(), dim=-1)
                self._load(self.videos.weight, unit.to(self.videos.weight.dtype))
                loaded.add("videos.weight")
        return loaded

    @staticmethod
    def _load(parameter: nn.Parameter, tensor: Tensor) -> None:
        getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
