"""What a benchmark asks of a system's worker, run there: by vLLM's `collective_rpc`, in whatever process that is.

Times on the device are those of a profiler, so that they need nothing of the system but its process.
"""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import torch
from torch._C._autograd import DeviceType

ALLOW: Final = ("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
"""The setting by which vLLM takes functions, not only names of methods; between a benchmark and its own engine."""

_KERNELS: Final = 12
_profiler: torch.profiler.profile | None = None
_stamps: list[tuple[str, float]] = []

BEGUN: Final = "begun"
LAUNCHED: Final = "launched"
MADE: Final = "made"
"""What `start_stamps` notes: a batch's steps have come, its model runs, its lists are made."""


def start_profile(worker: object, device: str) -> None:
    """Begin to note what runs on the device."""
    global _profiler
    activity = torch.profiler.ProfilerActivity
    _profiler = torch.profiler.profile(activities=[activity.CUDA if device == "cuda" else activity.CPU])
    _profiler.start()


def stop_profile(worker: object, device: str) -> dict[str, Any]:
    """What has run since: `busy_ms`, overlaps counted once, and `kernels`, [name, ms, calls], the longest first."""
    global _profiler
    assert _profiler is not None, "start_profile comes first"
    if device == "cuda":
        torch.cuda.synchronize()
    _profiler.stop()
    assert _profiler.profiler is not None
    results: Any = _profiler.profiler.kineto_results
    _profiler = None
    wanted = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    spans = [
        (event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in results.events()
        if event.device_type() == wanted and event.duration_ns() > 0
    ]
    totals: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for begin, end, name in spans:
        totals[name][0] += (end - begin) / 1e6
        totals[name][1] += 1
    longest = sorted(totals.items(), key=lambda item: -item[1][0])[:_KERNELS]
    return {
        "busy_ms": covered((begin, end) for begin, end, _ in spans) / 1e6,
        "kernels": [[name, milliseconds, calls] for name, (milliseconds, calls) in longest],
    }


def start_stamps(worker: Any, device: str) -> None:
    """Begin to note when the worker of ours does what, by the clock that all processes of a machine share."""
    sessions = worker.sessions
    launch, compute, graphs = sessions.launch, sessions._compute, sessions._graphs

    def stamp(name: str) -> None:
        _stamps.append((name, time.perf_counter()))

    class Stamped:
        def __init__(self, pending: Any) -> None:
            self._pending = pending

        def __getattr__(self, name: str) -> Any:
            return getattr(self._pending, name)

        def wait(self) -> Any:
            answer = self._pending.wait()
            stamp(MADE)
            return answer

    def stamped_launch(steps: Any) -> Any:
        stamp(BEGUN)
        return Stamped(launch(steps))

    def stamped_compute(*arguments: Any) -> Any:
        stamp(LAUNCHED)
        return compute(*arguments)

    sessions.launch, sessions._compute = stamped_launch, stamped_compute
    if graphs is not None:
        run = graphs.run

        def stamped_run(*arguments: Any) -> Any:
            hidden = run(*arguments)
            if hidden is not None:
                stamp(LAUNCHED)
            return hidden

        graphs.run = stamped_run


def take_stamps(worker: Any, device: str) -> list[tuple[str, float]]:
    """What was noted since the last time, and when."""
    taken = _stamps.copy()
    _stamps.clear()
    return taken


def stop_stamps(worker: Any, device: str) -> None:
    """Take no more notes."""
    sessions = worker.sessions
    del sessions.launch, sessions._compute
    if sessions._graphs is not None:
        del sessions._graphs.run


def reset_memory(worker: object, device: str) -> None:
    """Forget the most memory that was held so far."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def memory(worker: object, device: str) -> dict[str, int]:
    """Most bytes in tensors since `reset_memory`, and bytes in use on the device; on a CPU those of the process."""
    if device != "cuda":
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"peak_bytes": peak, "device_bytes": peak}
    free, total = torch.cuda.mem_get_info()
    return {"peak_bytes": torch.cuda.max_memory_allocated(), "device_bytes": total - free}


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """The length of the union of some intervals."""
    total = 0
    end_so_far: int | None = None
    for begin, end in sorted(spans):
        if end_so_far is None or begin > end_so_far:
            total += end - begin
            end_so_far = end
        elif end > end_so_far:
            total += end - end_so_far
            end_so_far = end
    return total
