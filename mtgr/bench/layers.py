"""One HSTU layer against one Transformer layer, forward, at several lengths: the field's own comparison.

The HSTU layer is attention alone: its gate takes the place of an MLP. The Transformer's has an MLP of four times the
width, as is usual. Both have their norms, projections and residuals and take the same tokens. On a GPU what stands
around their attention is compiled, and a captured graph is timed, so that no launch is waited for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.nn import functional

from mtgr.bench.ceilings import typical_seconds
from mtgr.bench.plan import BLOCK_SIZE, Plan
from mtgr.bench.records import DENSE, HSTU, TRANSFORMER, Layer, Missing, RecordFile
from mtgr.bench.work import layer_work
from mtgr.config import GROUPS, ModelConfig
from mtgr.features import EVENT
from mtgr.kernels.paged import plan_step
from mtgr.model.jagged import Layout
from mtgr.model.layer import HSTULayer, Sight
from mtgr.model.masks import causal_mask
from mtgr.presets import preset

_MLP_FACTOR: Final = 4
_GPU_TILES: Final = (64, 128)
_SEED: Final = 6

_Layer = TypeVar("_Layer", "PagedHSTU", "TransformerLayer")


class _Batch(Struct, frozen=True):
    """What the layers are given: like-long sequences, joined."""

    x: Tensor
    """(tokens, d_model)."""
    groups: Tensor
    """(tokens, GROUPS), all of them events."""
    length: int
    sequences: int


class PagedHSTU(nn.Module):
    """An HSTU layer on the paged kernels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = HSTULayer(config)

    def forward(self, x: Tensor, groups: Tensor, attention: PagedAttention) -> Tensor:
        u, v, q, k = self.before(x, groups)
        return self.after(x, attention(q, k, v), u, groups)

    def before(self, x: Tensor, groups: Tensor) -> tuple[Tensor, ...]:
        layer = self.layer
        parts: tuple[Tensor, ...] = torch.split(
            functional.silu(layer.uvqk(layer.norm_in(x, groups))), layer.widths, dim=-1
        )
        return parts

    def after(self, x: Tensor, attended: Tensor, u: Tensor, groups: Tensor) -> Tensor:
        layer = self.layer
        mixed: Tensor = layer.out(layer.norm_attention(attended, groups) * u)
        return x + mixed


