"""Ours, as the daemon uses it: `RecommendationEngine.recommend` with histories as packed bytes, features and all."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import numpy as np

from mtgr.bench import probe
from mtgr.bench.attempts import attempt
from mtgr.bench.cases import TOP, Case
from mtgr.bench.checkpoints import random_checkpoint
from mtgr.bench.load import Callers, open_loop, saturate
from mtgr.bench.plan import PROFILED, WARM_UPS, Plan
from mtgr.bench.records import (
    DeviceTime,
    Kernel,
    Load,
    Memory,
    Missing,
    RecordFile,
    Row,
    Split,
    Started,
    System,
)
from mtgr.bench.timing import run_async, settle, time_batches
from mtgr.bench.users import SyntheticUsers, requests_of
from mtgr.bench.work import Shape, batch_work, hstu_shape
from mtgr.checkpoint import Checkpoint
from mtgr.model.mtgr import parameter_counts
from mtgr.plain_data import parse_struct
from mtgr.requests import ListOutcome, ListRequest, ListResult
from mtgr.serving.engine import EngineOptions, RecommendationEngine
from mtgr.serving.session_lists import SessionLists

CALLERS: Final = Callers(calls=2, lists=256)
"""While one batch is on the device, the next is prepared."""

MAX_SEQS: Final = 1024
MAX_TOKENS: Final = 16_384
"""Of a step; both are what vLLM's `LLM` takes by default on a GPU like this."""

_SYSTEM: Final[System] = "ours"
_WORKSPACE_GIB: Final = 14.0  # weights, activations and graphs, which the KV cache must leave room for


def run(plan: Plan, records: RecordFile) -> None:
    """All rows, then the load, then the profile, which slows what runs after it."""
    os.environ.setdefault(*probe.ALLOW)
    run_async(_Run(plan, records).measure())


def engine_options(plan: Plan, checkpoint: Checkpoint, cache_gib: float) -> EngineOptions:
    """The daemon's engine with room for the plan's users, and what the command line says of it."""
    chosen: dict[str, Any] = {
        "checkpoint": checkpoint.directory,
        "dtype": plan.dtype,
        "kv_cache_gib": cache_gib,
        "max_num_seqs": MAX_SEQS,
        "max_num_batched_tokens": MAX_TOKENS,
    }
    return parse_struct(chosen | plan.options, EngineOptions, "--option")


def free_gib(plan: Plan) -> float:
    """Memory that a KV cache may take on this device."""
    if plan.device == "cuda":
        from vllm.platforms import current_platform

        # asked of the driver: with CUDA in this process, vLLM could not fork its engine's
        return float(current_platform.get_device_total_memory()) / 2**30 - _WORKSPACE_GIB
    return 0.25 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def leave_out(plan: Plan, records: RecordFile, what: Sequence[Case], system: str) -> None:
    """Say which cases there is no memory for."""
    for case in what:
        records.add(no_room(plan, f"{system} {case}", plan.cache_gib(case)))


def no_room(plan: Plan, what: str, gib: float) -> Missing:
    """What a device is too small for."""
    reason = f"its KV cache of {gib:.0f} GiB has no room on this device"
    return Missing(plan.device, plan.preset, what, reason)


def check_lists(outcomes: Sequence[ListOutcome]) -> None:
    """RuntimeError unless every user got a whole list: a refusal takes no time."""
    for outcome in outcomes:
        if not isinstance(outcome, ListResult) or len(outcome.video_ids) != TOP:
            raise RuntimeError(f"no list came of a request, but {outcome}")


