"""Generators that serve the reference model and misbehave as a test tells them to, inside a daemon or as a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mtgr.errors import EngineFailed
from mtgr.reference import ReferenceRecommender
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ModelInfo, NewVideo
from mtgr.serving.server import EngineServer


@dataclass
class Script:
    """What every generator made by `make` does, changed by the test as it goes."""

    reference: ReferenceRecommender
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Batches wait here: clear it to hang."""
    breaks: Callable[[Sequence[ListRequest]], bool] = lambda requests: False
    """Whether a batch kills the engine."""
    batches: list[list[str]] = field(default_factory=list)
    """The users of each batch that was asked for."""
    starts: int = 0
    most_users: int = 0
    """The most users at the generator at once."""
    _users: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def make(self) -> ScriptedGenerator:
        """A generator, as a factory makes it."""
        return ScriptedGenerator(self)


class ScriptedGenerator:
    """An engine that fails every request after it broke, until it is started again."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._broken = False

    @property
    def failed(self) -> bool:
        """Whether it broke."""
        return self._broken

    async def start(self) -> ModelInfo:
        self._script.starts += 1
        self._broken = False
        return self._script.reference.checkpoint.info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        script = self._script
        script.batches.append([request.user_id for request in requests])
        script._users += len(requests)
        script.most_users = max(script.most_users, script._users)
        try:
            await script.gate.wait()
            if self._broken or script.breaks(requests):
                self._broken = True
                raise EngineFailed("the scripted engine died")
            return await asyncio.to_thread(script.reference.recommend, list(requests))
        finally:
            script._users -= len(requests)

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        if self._broken:
            raise EngineFailed("the scripted engine died")
        return self._script.reference.add_videos(videos)

    async def close(self) -> None:
        self._broken = True


@asynccontextmanager
async def served(script: Script) -> AsyncIterator[str]:
    """The URL of an engine server with a scripted engine, which daemons in other processes can share."""
    async with EngineServer(script.make(), port=0) as server:
        try:
            yield f"http://127.0.0.1:{server.port}"
        finally:
            script.gate.set()  # the server waits for the calls under way
