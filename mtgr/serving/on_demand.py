"""An engine that is started when it is asked for a list, and started again when it has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final, Protocol, TypeVar

from msgspec import Meta

from mtgr.arguments import check_argument
from mtgr.errors import EngineFailed
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ModelInfo, NewVideo

T = TypeVar("T")

TIMEOUT_SECONDS: Final = 60.0
"""How long an engine may answer nothing, where the caller does not say."""

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]


def checked_timeout(seconds: float) -> float:
    """The timeout; InputError for one that is none."""
    checked: float = check_argument("timeout_seconds", seconds, _Seconds)
    return checked


class Engine(Protocol):
    """What a `RecommendationEngine` promises."""

    async def start(self) -> ModelInfo:
        """Start, or start again after a failure; raises InputError or EngineFailed."""

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request; calls may overlap; raises EngineFailed if the engine breaks or is closed."""

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended, also after a restart; raises EngineFailed if the engine breaks."""

    async def close(self) -> None:
        """Stop; requests under way get EngineFailed."""


class OnDemandEngine:
    """Starts an engine with the first request, and again with the first after a failure.

    An engine that answers nothing for `timeout_seconds`, while it is waited for, has failed: it is closed.

    It belongs to the event loop that it is first used in; once that is closed, it can be closed in another.
    """

    def __init__(self, engine: Engine, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """InputError for a timeout that is none."""
        self._engine: Final = engine
        self._timeout: Final = checked_timeout(timeout_seconds)
        self._answered = 0.0  # when it did last, by the loop's clock
        self._ending: asyncio.Task[None] | None = None  # of an engine that hung, under way or done
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Task[Any] | None = (
            None  # under way or done; None where the engine has to be started
        )
        self._closed = False

    async def start(self) -> None:
        """Return once the engine runs; all who wait for that wait for one start.

        Raises InputError for a wrong checkpoint or option, EngineFailed if the engine does not come up or is closed.
        """
        await self._running()

    async def recommend(self, request: ListRequest) -> ListOutcome:
        """The outcome of one request; the engine batches those that come at about the same time.

        Raises as `start` does, and EngineFailed if the engine breaks, hangs or is closed.
        """
        start = await self._running()
        with self._failures(start):
            (outcome,) = await self._in_time(self._engine.recommend([request]), start)
        return outcome

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended, also by an engine that is started again.

        Raises as `recommend` does; where the engine breaks, it has the videos once it is started again.
        """
        start = await self._running()
        with self._failures(start):
            return await self._in_time(self._engine.add_videos(videos), start)

    async def close(self) -> None:
        """Stop the engine; who waits for a list or a start gets EngineFailed. Calling it again does nothing."""
        if self._loop is not None and not self._loop.is_closed():
            self._check_loop()
        self._closed = True
        if self._start is not None and not self._start.done():
            self._start.cancel()
            await asyncio.gather(self._start, return_exceptions=True)
        if self._ending is not None and not self._ending.done():
            await asyncio.wait([self._ending])
        await self._engine.close()

    async def _running(self) -> asyncio.Task[Any]:
        """What has started the engine that runs."""
        if self._closed:
            raise EngineFailed("the engine was closed")
        self._check_loop()
        if self._start is None:
            self._start = asyncio.create_task(self._begin())
        start = self._start
        if not start.done():
            await asyncio.wait([start])  # it goes on where the waiting is given up
        if start.cancelled():
            raise EngineFailed("the engine was closed")
        if (error := start.exception()) is not None:
            self._forget(start)
            raise error
        return start

    async def _begin(self) -> ModelInfo:
        if self._ending is not None:
            await asyncio.wait([self._ending])  # two engines would share one device
        return await self._engine.start()

    async def _in_time(self, call: Coroutine[Any, Any, T], start: asyncio.Task[Any]) -> T:
        """What the engine answers; an engine that answers nobody in time is closed, and EngineFailed raised.

        Many calls at once may take longer than each by itself: time counts from the last answer that anyone got.
        """
        clock = asyncio.get_running_loop().time
        asked = clock()
        task = asyncio.ensure_future(call)
        try:
            while not task.done():
                left = max(asked, self._answered) + self._timeout - clock()
                if left <= 0:
                    break
                await asyncio.wait([task], timeout=left)
        finally:
            if not task.done():
                task.cancel()
        if task.done():
            self._answered = clock()
            return task.result()
        if self._start is start:
            self._start = None
            self._ending = asyncio.create_task(self._engine.close())
        if self._ending is not None:
            await asyncio.wait([self._ending])
        raise EngineFailed(
            f"the engine answered nothing within {self._timeout:g} seconds (timeout_seconds) and was closed"
        )

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop.is_closed():
            raise RuntimeError(
                "the engine's event loop was closed: it can be closed in another, but not used"
            )
        if self._loop is not loop:
            raise RuntimeError(
                "the engine runs in another event loop, in which alone it can be used and closed"
            )

    @contextmanager
    def _failures(self, start: asyncio.Task[Any]) -> Iterator[None]:
        """Have an engine that breaks meanwhile started anew."""
        try:
            yield
        except EngineFailed as error:
            self._forget(start)
            raise EngineFailed(str(error)) from error  # one of its own for each who waits

    def _forget(self, start: asyncio.Task[Any]) -> None:
        """Have the engine started anew, if nobody has seen to that since."""
        if self._start is start:
            self._start = None