class _Run:
    def __init__(self, plan: Plan, records: RecordFile) -> None:
        self.plan = plan
        self.records = records
        self.cases, self.cache_gib = plan.affordable(free_gib(plan))
        leave_out(plan, records, [case for case in plan.cases if case not in self.cases], _SYSTEM)
        self.shape: Shape = hstu_shape(plan.config, plan.number_bytes)
        self.users = SyntheticUsers(plan.config.n_items, seed=1)

    async def measure(self) -> None:
        plan = self.plan
        checkpoint = random_checkpoint(plan)
        options = engine_options(plan, checkpoint, self.cache_gib)
        self.engine = RecommendationEngine(options)
        began = time.perf_counter()
        await self.engine.start()
        try:
            self.records.add(
                Started(
                    plan.setting,
                    _SYSTEM,
                    parameter_counts(plan.config)[0],
                    time.perf_counter() - began,
                    "RecommendationEngine, whole histories with features",
                )
            )
            settle()
            await self._ask(probe.reset_memory)
            for case in self.cases:
                await self._try(str(case), self._row(case))
            for case in self.cases:
                await self._try(f"{case}, split", self._split(case))
            await self._try("memory", self._memory())
            await self._try("load", self._load())
            for case in self.cases:
                await self._try(f"{case}, profile", self._profile(case))
        finally:
            await self.engine.close()

    async def _try(self, what: str, step: Awaitable[None]) -> None:
        await attempt(self.plan, self.records, f"{_SYSTEM} {what}", step)

    async def _row(self, case: Case) -> None:
        prepare = await self._batches(case)
        times = await time_batches(
            prepare, self._serve, warm_ups=WARM_UPS, repeats=self.plan.repeats, grows=case.cached
        )
        work = batch_work(self.shape, case)
        self.records.add(Row(self.plan.setting, _SYSTEM, case, times, work.bytes, work.operations))

    async def _batches(self, case: Case) -> Callable[[int], list[ListRequest]]:
        """What makes the next batch of a case: new users, or the same ones with one event more."""
        if not case.cached:
            return lambda number: requests_of(self.users.draw(case.users, case.events), case.events)
        users = self.users.draw(case.users, case.events + self.plan.appended)
        await self._serve(requests_of(users, case.events))
        return lambda number: requests_of(users, case.events + 1 + number)

    async def _serve(self, requests: list[ListRequest]) -> None:
        check_lists(await self.engine.recommend(requests))

    async def _load(self) -> None:
        plan = self.plan
        if not plan.load_users:
            return
        if plan.load_gib > self.cache_gib:
            self.records.add(no_room(plan, f"{_SYSTEM} load", plan.load_gib))
            return
        rounds = plan.config.capacity - plan.load_events
        users = self.users.draw(plan.load_users, plan.config.capacity)
        events = [plan.load_events] * len(users)
        await self._serve(requests_of(users, plan.load_events))

        async def serve(numbers: Sequence[int]) -> None:
            requests = []
            for number in numbers:
                events[number] += 1
                requests.append(users[number].request(events[number]))
            await self._serve(requests)

        most = await saturate(serve, len(users), CALLERS, plan.load_seconds, rounds // 2)
        latencies, served = await open_loop(
            serve, len(users), CALLERS, most / 2, plan.load_seconds, rounds - rounds // 2
        )
        self.records.add(load_record(plan, _SYSTEM, most, latencies, served))

    async def _split(self, case: Case) -> None:
        lists = self.engine._lists
        if not isinstance(lists, SessionLists):
            return
        prepare = await self._batches(case)
        for number in range(WARM_UPS):
            await self._serve(prepare(number))
        run_steps, encoded = lists._run_steps, [0.0]

        def run_stamped(packed: bytes) -> asyncio.Future[bytes]:
            encoded.append(time.perf_counter())
            return run_steps(packed)

        await self._ask(probe.start_stamps)
        lists._run_steps = run_stamped  # type: ignore[misc]
        parts = []
        try:
            for number in range(WARM_UPS, WARM_UPS + self.plan.repeats):
                batch = prepare(number)
                gc.collect()
                encoded.clear()
                began = time.perf_counter()
                await self._serve(batch)
                ended = time.perf_counter()
                at: dict[str, list[float]] = {}
                for name, when in (await self._ask(probe.take_stamps))[0]:
                    at.setdefault(name, []).append(when)
                marks = [
                    began,
                    encoded[0],
                    at[probe.BEGUN][0],
                    at[probe.LAUNCHED][0],
                    at[probe.MADE][-1],
                    ended,
                ]
                parts.append(np.diff(marks) * 1000)
        finally:
            lists._run_steps = run_steps  # type: ignore[misc]
            await self._ask(probe.stop_stamps)
        self.records.add(Split(self.plan.setting, case, *np.median(parts, axis=0).tolist()))

    async def _profile(self, case: Case) -> None:
        prepare = await self._batches(case)
        for number in range(WARM_UPS):
            await self._serve(prepare(number))
        batches = [prepare(number) for number in range(WARM_UPS, WARM_UPS + PROFILED)]
        await self._ask(probe.start_profile)
        began = time.perf_counter()
        for batch in batches:
            await self._serve(batch)
        seconds = time.perf_counter() - began
        found = (await self._ask(probe.stop_profile))[0]
        self.records.add(device_time(self.plan, _SYSTEM, case, seconds, found))

    async def _memory(self) -> None:
        found = (await self._ask(probe.memory))[0]
        self.records.add(memory_record(self.plan, _SYSTEM, found, self.cache_gib))

    async def _ask(self, function: Callable[..., Any]) -> list[Any]:
        """Call a function of `probe` in the engine's workers."""
        return await self.engine.call_workers(function, self.plan.device)


def load_record(
    plan: Plan, system: System, most: float, latencies: np.typing.NDArray[np.float64], served: float
) -> Load:
    """What a load found out."""
    return Load(
        plan.setting,
        system,
        plan.load_users,
        plan.load_events,
        lists_per_second=most,
        offered_per_second=most / 2,
        served_per_second=served,
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
        arrivals=len(latencies),
    )


def device_time(plan: Plan, system: System, case: Case, seconds: float, found: dict[str, Any]) -> DeviceTime:
    """What a profiler found out about some batches."""
    return DeviceTime(
        plan.setting,
        system,
        case,
        batch_ms=1000 * seconds / PROFILED,
        busy_ms=found["busy_ms"] / PROFILED,
        kernels=[
            Kernel(name, milliseconds / PROFILED, calls / PROFILED)
            for name, milliseconds, calls in found["kernels"]
        ],
    )


def memory_record(plan: Plan, system: System, found: dict[str, int], cache_gib: float) -> Memory:
    """What a worker held."""
    return Memory(plan.setting, system, found["peak_bytes"], int(cache_gib * 2**30), found["device_bytes"])
