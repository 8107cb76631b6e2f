"""The engine of a server as if it were here: what `RecommendationEngine` does, over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
import structlog

from mtgr.errors import EngineFailed, InputError
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ModelInfo, NewVideo
from mtgr.serving import wire
from schemas.lists import ModelVersion

log = structlog.get_logger(__name__)

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0


class EngineClient:
    """Recommends through an `EngineServer`."""

    def __init__(
        self, url: str, *, timeout_seconds: float = 60.0, start_timeout_seconds: float = 120.0
    ) -> None:
        """`url` is http://host:port; a call that takes longer than the timeout has failed.

        Raises InputError if the url is none.
        """
        parts = urlsplit(url)
        try:
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number
            whole = False
        if not whole or parts.query or parts.fragment:
            raise InputError(f"server url is {url!r}, where http://host:port is wanted")
        self._url: Final = url.rstrip("/")
        self._timeout: Final = aiohttp.ClientTimeout(total=timeout_seconds)
        self._start_timeout: Final = start_timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self._info: ModelInfo | None = None

    @property
    def model(self) -> ModelVersion:
        """Which model makes the lists, known from `start` on; EngineFailed before."""
        if self._info is None:
            raise EngineFailed("the client is not started")
        return ModelVersion(self._info.name, self._info.version)

    async def start(self) -> ModelInfo:
        """Wait until the server serves and learn its model.

        Raises EngineFailed if it does not within the start timeout.
        """
        await self.close()
        self._session = aiohttp.ClientSession(timeout=self._timeout)
        deadline = time.monotonic() + self._start_timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                self._info = wire.decode_model(await self._call("GET", wire.MODEL_PATH))
            except EngineFailed as error:
                if time.monotonic() + pause > deadline:
                    raise
                log.warning("engine_server_not_ready", error=str(error), next_try_seconds=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except msgspec.DecodeError as error:
                raise EngineFailed(f"{self._url} is no engine server: {error}") from None
            else:
                return self._info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        """One outcome for each request, in their order; EngineFailed if the server gives none."""
        body = await self._call("POST", wire.LISTS_PATH, wire.encode(list(requests)))
        try:
            outcomes = wire.decode_outcomes(body)
        except msgspec.DecodeError as error:
            raise EngineFailed(f"{self._url} answered with no outcomes: {error}") from None
        if len(outcomes) != len(requests):
            raise EngineFailed(f"{self._url} answered {len(requests)} requests with {len(outcomes)} outcomes")
        return outcomes

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        """Let new videos be recommended by the server, to all who share it.

        Raises ValueError for an id or attributes that are none, before any is sent; EngineFailed if the server does not
        say that they are there, of which some may be then.
        """
        wire.check_videos(videos)
        added, known, refused = 0, 0, []
        for first in range(0, len(videos), wire.MAX_VIDEOS):
            some = list(videos[first : first + wire.MAX_VIDEOS])
            body = await self._call("POST", wire.VIDEOS_PATH, wire.encode(some))
            try:
                outcome = wire.decode_added(body)
            except msgspec.DecodeError as error:
                raise EngineFailed(f"{self._url} did not say what became of new videos: {error}") from None
            added += outcome.added
            known += outcome.known
            refused += outcome.refused
        return AddedVideos(added, known, refused)

    async def close(self) -> None:
        """Close the connections; calling it again does nothing."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        if self._session is None:
            raise EngineFailed("the client is not started")
        headers = {} if body is None else {"Content-Type": wire.MSGPACK}
        try:
            async with self._session.request(method, self._url + path, data=body, headers=headers) as answer:
                content = await answer.read()
                version = answer.headers.get(wire.VERSION_HEADER)
        except TimeoutError:
            raise EngineFailed(f"{self._url} did not answer within {self._timeout.total:g} seconds") from None
        except aiohttp.ClientError as error:
            raise EngineFailed(f"{self._url} cannot be reached: {error}") from None
        if answer.status != 200:
            raise EngineFailed(f"{self._url} answered {answer.status}: {_reason(content)}")
        if self._info is not None and version is not None and version != self._info.version:
            raise EngineFailed(f"{self._url} now serves version {version}, no longer {self._info.version}")
        return content


def _reason(content: bytes) -> str:
    try:
        return str(msgspec.json.decode(content, type=dict[str, str])["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return content[:200].decode(errors="replace")
