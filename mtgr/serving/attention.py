"""The attention backend that vLLM calls: SiLU attention on its paged KV cache."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheLayout

from mtgr.kernels.dispatch import kernels_for
from mtgr.kernels.paged import PagedStep, plan_step, tile_for
from mtgr.serving.bias import ServedBias


class SiluAttentionMetadataBuilder(AttentionMetadataBuilder):  # type: ignore[misc]
    """Plans a step once; its layers then only compute."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        kernels_for(torch.device(device))  # compiles what there is to compile, which no step should wait for

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> PagedStep:
        """Cut the step's queries into tiles."""
        common = common_attn_metadata
        requests = common.num_reqs
        return layers_step(
            common.query_start_loc_cpu[: requests + 1].numpy(),
            common.seq_lens[:requests].cpu().numpy(),
            common.block_table_tensor[:requests],
        )


def layers_step(
    query_starts: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32], block_table: Tensor
) -> PagedStep:
    """What the layers of a step share, on the device of the block table; arguments as of `PagedStep`."""
    tile_queries = tile_for(int(np.diff(query_starts).max(initial=1)))
    return plan_step(query_starts, lengths, block_table, tile_queries=tile_queries, device=block_table.device)


class SiluAttentionImpl(AttentionImpl):  # type: ignore[misc]
    """SiLU attention of one layer: silu(Q K^T * scale + bias) / length, causally masked, times V."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        *,
        length: int,
        bias: ServedBias | None,
    ) -> None:
        """`length` is the N of the model's constant 1/N, `bias` of the layer; the rest is vLLM's."""
        if num_kv_heads not in (None, num_heads):
            raise ValueError(f"num_kv_heads is {num_kv_heads}, where HSTU has one for each head: {num_heads}")
        if kv_cache_dtype not in ("auto", "float16", "bfloat16", "float32", "fp8", "fp8_e4m3"):
            raise ValueError(f"kv_cache_dtype is {kv_cache_dtype!r}, where 'auto' or 'fp8' is wanted")
        self.num_heads = num_heads
        self.num_kv_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.kv_cache_dtype = kv_cache_dtype
        self._length = length
        self._bias = bias

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write a step's keys and values to their slots; runs before `forward`."""
        timed = self._bias is not None and self._bias.by_time is not None
        kernels_for(key.device).store(key, value, cache_numbers(kv_cache), slot_mapping, timed=timed)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: PagedStep | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """query: (tokens, heads, head_size); output: (tokens, heads, d_v), written and returned."""
        if attn_metadata is None:  # a profiling run has no cache to read
            return output.zero_()
        kernels_for(query.device).attend(
            query,
            cache_numbers(kv_cache),
            output,
            attn_metadata,
            scale=self.scale,
            normalizer=1.0 / self._length,
            bias=None if self._bias is None else self._bias.tables,
        )
        return output


def cache_numbers(kv_cache: Tensor) -> Tensor:
    """The cache with the type of its numbers: vLLM makes one of FP8 as bytes."""
    return kv_cache.view(torch.float8_e4m3fn) if kv_cache.dtype == torch.uint8 else kv_cache


class SiluAttentionBackend(AttentionBackend):  # type: ignore[misc]
    """Names the parts, and tells vLLM what cache they read: (blocks, heads, block_size, head_size + d_v)."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16, torch.float16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16", "fp8", "fp8_e4m3"]
    forward_includes_kv_cache_update = False

    @staticmethod
    def get_name() -> str:
        """The registry's slot for backends from outside vLLM."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[SiluAttentionImpl]:
        """What runs in a layer."""
        return SiluAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[SiluAttentionMetadataBuilder]:
        """What runs once a step."""
        return SiluAttentionMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        """Any block size will do."""
        return [MultipleOf(1)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Head-major blocks, so that one gather yields a head's keys and values in order."""
        return (KVCacheLayout.LBHNC,)
