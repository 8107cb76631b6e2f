"""Number formats of a model that is served, each measured on an engine of its own: its lists, its speed, its memory."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from msgspec import Struct, structs

from mtgr.bench import probe
from mtgr.bench.timing import time_batches
from mtgr.bench.users import SyntheticUsers, requests_of
from mtgr.checkpoint import Checkpoint
from mtgr.errors import EngineFailed, InputError
from mtgr.evaluation.evaluation import Evaluation, SystemResult
from mtgr.evaluation.profiles import ProfileTimeline
from mtgr.evaluation.served import list_requests, rank_generated
from mtgr.quantization.scheme import Method
from mtgr.requests import ListRequest, ListResult
from mtgr.serving.engine import EngineOptions, RecommendationEngine

WARM_UPS: Final = 3

Device = Literal["cpu", "cuda"]


class Variant(Struct, frozen=True, kw_only=True):
    """A way to serve one model: the checkpoint it takes, as trained or quantised, and what the engine is told."""

    name: str
    method: Method | None = None
    dtype: str = "bfloat16"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1

    def options(self, base: EngineOptions, checkpoint: Checkpoint) -> EngineOptions:
        """Those of an engine that serves the checkpoint this way."""
        changes: dict[str, Any] = {
            field: getattr(self, field)
            for field in ("dtype", "quantization", "kv_cache_dtype", "tensor_parallel_size")
        }
        return structs.replace(base, checkpoint=checkpoint.directory, **changes)


VARIANTS: Final[dict[Device, tuple[Variant, ...]]] = {
    "cpu": (
        Variant(name="float32", dtype="float32"),
        Variant(name="bfloat16"),
        Variant(name="float16", dtype="float16"),
        Variant(name="fp8-channel", quantization="fp8_per_channel"),
        Variant(name="int8", method="int8", dtype="float32"),
        Variant(name="awq", method="awq"),
        Variant(name="float32-tp2", dtype="float32", tensor_parallel_size=2),
    ),
    "cuda": (
        Variant(name="float32", dtype="float32"),
        Variant(name="bfloat16"),
        Variant(name="float16", dtype="float16"),
        Variant(name="fp8", quantization="fp8"),
        Variant(name="fp8-channel", quantization="fp8_per_channel"),
        Variant(name="fp8-cache", quantization="fp8", kv_cache_dtype="fp8"),
        Variant(name="int8", method="int8"),
        Variant(name="awq", method="awq"),
        Variant(name="bfloat16-tp2", tensor_parallel_size=2),
    ),
}
"""What is measured on each device, the one that the others are compared with first."""


class Speed(Struct, frozen=True):
    """Medians over batches, in milliseconds, and GiB that the first worker held beside its KV cache."""

    fresh_ms: float
    """Users who were never there, with all their events."""
    cached_ms: float
    """The same users with one event more each."""
    model_gib: float


class Measured(Struct, frozen=True):
    """One variant: its figures, or why there are none."""

    name: str
    quality: SystemResult | None = None
    speed: Speed | None = None
    failure: str | None = None


class Load(Struct, frozen=True, kw_only=True):
    """What speed is measured by."""

    users: int
    events: int
    repeats: int


async def measure(
    name: str,
    options: EngineOptions,
    checkpoint: Checkpoint,
    load: Load,
    device: Device,
    evaluation: Evaluation | None,
    profiles: ProfileTimeline | None,
) -> Measured:
    """Start an engine by these options and measure it; what keeps it from serving is told, not raised.

    Without an evaluation there is no quality, as of a model that nobody has trained.
    """
    os.environ.setdefault(*probe.ALLOW)
    quality = None
    try:
        engine = RecommendationEngine(options)
        await engine.start()
        try:
            await _ask(engine, probe.reset_memory, device)
            if evaluation is not None:
                quality = await _quality(name, engine, checkpoint, evaluation, profiles)
            speed = await _speed(engine, checkpoint, load, device, options)
        finally:
            await engine.close()
    except (InputError, EngineFailed) as error:
        return Measured(name, quality, failure=str(error))
    finally:
        gc.collect()
    return Measured(name, quality, speed)


async def _quality(
    name: str,
    engine: RecommendationEngine,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    profiles: ProfileTimeline | None,
) -> SystemResult:
    k = evaluation.ks[-1]
    requests = list_requests(evaluation.cases, checkpoint.config, checkpoint.catalog, k, profiles)
    rankings = await rank_generated(
        evaluation.cases, requests, engine.recommend, evaluation.items.index_of, k
    )
    return evaluation.judge(name, rankings)


async def _speed(
    engine: RecommendationEngine, checkpoint: Checkpoint, load: Load, device: Device, options: EngineOptions
) -> Speed:
    users = SyntheticUsers(checkpoint.config.n_items, seed=1)

    async def serve(requests: list[ListRequest]) -> None:
        outcomes = await engine.recommend(requests)
        refused = [outcome for outcome in outcomes if not isinstance(outcome, ListResult)]
        if refused:
            raise InputError(f"a list for the measurement was refused: {refused[0].message}")

    def fresh(_: int) -> list[ListRequest]:
        return requests_of(users.draw(load.users, load.events), load.events)

    fresh_ms = await time_batches(fresh, serve, warm_ups=WARM_UPS, repeats=load.repeats)
    known = users.draw(load.users, load.events)
    begin = load.events - WARM_UPS - load.repeats
    await serve(requests_of(known, begin))

    def grown(number: int) -> list[ListRequest]:
        return requests_of(known, begin + 1 + number)

    cached_ms = await time_batches(grown, serve, warm_ups=WARM_UPS, repeats=load.repeats, grows=True)
    found = await _ask(engine, probe.memory, device)
    cache = (options.kv_cache_gib or 0.0) * 2**30 if device == "cuda" else 0.0
    return Speed(
        statistics.median(fresh_ms), statistics.median(cached_ms), (found["peak_bytes"] - cache) / 2**30
    )


async def _ask(engine: RecommendationEngine, function: Any, device: Device) -> Any:
    """What a function of `probe` gives in the first worker."""
    return (await engine.call_workers(function, device))[0]


def change(
    measured: Measured, baseline: Measured, evaluation: Evaluation, metric: str
) -> tuple[float, float] | None:
    """By how much a metric is above the baseline's on the same users, and half the width of its 95 % interval."""
    if measured.quality is None or baseline.quality is None or measured is baseline:
        return None
    interval = evaluation.difference(measured.quality, baseline.quality)[metric]
    return interval.value, (interval.high - interval.low) / 2


def median_length(cases: Sequence[Any]) -> int:
    """Events of a middling history, for a load like the log's own."""
    return int(np.median([len(case.history) for case in cases]))
