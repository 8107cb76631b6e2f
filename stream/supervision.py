"""Keeps a generator alive: restarts it after a failure, and isolates what keeps breaking it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import structlog

from mtgr.errors import EngineFailed
from mtgr.requests import AddedVideos, CacheStats, ListOutcome, ListRefusal, ListRequest, ModelInfo, NewVideo
from stream.errors import Fatal
from stream.generation import Caching, Generator
from stream.observability import Health, Metrics

log = structlog.get_logger(__name__)

COMPONENT: Final = "generator"
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 15.0
_BATCH_VIDEOS: Final = 1_000

_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")
_Call = Callable[[Generator, Sequence[_Item]], Awaitable[list[_Outcome]]]
_Refuse = Callable[[_Item, EngineFailed], _Outcome]


class SupervisedGenerator:
    """A generator that survives the failures of its engine.

    A batch that breaks the engine is tried again, whole, on a restarted one; if it breaks that too, its requests are
    tried one by one, and one that breaks an engine by itself is refused, so that its user is dead-lettered and the rest
    are served. New videos are handed to every later engine too, before it is asked for a list; one that breaks engines
    is left out. Raises Fatal after more than `max_restarts` failures without one success between them.
    """

    def __init__(
        self,
        factory: Callable[[], Generator],
        *,
        timeout_seconds: float,
        max_restarts: int,
        metrics: Metrics,
        health: Health,
        component: str = COMPONENT,
    ) -> None:
        """`component` is what health calls it."""
        self._component = component
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
        self._videos: dict[str, bytes] = {}  # id to attributes of those that an engine has taken

    async def start(self) -> ModelInfo:
        """Start the engine; raises InputError for a wrong checkpoint, Fatal if it does not start."""
        self._health.not_ready(self._component, "the engine starts")
        info = await self._start_one()
        self._sound.set()
        return info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in order; raises Fatal."""
        return await self._do(requests, self._recommend, _refuse)

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended, by this engine and those after it; raises Fatal."""
        outcomes = await self._do(videos, self._add, _leave_out)
        return AddedVideos(
            sum(outcome.added for outcome in outcomes),
            sum(outcome.known for outcome in outcomes),
            [video_id for outcome in outcomes for video_id in outcome.refused],
        )

    def cache_stats(self) -> CacheStats | None:
        """What lies in the engine's KV cache, None where that is not this process's to know."""
        generator = self._generator
        return generator.cache_stats() if isinstance(generator, Caching) else None

    async def close(self) -> None:
        """Close the engine."""
        self._broken = True
        generator, self._generator = self._generator, None
        if generator is not None:
            await generator.close()

    async def _recommend(self, generator: Generator, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        started = time.monotonic()
        outcomes = await generator.recommend(requests)
        self._metrics.generation_seconds.observe(time.monotonic() - started)
        return outcomes

    async def _add(self, generator: Generator, videos: Sequence[NewVideo]) -> list[AddedVideos]:
        added = await generator.add_videos(videos)
        if generator is not self._generator:
            raise EngineFailed("the engine was replaced while videos joined its catalog")
        refused = set(added.refused)
        self._videos.update((v.video_id, v.attributes) for v in videos if v.video_id not in refused)
        return [added]

    async def _do(
        self, items: Sequence[_Item], call: _Call[_Item, _Outcome], refuse: _Refuse[_Item, _Outcome]
    ) -> list[_Outcome]:
        """What the call gives for the items, on a restarted engine if need be; raises Fatal."""
        while not self._sound.is_set():
            await self._sound.wait()
        with contextlib.suppress(EngineFailed):
            return await self._attempt(items, call)
        self._sound.clear()
        self._recoveries += 1
        try:
            # one batch at a time and no other traffic: whoever breaks the engine now has done it alone
            async with self._recovery:
                return await self._recover(items, call, refuse)
        finally:
            self._recoveries -= 1
            if not self._recoveries:
                self._sound.set()

    async def _attempt(self, items: Sequence[_Item], call: _Call[_Item, _Outcome]) -> list[_Outcome]:
        generator = self._generator
        try:
            if generator is None:
                raise EngineFailed("the engine was closed")
            outcomes = await self._in_time(call(generator, items))
        except EngineFailed as error:
            # an engine that breaks fails every batch at it: that is one failure
            first = not self._broken and generator is self._generator
            self._broken = self._broken or first
            self._failed(error, len(items), counts=first)
            raise
        self._failures = 0
        return outcomes

    async def _in_time(self, call: Awaitable[_Outcome]) -> _Outcome:
        try:
            async with asyncio.timeout(self._timeout):
                return await call
        except TimeoutError:
            raise EngineFailed(
                f"no answer within {self._timeout:g} seconds (generator.request_timeout_seconds)"
            ) from None

    async def _recover(
        self, items: Sequence[_Item], call: _Call[_Item, _Outcome], refuse: _Refuse[_Item, _Outcome]
    ) -> list[_Outcome]:
        await self._repair()
        try:
            return await self._attempt(items, call)
        except EngineFailed as error:
            failure = error
        outcomes: list[_Outcome] = []
        if len(items) == 1:
            outcomes.append(refuse(items[0], failure))
        else:
            for item in items:
                await self._repair()
                try:
                    outcomes.extend(await self._attempt([item], call))
                except EngineFailed as error:
                    outcomes.append(refuse(item, error))
        await self._repair()
        return outcomes

    def _failed(self, error: EngineFailed, batch: int, *, counts: bool) -> None:
        self._failures += counts
        self._metrics.generation_failures.inc()
        log.warning("engine_failed", error=str(error), batch=batch, failures_in_a_row=self._failures)
        if self._failures > self._max_restarts:
            raise Fatal(
                f"the engine failed {self._failures} times in a row (generator.max_restarts = "
                f"{self._max_restarts}): {error}"
            ) from error

    async def _repair(self) -> None:
        """Restart the engine if it broke and nobody has restarted it yet."""
        if not self._broken:
            return
        self._health.not_ready(self._component, "the engine restarts after a failure")
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
                await self._add_again(generator)
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
                self._health.ready(self._component)
                return info
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _add_again(self, generator: Generator) -> None:
        """Hand all videos to an engine that has just started; raises EngineFailed."""
        videos = [NewVideo(video_id, attributes) for video_id, attributes in self._videos.items()]
        refused = 0
        for first in range(0, len(videos), _BATCH_VIDEOS):
            added = await self._in_time(generator.add_videos(videos[first : first + _BATCH_VIDEOS]))
            refused += len(added.refused)
        if videos:
            log.info("videos_added_again", videos=len(videos), refused=refused)


def _refuse(request: ListRequest, error: EngineFailed) -> ListRefusal:
    log.error("request_breaks_engine", user_id=request.user_id, error=str(error))
    return ListRefusal(type(error).__name__, f"user {request.user_id!r}: breaks the engine: {error}")


def _leave_out(video: NewVideo, error: EngineFailed) -> AddedVideos:
    log.error("video_breaks_engine", video_id=video.video_id, error=str(error))
    return AddedVideos(0, 0, [video.video_id])
