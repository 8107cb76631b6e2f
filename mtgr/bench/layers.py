"""One HSTU layer against one Transformer layer, forward, at several lengths: the field's own comparison.

The HSTU layer is attention alone: its gate takes the place of an MLP. The Transformer's has an MLP of four times the
width, as is usual. Both have their norms, projections and residuals, take the same tokens, and are as they would be
served on a GPU: ours on the kernels of `mtgr.kernels`, the Transformer's norms, activation and residuals compiled, both
timed as captured graphs, so that no launch is waited for.
"""

from __future__ import annotations

import functools
import statistics
import traceback
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtgr.bench.ceilings import call_times
from mtgr.bench.plan import BLOCK_SIZE, Plan
from mtgr.bench.records import DENSE, HSTU, TRANSFORMER, Layer, Missing, RecordFile
from mtgr.bench.work import layer_work
from mtgr.config import GROUPS, ModelConfig
from mtgr.features import EVENT
from mtgr.kernels import paged_reference, token_ops
from mtgr.kernels.paged import plan_step, tile_for
from mtgr.model.jagged import Layout
from mtgr.model.layer import HSTULayer, Sight
from mtgr.model.masks import causal_mask
from mtgr.model.norm import GroupLayerNorm
from mtgr.presets import preset

_MLP_FACTOR: Final = 4
_SEED: Final = 6


class PagedHSTU(nn.Module):
    """An HSTU layer on the kernels that serve it, one between two matrix products; in plain PyTorch on a CPU."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        super().__init__()
        self.layer = HSTULayer(config)
        self.heads, self.d_qk, self.d_v = config.n_heads, config.d_qk, config.d_v
        self.ops: Any = token_ops
        self.attend: Callable[..., None] = paged_reference.attend
        if device.type == "cuda":
            from mtgr.kernels import paged_triton, token_ops_triton

            self.ops, self.attend = token_ops_triton, paged_triton.attend

    def forward(self, x: Tensor, delta: Tensor, group: Tensor, cache: PagedCache) -> Tensor:
        """x, delta: (tokens, d_model), whose sum is the layer's input; group: (tokens,) int32."""
        layer = self.layer
        total, normed = self.ops.add_group_norm(x, delta, group, *_norm(layer.norm_in))
        u, q = self.ops.split_silu_store(
            layer.uvqk(normed), cache.kv, cache.slots, None, heads=self.heads, d_qk=self.d_qk, d_v=self.d_v
        )
        attended = torch.empty(len(x), self.heads, self.d_v, dtype=x.dtype, device=x.device)
        self.attend(
            q,
            cache.kv,
            attended,
            cache.step,
            scale=self.d_qk**-0.5,
            normalizer=1.0 / layer.length,
            bias=None,
        )
        gated = self.ops.gated_group_norm(attended.flatten(1), u, group, *_norm(layer.norm_attention))
        mixed: Tensor = total + layer.out(gated)
        return mixed