class PagedAttention:
    """The cache of one batch, empty before each forward, and the kernels that write and read it."""

    def __init__(self, config: ModelConfig, batch: _Batch, tile_queries: int, device: torch.device) -> None:
        self.heads, self.d_qk, self.d_v = config.n_heads, config.d_qk, config.d_v
        self.normalizer = 1.0 / batch.length
        self.attend, self.store = _kernels(device)
        blocks = -(-batch.length // BLOCK_SIZE)
        shape = (batch.sequences * blocks, self.heads, BLOCK_SIZE, self.d_qk + self.d_v)
        self.cache = torch.zeros(shape, device=device, dtype=batch.x.dtype)
        table = np.arange(batch.sequences * blocks, dtype=np.int32).reshape(batch.sequences, blocks)
        places = np.arange(batch.length)
        slots = table[:, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
        self.slots = torch.from_numpy(slots.ravel().astype(np.int64)).to(device)
        self.step = plan_step(
            np.arange(batch.sequences + 1, dtype=np.int32) * np.int32(batch.length),
            np.full(batch.sequences, batch.length, np.int32),
            torch.from_numpy(table).to(device),
            tile_queries=tile_queries,
            device=device,
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Joined (tokens, heads * d) queries, keys and values to (tokens, heads * d_v)."""
        tokens = len(q)
        query, key = (x.view(tokens, self.heads, self.d_qk) for x in (q, k))
        value = v.view(tokens, self.heads, self.d_v)
        self.store(key, value, self.cache, self.slots)
        attended = torch.empty(value.shape, dtype=v.dtype, device=v.device)
        self.attend(
            query,
            self.cache,
            attended,
            self.step,
            scale=self.d_qk**-0.5,
            normalizer=self.normalizer,
            bias=None,
        )
        return attended.flatten(1)


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

    def forward(self, x: Tensor, starts: Tensor, length: int) -> Tensor:
        """x: (tokens, d_model); starts: (sequences + 1,) int32, where each begins; all are equally long."""
        q, k, v = self.before(x)
        return self.after(x, _softmax_attention(q, k, v, starts, length))

    def before(self, x: Tensor) -> tuple[Tensor, ...]:
        joined = self.qkv(self.norm_attention(x)).view(len(x), 3, self.heads, -1)
        parts: tuple[Tensor, ...] = joined.unbind(1)
        return parts

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
        self.hstu = _compiled(PagedHSTU(config).to(device, self.dtype))
        self.transformer = _compiled(TransformerLayer(config).to(device, self.dtype))
        self.dense = HSTULayer(config).to(device, self.dtype)

    def measure(self, length: int) -> None:
        config, device = self.config, self.device
        sequences = max(1, self.plan.layer_tokens // length)
        tokens = length * sequences
        groups = torch.zeros(tokens, GROUPS, dtype=self.dtype, device=device)
        groups[:, EVENT] = 1
        x = torch.randn(tokens, config.d_model, device=device).to(self.dtype)
        batch = _Batch(x, groups, length, sequences)
        tiles = _GPU_TILES if device.type == "cuda" else (_cpu_tile(),)
        paged = [
            functools.partial(self.hstu, x, groups, PagedAttention(config, batch, tile, device))
            for tile in tiles
        ]
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=device) * length
        attention = "FlashAttention 3" if device.type == "cuda" else "PyTorch's attention"
        self._add(
            HSTU,
            "GroupLN, projection to U, V, Q and K with SiLU, cache update, SiLU attention, GroupLN, gate, output",
            _weights(self.hstu),
            batch,
            paged,
        )
        self._add(
            TRANSFORMER,
            f"LN, projection to Q, K and V, {attention}, output, LN, MLP of {_MLP_FACTOR} times the width with GELU",
            _weights(self.transformer),
            batch,
            [functools.partial(self.transformer, x, starts, length)],
        )
        self._add(
            DENSE,
            "the first one's, eager, with the scores of all pairs in memory",
            _weights(self.dense),
            batch,
            [functools.partial(self.dense, x, groups, _sights(batch, device))],
        )

    def _add(
        self, name: str, contents: str, weights: int, batch: _Batch, calls: Sequence[Callable[[], Tensor]]
    ) -> None:
        """Write down the fastest of the calls, which do the same in tiles of different sizes."""
        plan, config = self.plan, self.config
        try:
            seconds = min(typical_seconds(_captured(call, self.device), self.device) for call in calls)
        except torch.OutOfMemoryError:
            self.records.add(
                Missing(plan.device, plan.preset, f"{name} at {batch.length}", "does not fit in memory")
            )
            return
        work = layer_work(
            weights=weights,
            heads=config.n_heads,
            d_qk=config.d_qk,
            d_v=config.d_v,
            d_model=config.d_model,
            length=batch.length,
            sequences=batch.sequences,
            number_bytes=plan.number_bytes,
        )
        self.records.add(
            Layer(
                device=plan.device,
                dtype=plan.dtype,
                name=name,
                contents=contents,
                length=batch.length,
                sequences=batch.sequences,
                milliseconds=1000 * seconds,
                bytes=work.bytes,
                operations=work.operations,
            )
        )


def _compiled(layer: _Layer) -> _Layer:
    if next(layer.parameters()).is_cuda:
        layer.before = torch.compile(layer.before, dynamic=False)  # type: ignore[method-assign]
        layer.after = torch.compile(layer.after, dynamic=False)  # type: ignore[method-assign]
    return layer


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


def _sights(batch: _Batch, device: torch.device) -> list[Sight]:
    layout = Layout.of(np.full(batch.sequences, batch.length, np.int64), device)
    mask = causal_mask(batch.length, device)
    return [Sight(group, mask, None, None) for group in layout.groups]


def _kernels(device: torch.device) -> tuple[Callable[..., None], Callable[..., None]]:
    if device.type == "cuda":
        from mtgr.kernels import paged_triton

        return paged_triton.attend, paged_triton.store
    from mtgr.kernels import paged_cpu

    return paged_cpu.attend, paged_cpu.store


def _cpu_tile() -> int:
    from mtgr.kernels import paged_cpu

    return paged_cpu.TILE_QUERIES
