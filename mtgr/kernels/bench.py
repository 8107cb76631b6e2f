"""`python -m mtgr.kernels.bench`: time the GPU kernels beside what the machine can do, and other launches of them.

Times are medians over replays of a graph, so that they hold no launch from Python. The tables of
`mtgr.kernels.launches` are chosen by what this prints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
import triton
from torch import Tensor
from triton.testing import do_bench_cudagraph

from mtgr.kernels import paged_triton, token_ops_triton
from mtgr.kernels.device_functions import BY_EXP, BY_TANH
from mtgr.kernels.launches import TileLaunch, tile_launch
from mtgr.kernels.paged import BiasTables, PagedStep, plan_step
from mtgr.kernels.time_buckets import TIME_BUCKETS
from mtgr.kernels.top_k_triton import top_k

HEADS, D, D_MODEL, D_FF, SLOTS, SEEN = 16, 64, 1024, 4096, 50_000, 1000  # of the preset seed-high
BF16: Final = torch.bfloat16
FP8: Final = torch.float8_e4m3fn

PREFILLS: Final = ((1, 8192), (8, 500), (64, 200))
DECODES: Final = ((1, 1000), (8, 1000), (64, 1000), (512, 1000))
TOKENS: Final = (64, 512, 8192)

TILE_LAUNCHES: Final = {
    64: (
        TileLaunch(64, 4, 3),
        TileLaunch(64, 4, 3, tanh=True),
        TileLaunch(64, 4, 2),
        TileLaunch(32, 4, 3),
        TileLaunch(128, 4, 2),
    ),
    128: (
        TileLaunch(64, 8, 3),
        TileLaunch(64, 8, 3, tanh=True),
        TileLaunch(128, 8, 2),
        TileLaunch(64, 4, 3),
    ),
}
ROW_LAUNCHES: Final = (
    TileLaunch(64, 4, 3),
    TileLaunch(64, 4, 1),
    TileLaunch(32, 4, 3),
    TileLaunch(32, 2, 1),
    TileLaunch(128, 4, 2),
    TileLaunch(128, 8, 1),
)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine reaches: bytes a second of a copy, read and written; operations a second of a product."""

    bytes: float
    operations: float


@dataclass(frozen=True, slots=True)
class Work:
    """A step on the GPU, and what it must read and compute at the least."""

    query: Tensor
    cache: Tensor
    output: Tensor
    step: PagedStep
    bias: BiasTables | None
    bytes: int
    operations: int

    def run(self, launch: TileLaunch | None = None) -> None:
        """One layer's attention."""
        paged_triton.attend(
            self.query,
            self.cache,
            self.output,
            self.step,
            scale=D**-0.5,
            normalizer=1 / 1024,
            bias=self.bias,
            launch=launch,
        )


