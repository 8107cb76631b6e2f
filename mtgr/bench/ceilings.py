"""What the device does at most, measured: a large copy, and a large matrix product on random numbers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import torch

from mtgr.bench.machine import environment
from mtgr.bench.plan import Plan
from mtgr.bench.records import Ceilings, RecordFile

_SIZES: Final[dict[str, tuple[int, int]]] = {
    # bytes of the copied tensor, well beyond any cache, and the side of the matrices
    "cuda": (4 << 30, 8192),
    "cpu": (256 << 20, 1024),
}
_REPEATS: Final = 10


def run(plan: Plan, records: RecordFile) -> None:
    """Say where this runs, then measure its ceilings."""
    records.add(environment(plan.device, plan.command))
    copied, side = _SIZES[plan.device]
    dtype = getattr(torch, plan.dtype)
    device = torch.device(plan.device)
    copy = _copy_seconds(copied, device)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    multiply = typical_seconds(lambda: torch.mm(left, right, out=product), device)
    records.add(
        Ceilings(
            device=plan.device,
            dtype=plan.dtype,
            bytes_per_second=2 * copied / copy,
            operations_per_second=2 * side**3 / multiply,
        )
    )


def _copy_seconds(copied: int, device: torch.device) -> float:
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    return typical_seconds(lambda: target.copy_(source), device)


def typical_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, the median of several."""
    for _ in range(3):
        call()
    if device.type != "cuda":
        times = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return statistics.median(times)
    spans = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return float(statistics.median(begin.elapsed_time(end) for begin, end in spans)) / 1000
