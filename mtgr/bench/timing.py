"""Batches timed one by one: what is not the system's work is done before the clock starts."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

Prepared = TypeVar("Prepared")

_SHORT_MS: Final = 50.0
_SHORT_FACTOR: Final = 3


async def time_batches(
    prepare: Callable[[int], Prepared],
    serve: Callable[[Prepared], Awaitable[None]],
    *,
    warm_ups: int,
    repeats: int,
    grows: bool = False,
) -> list[float]:
    """Milliseconds of each batch; `prepare` is given its number. Short ones are repeated more often.

    With `grows` there are never more batches than `warm_ups + repeats`, since each makes the users' histories longer.
    """
    times: list[float] = []
    for number in range(warm_ups):
        await serve(prepare(number))
    number = warm_ups
    while len(times) < repeats:
        batch = prepare(number)
        gc.collect()
        began = time.perf_counter()
        await serve(batch)
        times.append(1000 * (time.perf_counter() - began))
        number += 1
        if len(times) == repeats and not grows and statistics.median(times) < _SHORT_MS:
            repeats, grows = repeats * _SHORT_FACTOR, True
    return times


def settle() -> None:
    """Take what is there out of garbage collection's sight, as the daemon does once it is ready."""
    gc.collect()
    gc.freeze()


def run_async(main: Awaitable[None]) -> None:
    """Run a part on the daemon's event loop."""
    import uvloop

    async def awaited() -> None:
        await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(awaited())
