"""An HTTP server around one engine, which several daemons share."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import msgspec
import structlog
from aiohttp import web

from mtgr.errors import EngineFailed, InputError
from mtgr.requests import AddedVideos, ListOutcome, ListRequest, ModelInfo, NewVideo
from mtgr.serving import wire

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEFAULT_PORT: Final = 8100

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
_WATCH_SECONDS: Final = 1.0
_FINISH_SECONDS: Final = 10.0  # for calls under way when the server stops


class Engine(Protocol):
    """What the server needs of `mtgr.serving.engine.RecommendationEngine`."""

    @property
    def failed(self) -> bool: ...

    async def start(self) -> ModelInfo: ...

    async def recommend(self, requests: list[ListRequest]) -> list[ListOutcome]: ...

    async def add_videos(self, videos: list[NewVideo]) -> AddedVideos: ...

    async def close(self) -> None: ...


class EngineServer:
    """Serves lists while entered: `async with EngineServer(engine, host, port)`; no access control of its own.

    POST /v1/lists takes a msgpack array of ListRequest and answers with one of ListOutcome; POST /v1/videos takes one
    of NewVideo and answers with AddedVideos, once lists may have them; GET /v1/model tells the model as JSON; GET
    /healthz is 200 while the engine serves. An engine that fails, or takes longer than the
    timeout for a call, is started again with growing pauses, and calls are answered by 503 meanwhile. Entering
    raises InputError for a wrong checkpoint or an address that cannot be bound, and EngineFailed if the engine
    does not start.
    """

    def __init__(
        self,
        engine: Engine,
        host: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        *,
        max_body_bytes: int = 64 << 20,
        call_timeout_seconds: float = 60.0,
    ) -> None:
        self._engine = engine
        self._host = host
        self._port = port
        self._call_timeout = call_timeout_seconds
        self._model: ModelInfo | None = None  # while the engine serves
        self._failure = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        app = web.Application(client_max_size=max_body_bytes)
        app.add_routes(
            [
                web.post(wire.LISTS_PATH, self._lists),
                web.post(wire.VIDEOS_PATH, self._videos),
                web.get(wire.MODEL_PATH, self._tell_model),
                web.get(wire.HEALTH_PATH, self._health),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_FINISH_SECONDS)

    @property
    def is_serving(self) -> bool:
        """Whether lists are made, rather than an engine started."""
        return self._model is not None

    @property
    def port(self) -> int:
        """The port that is bound, also where any free one was asked for."""
        return int(self._runner.addresses[0][1])

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        try:
            try:
                await web.TCPSite(self._runner, self._host, self._port).start()
            except OSError as error:
                raise _refusal(self._host, self._port, error) from None
            self._model = await self._engine.start()
        except BaseException:
            await self._close()
            raise
        self._keeper = asyncio.create_task(self._keep_engine())
        log.info("engine_server_ready", host=self._host, port=self.port, model=self._model.name)
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        """Answer the calls under way, then stop the engine."""
        await self._runner.cleanup()
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._engine.close()

    async def _keep_engine(self) -> None:
        while True:
            # a call finds out at once that the engine has failed; without calls, this watch does
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._failure.wait(), _WATCH_SECONDS)
            if not (self._failure.is_set() or self._engine.failed):
                continue
            self._model = None
            pause = _FIRST_PAUSE
            while self._model is None:
                log.warning("engine_restarts")
                try:
                    self._model = await self._engine.start()
                except (EngineFailed, InputError, OSError) as error:
                    log.error("engine_does_not_start", error=str(error), next_try_seconds=pause)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
            self._failure.clear()

    async def _lists(self, request: web.Request) -> web.Response:
        return await self._answer(
            request, "list requests", wire.decode_requests, wire.MAX_LISTS, self._engine.recommend
        )

    async def _videos(self, request: web.Request) -> web.Response:
        return await self._answer(
            request, "new videos", wire.decode_videos, wire.MAX_VIDEOS, self._engine.add_videos
        )

    async def _answer(
        self,
        request: web.Request,
        what: str,
        decode: Callable[[bytes], list[T]],
        most: int,
        ask: Callable[[list[T]], Awaitable[object]],
    ) -> web.Response:
        """What the engine says to the things in a call's body, or why it is not asked."""
        if request.content_type != wire.MSGPACK:
            return _problem(
                415, f"content-type is {request.content_type!r}, where {wire.MSGPACK!r} is wanted"
            )
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            return _problem(413, error.text or "the body is too large")
        try:
            things = decode(body)
        except (msgspec.DecodeError, ValueError) as error:
            return _problem(400, f"the body is no array of {what}: {error}")
        if len(things) > most:
            return _problem(413, f"{len(things)} {what} in one call, where at most {most} are taken")
        model = self._model
        if model is None:
            return _problem(503, "the engine is starting")
        try:
            async with asyncio.timeout(self._call_timeout):
                answer = await ask(things)
        except EngineFailed as error:
            self._failure.set()
            return _problem(503, str(error))
        except TimeoutError:
            self._failure.set()
            return _problem(503, f"the engine did not answer within {self._call_timeout:g} seconds")
        return web.Response(
            body=wire.encode(answer),
            content_type=wire.MSGPACK,
            headers={wire.VERSION_HEADER: model.version},
        )

    async def _tell_model(self, request: web.Request) -> web.Response:
        if self._model is None:
            return _problem(503, "the engine is starting")
        return web.Response(body=msgspec.json.encode(self._model), content_type="application/json")

    async def _health(self, request: web.Request) -> web.Response:
        if self._model is None:
            return _problem(503, "the engine is starting")
        return web.json_response({"status": "ok"})


def _problem(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _refusal(host: str, port: int, error: OSError) -> InputError:
    if error.errno == errno.EADDRINUSE:
        return InputError(f"port {port} of {host} is in use; name another, or 0 for any free one")
    return InputError(f"cannot listen on {host}:{port}: {error.strerror or error}")