def make_work(
    users: int,
    cached: int,
    new: int,
    tile_queries: int,
    *,
    block_size: int = 16,
    cache_dtype: torch.dtype = BF16,
    biased: bool = False,
) -> Work:
    """Users with so many tokens each, their blocks in no order."""
    lengths = np.full(users, cached + new, np.int32)
    starts = np.arange(users + 1, dtype=np.int32) * np.int32(new)
    blocks = -(-(cached + new) // block_size)
    table = torch.randperm(users * blocks, dtype=torch.int32, device="cuda").view(users, blocks)
    step = plan_step(starts, lengths, table, tile_queries=tile_queries, device=table.device)
    lanes = 4 if biased else 0
    width = 2 * D + lanes
    cache = torch.empty(users * blocks, HEADS, block_size, width, dtype=BF16, device="cuda").normal_()
    query = torch.randn(users * new, HEADS, D + lanes, dtype=BF16, device="cuda")
    bias = None
    if biased:
        cache[..., D : D + lanes].random_(0, 256)
        query[..., D:].random_(0, 256)
        tables = (torch.randn(HEADS, count, dtype=BF16, device="cuda") for count in (1024, TIME_BUCKETS))
        bias = BiasTables(*tables)
    pairs = users * (new * cached + new * (new + 1) // 2)
    held = users * (cached + new) * HEADS * width * cache_dtype.itemsize
    return Work(
        query,
        cache.to(cache_dtype),
        torch.empty(users * new, HEADS, D, dtype=BF16, device="cuda"),
        step,
        bias,
        bytes=held + 2 * query.nbytes,
        operations=4 * D * HEADS * pairs,
    )


def measure(run: Callable[[], object]) -> float:
    """Seconds of one call, the median."""
    torch.cuda.synchronize()  # it runs on a stream of its own, which would not wait for what the call reads
    return float(do_bench_cudagraph(run, rep=10, return_mode="median")) / 1e3


def measure_ceilings() -> Ceilings:
    """By a copy of two gigabytes and a product of random matrices."""
    source = torch.empty(1 << 30, dtype=BF16, device="cuda").normal_()
    target = torch.empty_like(source)
    copied = measure(lambda: target.copy_(source))
    a, b = torch.randn(2, 8192, 8192, dtype=BF16, device="cuda").unbind()
    return Ceilings(2 * source.nbytes / copied, 2 * 8192**3 / measure(lambda: a @ b))


def show(name: str, seconds: float, ceilings: Ceilings, moved: int, operations: int = 0) -> None:
    """One line: microseconds, and rates with their parts of the ceilings."""
    rate, speed = moved / seconds, operations / seconds
    line = f"{name:58} {1e6 * seconds:9.1f} us {rate / 1e9:7.0f} GB/s ({rate / ceilings.bytes:4.0%})"
    if operations:
        line += f" {speed / 1e12:6.0f} TFLOP/s ({speed / ceilings.operations:4.0%})"
    say(line)


def say(line: str) -> None:
    """A line at once, so that a run that is cut off has told what it knows."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def bench_attention(ceilings: Ceilings) -> None:
    """Every shape by the launch that it would have, and by others; then formats, blocks and biases."""
    for users, tokens in PREFILLS:
        for tile, launches in TILE_LAUNCHES.items():
            _sweep(
                f"prefill {users}x{tokens} tile {tile}", make_work(users, 0, tokens, tile), launches, ceilings
            )
    for users, cached in DECODES:
        launches = ROW_LAUNCHES
        if users <= 8:
            launches = tuple(TileLaunch(64, 4, 3, splits=splits) for splits in (1, 2, 4, 8, 16))
        _sweep(f"decode {users}x{cached}", make_work(users, cached, 1, 1), launches, ceilings)
    for name, options in (
        ("blocks of 64", {"block_size": 64}),
        ("FP8 cache", {"cache_dtype": FP8}),
        ("both biases", {"biased": True}),
    ):
        for shape, tile in (((8, 0, 500), 64), ((512, 1000, 1), 1)):
            work = make_work(*shape, tile, **options)
            seconds = measure(work.run)
            show(f"{'decode' if tile == 1 else 'prefill'} {shape[0]}x{sum(shape[1:])}, {name}", seconds, ceilings,
                 work.bytes, work.operations)  # fmt: skip


def _sweep(name: str, work: Work, launches: tuple[TileLaunch, ...], ceilings: Ceilings) -> None:
    """What the launch of the tables takes, then what others do, the fastest first."""
    programs = len(work.step.tiles) * HEADS
    default = tile_launch(work.step.tile_queries, D, BF16, programs)
    show(f"{name}, as in the tables", measure(work.run), ceilings, work.bytes, work.operations)
    others = [(measure(partial(work.run, launch)), launch) for launch in launches if launch != default]
    for seconds, launch in sorted(others, key=lambda other: other[0]):
        what = f"keys {launch.keys}, warps {launch.warps}, stages {launch.stages}, splits {launch.splits}"
        show(f"    {what}{', tanh' if launch.tanh else ''}", seconds, ceilings, work.bytes, work.operations)


def bench_token_ops(ceilings: Ceilings) -> None:
    """Each at few tokens, where launches count, and at many."""
    for tokens in TOKENS:
        for name, run, moved in _token_ops(tokens):
            show(f"{name}, {tokens} tokens", measure(run), ceilings, moved)
    for rows in (64, 512):
        logits = torch.randn(rows, SLOTS, device="cuda")
        seen = torch.randint(0, SLOTS, (rows, SEEN), dtype=torch.int32, device="cuda")
        show(f"mask_seen, {rows} rows of {SEEN}", measure(partial(token_ops_triton.mask_seen, logits, seen)),
             ceilings, 2 * seen.nbytes)  # fmt: skip
        for k in (10, 64):
            show(f"top_k {k}, {rows} rows", measure(partial(top_k, logits, k)), ceilings, logits.nbytes)
            normalized = measure(partial(top_k, logits, k, normalized=True))
            show(f"top_k {k} normalized, {rows} rows", normalized, ceilings, logits.nbytes)
            torchs = measure(partial(torch.topk, logits, k))
            show(f"    torch.topk {k}, {rows} rows", torchs, ceilings, logits.nbytes)


def _token_ops(tokens: int) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Name, call and fewest bytes of each."""
    x, delta = torch.randn(2, tokens, D_MODEL, dtype=BF16, device="cuda").unbind()
    weight, bias = torch.randn(2, 3, D_MODEL, dtype=BF16, device="cuda").unbind()
    groups = torch.randint(0, 3, (tokens,), dtype=torch.uint8, device="cuda")
    norm = (groups, weight, bias, 1e-6)
    yield "group_norm", partial(token_ops_triton.group_norm, x, *norm), 2 * x.nbytes
    yield "add_group_norm", partial(token_ops_triton.add_group_norm, x, delta, *norm), 4 * x.nbytes
    yield "gated_group_norm", partial(token_ops_triton.gated_group_norm, x, delta, *norm), 3 * x.nbytes
    projected = torch.randn(tokens, 4 * HEADS * D, dtype=BF16, device="cuda")
    cache = torch.zeros(-(-tokens // 16) + 1, HEADS, 16, 2 * D, dtype=BF16, device="cuda")
    slots = torch.randperm(tokens, device="cuda")
    split = partial(
        token_ops_triton.split_silu_store, projected, cache, slots, None, heads=HEADS, d_qk=D, d_v=D
    )
    yield "split_silu_store", split, 2 * projected.nbytes
    wide = torch.randn(tokens, D_FF, dtype=BF16, device="cuda")
    yield "silu_", partial(token_ops_triton.silu_, wide), 2 * wide.nbytes


def bench_silu() -> None:
    """How far the two ways to make SiLU are from the truth, by ranges of their argument."""
    for low, high in ((-32, -8), (-8, -4), (-4, -1), (-1, 1), (1, 8), (8, 32)):
        x = torch.linspace(low, high, 1 << 16, device="cuda")
        truth = torch.nn.functional.silu(x.double())
        parts = []
        for name, mode in (("exp", BY_EXP), ("tanh", BY_TANH)):
            made = x.clone()
            token_ops_triton._silu[(triton.cdiv(len(x), 2048),)](made, len(x), BLOCK=2048, MODE=int(mode))
            parts.append(f"by {name} {float((made.double() - truth).abs().max()):.1e}")
        say(f"silu in {low:4} to {high:3}: largest error {', '.join(parts)}")


def main() -> None:
    """Print all of it."""
    torch.manual_seed(0)
    ceilings = measure_ceilings()
    say(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}: "
        f"copy {ceilings.bytes / 1e9:.0f} GB/s, bf16 product {ceilings.operations / 1e12:.0f} TFLOP/s"
    )
    bench_silu()
    bench_token_ops(ceilings)
    bench_attention(ceilings)


if __name__ == "__main__":
    main()
