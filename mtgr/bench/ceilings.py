"""What the device does at most, measured: a large copy, and a large matrix product on random numbers."""

from __future__ import annotations

import os
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
    "cpu": (256 << 20, 1536),
}
_ROUNDS: Final = {
    "cuda": 1,
    "cpu": 5,
}  # other programs run on a CPU, too: it takes a while to meet a quiet moment
_WARM_UPS: Final = 3
_REPEATS: Final = 20


def run(plan: Plan, records: RecordFile) -> None:
    """Say where this runs, then measure its ceilings."""
    records.add(environment(plan.device, plan.command))
    copied, side = _SIZES[plan.device]
    dtype = getattr(torch, plan.dtype)
    device = torch.device(plan.device)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    # the fastest, not the typical one: a ceiling is what can be had, whatever else the machine was doing
    copy = min(_copy_times(copied, device))
    products: list[float] = []
    for _ in range(_ROUNDS[plan.device]):
        for threads in thread_counts():
            torch.set_num_threads(threads)
            products += call_times(lambda: torch.mm(left, right, out=product), device)
    multiply = min(products)
    records.add(
        Ceilings(
            device=plan.device,
            dtype=plan.dtype,
            bytes_per_second=2 * copied / copy,
            operations_per_second=2 * side**3 / multiply,
        )
    )


def thread_counts() -> list[int]:
    """All cores, and one fewer: on a machine that is busy with anything else, a thread on each waits for it."""
    cores = os.cpu_count() or 1
    return sorted({cores, max(1, cores - 1)}, reverse=True)


def _copy_times(copied: int, device: torch.device) -> list[float]:
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_(0, 255)
    target = torch.empty_like(source)
    return call_times(lambda: target.copy_(source), device)


def call_times(call: Callable[[], Any], device: torch.device) -> list[float]:
    """Seconds of each of several calls, without the first few; a device's own, by its events."""
    for _ in range(_WARM_UPS):
        call()
    if device.type != "cuda":
        times = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return times
    spans = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in spans]