class PagedCache:
    """The cache of one batch, whose sequences have computed nothing yet, and the plan of its step."""

    def __init__(self, config: ModelConfig, x: Tensor, length: int) -> None:
        sequences = len(x) // length
        blocks = -(-length // BLOCK_SIZE)
        shape = (sequences * blocks, config.n_heads, BLOCK_SIZE, config.d_qk + config.d_v)
        self.kv = torch.zeros(shape, device=x.device, dtype=x.dtype)
        table = np.arange(sequences * blocks, dtype=np.int32).reshape(sequences, blocks)
        places = np.arange(length)
        slots = table[:, places // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + places % BLOCK_SIZE
        self.slots = torch.from_numpy(slots.ravel()).to(x.device)
        self.step = plan_step(
            np.arange(sequences + 1, dtype=np.int32) * np.int32(length),
            np.full(sequences, length, np.int32),
            torch.from_numpy(table).to(x.device),
            tile_queries=tile_for(length),
            device=x.device,
        )


def _norm(norm: GroupLayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


class TransformerLayer(nn.Module):
    """A pre-norm Transformer layer with an MLP; its attention is FlashAttention 3 on a GPU, else PyTorch's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, width = config.d_model, config.n_heads * config.d_qk
        self.heads = config.n_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * width, bias=False), nn.Linear(width, d, bias=False)
        self.up = nn.Linear(d, _MLP_FACTOR * d, bias=False)
        self.down = nn.Linear(_MLP_FACTOR * d, d, bias=False)

    def forward(self, x: Tensor, delta: Tensor, starts: Tensor, length: int) -> Tensor:
        """x, delta: (tokens, d_model), whose sum is the layer's input; starts: (sequences + 1,) int32, where each
        begins, all of them equally long."""
        total, q, k, v = self.before(x, delta)
        return self.after(total, _softmax_attention(q, k, v, starts, length))

    def before(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total = x + delta
        joined = self.qkv(self.norm_attention(total)).view(len(x), 3, self.heads, -1)
        q, k, v = joined.unbind(1)
        return total, q, k, v

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended)
        mixed: Tensor = self.down(functional.gelu(self.up(self.norm_mlp(x))))
        return x + mixed


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, length: int) -> Tensor:
    if q.is_cuda:
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        mixed: Tensor = flash_attn_varlen_func(
            q,
            k,
            v,
            max_seqlen_q=length,
            cu_seqlens_q=starts,
            max_seqlen_k=length,
            cu_seqlens_k=starts,
            causal=True,
            fa_version=3,
        )
        return mixed.flatten(1)
    tokens, heads, width = q.shape
    q, k, v = (part.view(tokens // length, length, heads, width).transpose(1, 2) for part in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).reshape(tokens, heads * width)


def run(plan: Plan, records: RecordFile) -> None:
    """Each length in turn, with as many sequences as fill the tokens of a measurement."""
    device = torch.device(plan.device)
    config = preset(plan.preset).replace(d_ff=0, position_bias=False, time_bias=False)
    torch.manual_seed(_SEED)
    with torch.inference_mode():
        comparison = _Comparison(plan, records, config, device)
        for length in plan.layer_lengths:
            comparison.measure(length)


class _Comparison:
    """The layers, made and compiled once; what their attention needs differs by length."""

    def __init__(self, plan: Plan, records: RecordFile, config: ModelConfig, device: torch.device) -> None:
        self.plan, self.records, self.config, self.device = plan, records, config, device
        self.dtype = getattr(torch, plan.dtype)
        self.hstu = PagedHSTU(config, device).to(device, self.dtype)
        self.transformer = TransformerLayer(config).to(device, self.dtype)
        if device.type == "cuda":
            # what its norms and residuals are fused by, as ours are by kernels of their own
            self.transformer.before = torch.compile(self.transformer.before, dynamic=False)  # type: ignore[method-assign]
            self.transformer.after = torch.compile(self.transformer.after, dynamic=False)  # type: ignore[method-assign]
        self.dense = HSTULayer(config).to(device, self.dtype)

    def measure(self, length: int) -> None:
        config, device = self.config, self.device
        sequences = max(1, self.plan.layer_tokens // length)
        tokens = length * sequences
        x, delta = (torch.randn(tokens, config.d_model, device=device).to(self.dtype) for _ in range(2))
        group = torch.full((tokens,), EVENT, dtype=torch.int32, device=device)
        one_hot = functional.one_hot(group.long(), GROUPS).to(self.dtype)
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=device) * length
        attention = "FlashAttention 3" if device.type == "cuda" else "PyTorch's attention"
        self._add(
            HSTU,
            "residual, GroupLN, projection to U, V, Q and K with SiLU, cache update, SiLU attention, GroupLN, gate, "
            "output, residual",
            _weights(self.hstu),
            length,
            sequences,
            functools.partial(self.hstu, x, delta, group, PagedCache(config, x, length)),
        )
        self._add(
            TRANSFORMER,
            f"residual, LN, projection to Q, K and V, {attention}, output, residual, LN, MLP of {_MLP_FACTOR} times "
            "the width with GELU, residual",
            _weights(self.transformer),
            length,
            sequences,
            functools.partial(self.transformer, x, delta, starts, length),
        )
        self._add(
            DENSE,
            "the first one's without its first residual, eager, with the scores of all pairs in memory",
            _weights(self.dense),
            length,
            sequences,
            functools.partial(self.dense, x, one_hot, _sights(sequences, length, device)),
        )

    def _add(
        self,
        name: str,
        contents: str,
        weights: int,
        length: int,
        sequences: int,
        call: Callable[[], Tensor],
    ) -> None:
        plan, config = self.plan, self.config
        try:
            seconds = statistics.median(call_times(_captured(call, self.device), self.device))
        except Exception as error:  # noqa: BLE001  the other layers are still to be measured
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"[:300]
            self.records.add(Missing(plan.device, plan.preset, f"{name} at {length}", reason))
            return
        work = layer_work(
            weights=weights,
            heads=config.n_heads,
            d_qk=config.d_qk,
            d_v=config.d_v,
            d_model=config.d_model,
            length=length,
            sequences=sequences,
            number_bytes=plan.number_bytes,
        )
        self.records.add(
            Layer(
                device=plan.device,
                dtype=plan.dtype,
                name=name,
                contents=contents,
                length=length,
                sequences=sequences,
                milliseconds=1000 * seconds,
                bytes=work.bytes,
                operations=work.operations,
            )
        )


def _captured(call: Callable[[], Tensor], device: torch.device) -> Callable[[], Any]:
    """The same as a graph that is replayed, where there are graphs."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and finds its workspaces
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def _weights(layer: nn.Module) -> int:
    return sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))


def _sights(sequences: int, length: int, device: torch.device) -> list[Sight]:
    layout = Layout.of(np.full(sequences, length, np.int64), device)
    mask = causal_mask(length, device)
    return [Sight(group, mask, None, None) for group in layout.groups]
