"""MTGR's layer around vLLM's linears and paged cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed import tensor_model_parallel_all_reduce as all_reduce
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.platforms import current_platform

from mtgr.config import GROUPS, ModelConfig
from mtgr.model.norm import GroupLayerNorm
from mtgr.serving.attention import SiluAttentionBackend, cache_numbers
from mtgr.serving.bias import ServedBias
from mtgr.serving.served_config import head_size

if current_platform.is_cuda():
    from mtgr.kernels import paged_triton, token_ops_triton


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
        self.d_qk, self.d_v = config.d_qk, config.d_v
        self.normalizer = 1.0 / config.max_length
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

    def fused(
        self, x: Tensor, delta: Tensor | None, group: Tensor, times: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`forward` on a GPU, a kernel for all that stands between two matrix products.

        x, delta: (tokens, d_model), of which the sum is the layer's input; group: (tokens,) int32. Returns the layer's
        output in the same way, so that the sum is made where the next norm reads it.
        """
        context = get_forward_context()
        name = self.attention.layer_name
        cache, slots = cache_numbers(self.attention.kv_cache), context.slot_mapping[name]
        step = context.attn_metadata[name]
        x, normed = self._add_norm(x, delta, group, self.norm_in)
        projected, _ = self.uvqk(normed)
        u, q = token_ops_triton.split_silu_store(
            projected, cache, slots, times, heads=self.heads, d_qk=self.d_qk, d_v=self.d_v
        )
        attended = torch.zeros_like(u) if len(slots) < len(u) else torch.empty_like(u)
        paged_triton.attend(
            q,
            cache,
            attended.view(len(u), self.heads, self.d_v),
            step,
            scale=self.d_qk**-0.5,
            normalizer=self.normalizer,
            bias=None if self.bias is None else self.bias.tables,
        )
        norm = self.norm_attention
        if norm.ranks == 1:
            gated = token_ops_triton.gated_group_norm(attended, u, group, norm.weight, norm.bias, norm.eps)
        else:
            gated = norm(attended, functional.one_hot(group.long(), GROUPS).to(u.dtype)) * u
        mixed, _ = self.out(gated)
        if not self.has_mlp:
            return x, mixed
        x, normed = self._add_norm(x, mixed, group, self.norm_mlp)
        up, _ = self.mlp_up(normed)
        down, _ = self.mlp_down(token_ops_triton.silu_(up))
        return x, down

    @staticmethod
    def _add_norm(
        x: Tensor, delta: Tensor | None, group: Tensor, norm: GroupLayerNorm
    ) -> tuple[Tensor, Tensor]:
        if delta is None:
            return x, token_ops_triton.group_norm(x, group, norm.weight, norm.bias, norm.eps)
        return token_ops_triton.add_group_norm(x, delta, group, norm.weight, norm.bias, norm.eps)

    def _timed(self, joined: Tensor, times: Tensor) -> Tensor:
        """(tokens, heads * d_qk) queries or keys with the times of their tokens after each head's."""
        lanes = times.unsqueeze(1).expand(-1, self.heads, -1)
        return torch.cat([joined.view(len(joined), self.heads, -1), lanes], dim=-1).flatten(1)
