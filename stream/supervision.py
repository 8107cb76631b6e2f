"""Keeps a generator alive: restarts it after a failure, and isolates the request that keeps breaking it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from mtgr.errors import EngineFailed
from mtgr.requests import ListOutcome, ListRefusal, ListRequest, ModelInfo
from stream.errors import Fatal
from stream.generation import Generator
from stream.observability import Health, Metrics

log = structlog.get_logger(__name__)

_COMPONENT: Final = "generator"
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 15.0


class SupervisedGenerator:
    """A generator that survives the failures of its engine.

    A batch that breaks the engine is tried again, whole, on a restarted one; if it breaks that too, its requests are
    tried one by one, and one that breaks an engine by itself is refused, so that its user is dead-lettered and the rest
    are served. Raises Fatal after more than `max_restarts` failures without one success between them.
    """

    def __init__(
        self,
        factory: Callable[[], Generator],
        *,
        timeout_seconds: float,
        max_restarts: int,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._factory = factory
        self._timeout = timeout_seconds
        self._max_restarts = max_restarts
        self._metrics = metrics
        self._health = health
        self._generator: Generator | None = None
        self._broken = True  # there is no engine, or it failed and was not restarted yet
        self._failures = 0  # since the last success
        self._recoveries = 0  # batches that wait for their recovery, or are in it
        self._recovery = asyncio.Lock()
        self._sound = asyncio.Event()

    async def start(self) -> ModelInfo:
        """Start the engine; raises InputError for a wrong checkpoint, Fatal if it does not start."""
        self._health.not_ready(_COMPONENT, "the engine starts")
        info = await self._start_one()
        self._sound.set()
        return info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in order; raises Fatal."""
        while not self._sound.is_set():
            await self._sound.wait()
        with contextlib.suppress(EngineFailed):
            return await self._attempt(requests)
        self._sound.clear()
        self._recoveries += 1
        try:
            # one batch at a time and no other traffic: whoever breaks the engine now has done it alone
            async with self._recovery:
                return await self._recover(requests)
        finally:
            self._recoveries -= 1
            if not self._recoveries:
                self._sound.set()

    async def close(self) -> None:
        """Close the engine."""
        self._broken = True
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.close()

    async def _attempt(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        generator = self._generator
        started = time.monotonic()
        try:
            if generator is None:
                raise EngineFailed("the engine was closed")
            try:
                async with asyncio.timeout(self._timeout):
                    outcomes = await generator.recommend(requests)
            except TimeoutError:
                raise EngineFailed(
                    f"no answer within {self._timeout:g} seconds (generator.request_timeout_seconds)"
                ) from None
        except EngineFailed as error:
            # an engine that breaks fails every batch at it: that is one failure
            first = not self._broken and generator is self._generator
            self._broken = self._broken or first
            self._failed(error, len(requests), counts=first)
            raise
        self._metrics.generation_seconds.observe(time.monotonic() - started)
        self._failures = 0
        return outcomes

    async def _recover(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        await self._repair()
        try:
            return await self._attempt(requests)
        except EngineFailed as error:
            failure = error
        outcomes: list[ListOutcome] = []
        if len(requests) == 1:
            outcomes.append(_refuse(requests[0], failure))
        else:
            for request in requests:
                await self._repair()
                try:
                    outcomes.extend(await self._attempt([request]))
                except EngineFailed as error:
                    outcomes.append(_refuse(request, error))
        await self._repair()
        return outcomes

    def _failed(self, error: EngineFailed, users: int, *, counts: bool) -> None:
        self._failures += counts
        self._metrics.generation_failures.inc()
        log.warning("engine_failed", error=str(error), users=users, failures_in_a_row=self._failures)
        if self._failures > self._max_restarts:
            raise Fatal(
                f"the engine failed {self._failures} times in a row (generator.max_restarts = "
                f"{self._max_restarts}): {error}"
            ) from error

    async def _repair(self) -> None:
        """Restart the engine if it broke and nobody has restarted it yet."""
        if not self._broken:
            return
        self._health.not_ready(_COMPONENT, "the engine restarts after a failure")
        await self.close()
        self._metrics.engine_restarts.inc()
        await self._start_one()

    async def _start_one(self) -> ModelInfo:
        """Start an engine, again with growing pauses while it does not start."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            generator = self._factory()
            started = time.monotonic()
            try:
                info = await generator.start()
            except EngineFailed as error:
                await generator.close()
                self._failed(error, 0, counts=True)
            except BaseException:
                await generator.close()
                raise
            else:
                self._generator = generator
                self._broken = False
                log.info("engine_started", seconds=round(time.monotonic() - started, 2), model=info.name)
                self._health.ready(_COMPONENT)
                return info
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _refuse(request: ListRequest, error: EngineFailed) -> ListRefusal:
    log.error("request_breaks_engine", user_id=request.user_id, error=str(error))
    return ListRefusal(type(error).__name__, f"user {request.user_id!r}: breaks the engine: {error}")
