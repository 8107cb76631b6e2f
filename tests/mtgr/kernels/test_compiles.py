"""The Triton kernels compile for a Hopper GPU, which needs Triton's compiler and no GPU.

What the interpreter runs, the compiler may still refuse: it knows types, and fewer ways to say things.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paged_batches import FP8, PagedBatch, Shape

triton = pytest.importorskip("triton", reason="Triton is there on Linux alone")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mtgr.kernels import paged_triton, token_ops_triton, top_k_triton  # noqa: E402
from mtgr.kernels.paged_reference import store  # noqa: E402

LAUNCHED = {
    paged_triton: ("_attend", "_add_splits", "_store"),
    token_ops_triton: ("_group_norm", "_silu", "_split_silu_store", "_mask_seen"),
    top_k_triton: ("_best_of_chunk", "_best_of_row"),
}
MOST_SHARED = 227 * 1024  # bytes of a multiprocessor's shared memory that one program may have
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


class Compiled:
    """Stands where a kernel stood, and compiles it for what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.ptx = ""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.launch

    def launch(self, *arguments: Any, num_warps: int = 4, num_stages: int = 3, **constants: Any) -> None:
        names = [parameter.name for parameter in self.kernel.params]
        signature, given, aligned = {}, {}, {}
        for place, name in enumerate(names):
            value = arguments[place] if place < len(arguments) else constants[name]
            if place >= len(arguments) or value is None:
                signature[name] = "constexpr"
                given[(place,)] = value
            elif isinstance(value, torch.Tensor):
                signature[name] = "*" + _name(value.dtype)
                aligned[(place,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        kernel = triton.compile(
            ASTSource(self.kernel, signature, given, aligned),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        assert kernel.metadata.shared <= MOST_SHARED
        self.ptx = kernel.asm["ptx"]


def _name(dtype: torch.dtype) -> str:
    names = {BF16: "bf16", F16: "fp16", F32: "fp32", FP8: "fp8e4nv", torch.uint8: "u8"}
    return names.get(dtype) or f"i{8 * dtype.itemsize}"


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Compiled]:
    """Every kernel by its name, compiled when it is launched."""
    found = {}
    for module, names in LAUNCHED.items():
        for name in names:
            found[name] = Compiled(getattr(module, name))
            monkeypatch.setattr(module, name, found[name])
    return found


@pytest.mark.parametrize(
    "shape",
    [
        Shape(((5, 1),), 1, heads=16, d_qk=64, d_v=64, dtype=BF16, distances=9, timed=True),
        Shape(((5, 1),), 1, heads=1000, d_qk=25, d_v=50, dtype=F32),
        Shape(((5, 9),), 16, d_qk=32, d_v=64, dtype=F32),
        Shape(((5, 9),), 64, d_qk=64, d_v=64, dtype=F16, distances=9, timed=True, block_size=64),
        Shape(((5, 9),), 64, d_qk=25, d_v=25, dtype=BF16, timed=True),
        Shape(((5, 9),), 128, d_qk=128, d_v=128, dtype=BF16, cache_dtype=FP8, timed=True),
        Shape(((5, 1),), 1, d_qk=25, d_v=50, dtype=F16, cache_dtype=FP8, timed=True),
        Shape(((5, 9),), 64, d_qk=256, d_v=256, dtype=BF16),
    ],
    ids=lambda shape: f"{shape.tile_queries}-{shape.d_qk}-{shape.dtype}",
)
def test_attention_compiles(kernels: dict[str, Compiled], shape: Shape) -> None:
    """Tiles of one query and of many, in every format; larger ones of half formats run on the tensor cores."""
    batch = PagedBatch(shape)
    batch.attend(paged_triton.attend, batch.filled_cache(store))
    assert ("wgmma" in kernels["_attend"].ptx) == (shape.tile_queries >= 64)


def test_token_operations_compile(kernels: dict[str, Compiled]) -> None:
    """With all that may be there and may be not."""
    x, weight = torch.zeros(2, 1024, dtype=BF16), torch.zeros(3, 1024, dtype=BF16)
    groups = torch.zeros(2, dtype=torch.uint8)
    token_ops_triton.gated_group_norm(x, x, groups, weight, weight, 1e-6)
    token_ops_triton.add_group_norm(x, x, groups, weight, weight, 1e-6)
    token_ops_triton.silu_(x)
    projected, slots = torch.zeros(2, 4 * 1024, dtype=BF16), torch.zeros(2, dtype=torch.int64)
    for times, width, dtype in ((None, 128, BF16), (torch.zeros(2, 4, dtype=BF16), 132, FP8)):
        cache = torch.zeros(3, 16, 16, width, dtype=BF16).to(dtype)
        token_ops_triton.split_silu_store(projected, cache, slots, times, heads=16, d_qk=64, d_v=64)
    paged_triton.store(x.view(2, 16, 64), x.view(2, 16, 64), torch.zeros(3, 16, 16, 128), slots)
    logits = torch.zeros(2, 5000)
    token_ops_triton.mask_seen(logits, torch.zeros(2, 7, dtype=torch.int32))
    for normalized in (False, True):
        top_k_triton.top_k(logits, 10, normalized=normalized)
    assert all(kernel.ptx for name, kernel in kernels.items() if name not in ("_attend", "_add_splits"))
