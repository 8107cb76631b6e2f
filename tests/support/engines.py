"""Generators that break on command, and say what was asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mtgr.errors import EngineFailed
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ListResult, ModelInfo, NewVideo

MODEL = ModelInfo("tiny", "1", 16, 100)


@dataclass
class Engines:
    """A factory of engines, and what happens to all of them.

    poison: users whose requests break an engine, and videos that do. hanging: users whose requests are never
    answered. failing_starts: how many starts fail from now on. places: for new videos in each engine. gate: while it
    is closed, no engine answers.
    """

    poison: set[str] = field(default_factory=set)
    hanging: set[str] = field(default_factory=set)
    failing_starts: int = 0
    places: int = 1_000
    made: list[Engine] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Condition()

    def __call__(self) -> Engine:
        engine = Engine(self)
        self.made.append(engine)
        return engine

    @property
    def alive(self) -> list[Engine]:
        """Engines that were started and not closed."""
        return [engine for engine in self.made if engine.started and not engine.closed]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Return once the condition holds, which only engines bring about."""
        try:
            async with asyncio.timeout(20), self.changed:
                await self.changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"waited 20 s for {what}") from None


class Engine:
    """One engine: started once, broken or closed once."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self.started = False
        self.closed = False
        self.videos: dict[str, bytes] = {}
        self._over = asyncio.Event()

    async def start(self) -> ModelInfo:
        assert not self._engines.alive, "two engines would share one device"
        await asyncio.sleep(0)
        if self._engines.failing_starts:
            self._engines.failing_starts -= 1
            raise EngineFailed("it does not start")
        self.started = True
        return MODEL

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        users = [request.user_id for request in requests]
        self._engines.batches.append(users)
        async with self._engines.changed:
            self._engines.changed.notify_all()
        await self._unless_over(self._engines.gate)
        if self._engines.hanging.intersection(users):
            await self._unless_over(asyncio.Event())
        if self._engines.poison.intersection(users):
            self._over.set()
        if self._over.is_set():
            raise EngineFailed("the engine broke")
        return [ListResult([f"for {user}"], [-1.0], 1, 0) for user in users]

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        await self._unless_over(self._engines.gate)
        if self._engines.poison.intersection(video.video_id for video in videos):
            self._over.set()
        if self._over.is_set():
            raise EngineFailed("the engine broke")
        new = [video for video in videos if video.video_id not in self.videos]
        taken = new[: max(self._engines.places - len(self.videos), 0)]
        self.videos.update((video.video_id, video.attributes) for video in taken)
        refused = [video.video_id for video in new[len(taken) :]]
        return AddedVideos(len(taken), len(videos) - len(new), refused)

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed = True
        self._over.set()

    def break_down(self) -> None:
        """Fail every batch that is or comes to this engine."""
        self._over.set()

    async def _unless_over(self, event: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(one.wait()) for one in (event, self._over)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
