"""A stream of events: how many lists a second at most, and how long after its event a list comes at half of that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Serve = Callable[[Sequence[int]], Awaitable[None]]
"""Gives each user of these numbers one new event and a list."""

_SETTLE_SHARE: Final = 0.2
_SEED: Final = 7


class Callers(Struct, frozen=True):
    """How a system is called: so many calls at once at most, each for so many lists at most."""

    calls: int
    lists: int


async def saturate(serve: Serve, users: int, callers: Callers, seconds: float, rounds: int) -> float:
    """Lists a second while every caller asks again as soon as it is answered; each has users of its own.

    It ends early when a caller's users have had `rounds` lists each. The first part of the time is not counted.
    """
    began = time.perf_counter()
    answers: list[tuple[float, int]] = []

    async def call(own: Sequence[int]) -> float:
        for _ in range(rounds):
            for first in range(0, len(own), callers.lists):
                batch = own[first : first + callers.lists]
                await serve(batch)
                answers.append((time.perf_counter(), len(batch)))
                if answers[-1][0] - began > seconds:
                    return answers[-1][0]
        return answers[-1][0]

    shares = [range(number, users, callers.calls) for number in range(min(callers.calls, users))]
    end = min(await asyncio.gather(*(call(share) for share in shares)))
    start = began + _SETTLE_SHARE * (end - began)
    return sum(lists for moment, lists in answers if start < moment <= end) / (end - start)


async def open_loop(
    serve: Serve, users: int, callers: Callers, rate: float, seconds: float, rounds: int
) -> tuple[npt.NDArray[np.float64], float]:
    """(lists,) milliseconds from arrival to list, and lists a second, of events that come at `rate` whatever happens.

    Arrivals are counted from when they were due, also where the loop came late to them. What waits is taken whole, as
    far as a call may be as large, whenever there may be another call. No user gets more than `rounds` lists.
    """
    random = np.random.default_rng(_SEED)
    arrivals = max(1, min(int(rate * seconds), users * rounds))
    due = np.cumsum(random.exponential(1 / rate, arrivals))
    latencies = np.zeros(arrivals)
    slots = asyncio.Semaphore(callers.calls)
    began = time.perf_counter()

    async def call(first: int, last: int) -> None:
        try:
            await serve([number % users for number in range(first, last)])
        finally:
            slots.release()
        latencies[first:last] = 1000 * (time.perf_counter() - began - due[first:last])

    sent = 0
    async with asyncio.TaskGroup() as calls:
        while sent < arrivals:
            await slots.acquire()
            wait = due[sent] - (time.perf_counter() - began)
            if wait > 0:
                await asyncio.sleep(wait)
            arrived = int(np.searchsorted(due, time.perf_counter() - began, side="right"))
            last = max(sent + 1, min(arrived, sent + callers.lists, sent + users))
            calls.create_task(call(sent, last))
            sent = last
    return latencies, arrivals / (time.perf_counter() - began)
