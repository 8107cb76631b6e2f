"""Daemons that share a server get what an engine of their own would give them, or are told why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from engines import MODEL, Engine, Engines
from records import eventually

from mtgr.attributes import pack_attributes
from mtgr.errors import EngineFailed, InputError
from mtgr.requests import (
    AddedVideos,
    ListOutcome,
    ListRefusal,
    ListRequest,
    ListResult,
    ModelInfo,
    NewVideo,
)
from mtgr.serving import server as server_module
from mtgr.serving import wire
from mtgr.serving.client import EngineClient
from mtgr.serving.server import EngineServer
from schemas.lists import ModelVersion


class Restartable:
    """An engine that can be started again, over engines that break on command."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        self.engine: Engine | None = None
        self.dead = False
        self.starts = 0
        self.may_start = asyncio.Event()
        self.may_start.set()

    @property
    def failed(self) -> bool:
        return self.dead

    async def start(self) -> ModelInfo:
        await self.close()
        await self.may_start.wait()
        self.starts += 1
        self.engine = self.engines()
        info = await self.engine.start()
        self.dead = False
        return info

    async def recommend(self, requests: Sequence[ListRequest]) -> list[ListOutcome]:
        assert self.engine is not None
        outcomes = await self.engine.recommend(requests)
        return [
            ListRefusal("RequestRefused", "history is empty") if not request.records else outcome
            for request, outcome in zip(requests, outcomes, strict=True)
        ]

    async def add_videos(self, videos: Sequence[NewVideo]) -> AddedVideos:
        assert self.engine is not None
        return await self.engine.add_videos(videos)

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def engine(engines: Engines) -> Restartable:
    return Restartable(engines)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(server_module, "_WATCH_SECONDS", 0.02)


@asynccontextmanager
async def connected(server: EngineServer, **options: Any) -> AsyncIterator[EngineClient]:
    client = EngineClient(f"http://127.0.0.1:{server.port}/", **options)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


def request(user: str, records: bytes = b"\x00\xff") -> ListRequest:
    return ListRequest(user, records, b"", 10)


async def test_two_clients_get_their_own_lists_and_refusals(engine: Restartable) -> None:
    """Calls of several daemons overlap in one engine, and a refusal passes through as what it is."""
    async with EngineServer(engine, port=0) as server, connected(server) as one, connected(server) as two:
        engine.engines.gate.clear()
        calls = asyncio.gather(
            one.recommend([request("a"), request("b", b"")]), two.recommend([request("ü")]), two.recommend([])
        )
        await engine.engines.until(lambda: len(engine.engines.batches) == 3, "three calls in the engine")
        engine.engines.gate.set()
        first, second, nothing = await calls
        assert first == [
            ListResult(["for a"], [-1.0], 1, 0),
            ListRefusal("RequestRefused", "history is empty"),
        ]
        assert second == [ListResult(["for ü"], [-1.0], 1, 0)]
        assert nothing == []
        assert one.model == ModelVersion(MODEL.name, MODEL.version)


async def test_a_video_that_one_client_adds_is_there_for_all(engine: Restartable) -> None:
    """What became of the videos is told, and which found no place."""
    engine.engines.places = 3
    videos = [NewVideo(f"new{number}", pack_attributes({"tags": ["ü"]})) for number in range(5)]
    async with EngineServer(engine, port=0) as server, connected(server) as one, connected(server) as two:
        assert await one.add_videos(videos[:2]) == AddedVideos(2, 0, [])
        assert await two.add_videos(videos) == AddedVideos(1, 2, ["new3", "new4"])
        assert await two.add_videos([]) == AddedVideos(0, 0, [])
        assert engine.engine is not None
        assert engine.engine.videos == {video.video_id: video.attributes for video in videos[:3]}


async def test_more_videos_than_one_call_takes_are_sent_by_several(
    engine: Restartable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What became of them is told of all together."""
    engine.engines.places = 5
    monkeypatch.setattr(wire, "MAX_VIDEOS", 2)
    async with EngineServer(engine, port=0) as server, connected(server) as client:
        outcome = await client.add_videos([NewVideo(f"new{number}") for number in range(7)])
        assert outcome == AddedVideos(5, 0, ["new5", "new6"])


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (NewVideo("good", b"\x81"), "video 'good': attributes: "),
        (NewVideo("", b""), "video_id has 0 characters, where 1 to 128 are wanted"),
        (NewVideo("v" * 129, b""), "video_id has 129 characters"),
    ],
)
async def test_a_video_that_is_none_is_named_before_anything_is_added(
    engine: Restartable, video: NewVideo, message: str
) -> None:
    """By the client, and by the server to any other one; the engine goes on."""
    videos = [NewVideo("new"), video]
    async with EngineServer(engine, port=0) as server, connected(server) as client:
        with pytest.raises(ValueError, match=message):
            await client.add_videos(videos)
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
            session.post(
                wire.VIDEOS_PATH, data=wire.encode(videos), headers={"Content-Type": wire.MSGPACK}
            ) as answer,
        ):
            assert answer.status == 400
            assert message in (await answer.json())["error"]
        assert engine.engine is not None
        assert engine.engine.videos == {}
        assert server.is_serving


async def test_an_engine_that_breaks_over_a_video_is_restarted(engine: Restartable) -> None:
    """The call that broke it is told so."""
    engine.engines.poison.add("poison")
    async with EngineServer(engine, port=0) as server, connected(server) as client:
        with pytest.raises(EngineFailed, match="503: the engine broke"):
            await client.add_videos([NewVideo("poison")])
        await eventually(lambda: engine.starts == 2 and server.is_serving, "a new engine")
        assert (await client.add_videos([NewVideo("new")])).added == 1


async def test_the_model_and_the_health_are_told_to_anyone(engine: Restartable) -> None:
    """Both are JSON, for people and orchestrators."""
    async with (
        EngineServer(engine, port=0) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
    ):
        async with session.get(wire.MODEL_PATH) as answer:
            assert msgspec.convert(await answer.json(), ModelInfo) == MODEL
        async with session.get(wire.HEALTH_PATH) as answer:
            assert (answer.status, await answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("path", "body", "content_type", "status", "message"),
    [
        (wire.LISTS_PATH, b"[]", "application/json", 415, "application/msgpack"),
        (wire.LISTS_PATH, b"\xc1", wire.MSGPACK, 400, "no array of list requests"),
        (wire.LISTS_PATH, wire.encode([["user", b"", b""]]), wire.MSGPACK, 400, "length 4"),
        (wire.LISTS_PATH, wire.encode([["user", b"", b"", "ten"]]), wire.MSGPACK, 400, "`int`, got `str`"),
        (wire.LISTS_PATH, wire.encode([["user", b"", b"", 1, "best"]]), wire.MSGPACK, 400, "'best'"),
        (wire.LISTS_PATH, wire.encode([request("u")] * 5000), wire.MSGPACK, 413, "at most 4096"),
        (wire.LISTS_PATH, wire.encode([request("u", bytes(1 << 17))]), wire.MSGPACK, 413, "size"),
        (wire.VIDEOS_PATH, b"[]", "application/json", 415, "application/msgpack"),
        (wire.VIDEOS_PATH, b"\xc1", wire.MSGPACK, 400, "no array of new videos"),
        (wire.VIDEOS_PATH, wire.encode([NewVideo("v")] * 5000), wire.MSGPACK, 413, "at most 4096"),
    ],
)
async def test_a_call_that_is_wrong_is_told_what_is_wrong(
    engine: Restartable, path: str, body: bytes, content_type: str, status: int, message: str
) -> None:
    """It does not reach the engine."""
    async with (
        EngineServer(engine, port=0, max_body_bytes=1 << 17) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session,
        session.post(path, data=body, headers={"Content-Type": content_type}) as answer,
    ):
        assert answer.status == status
        assert message in (await answer.json())["error"]
        assert engine.engines.batches == []
        assert engine.engine is not None
        assert engine.engine.videos == {}


async def test_an_engine_that_breaks_is_restarted_while_calls_fail(engine: Restartable) -> None:
    """The call that broke it fails, others too until it is back; then all is as before."""
    engine.engines.poison.add("poison")
    async with EngineServer(engine, port=0) as server, connected(server) as client:
        engine.engines.failing_starts = 2
        engine.may_start.clear()
        with pytest.raises(EngineFailed, match="503: the engine broke"):
            await client.recommend([request("poison")])
        await eventually(lambda: not server.is_serving, "the end of the engine")
        with pytest.raises(EngineFailed, match="503: the engine is starting"):
            await client.recommend([request("a")])
        engine.may_start.set()
        await eventually(lambda: server.is_serving, "a new engine")
        assert engine.starts == 4
        assert await client.recommend([request("a")]) == [ListResult(["for a"], [-1.0], 1, 0)]
        assert len(engine.engines.alive) == 1


async def test_an_engine_that_hangs_is_restarted(engine: Restartable) -> None:
    """It may live and yet never answer."""
    engine.engines.hanging.add("slow")
    async with EngineServer(engine, port=0, call_timeout_seconds=0.1) as server, connected(server) as client:
        with pytest.raises(EngineFailed, match=r"503: the engine did not answer within 0\.1 seconds"):
            await client.recommend([request("slow")])
        await eventually(lambda: engine.starts == 2 and server.is_serving, "a new engine")
        assert len(await client.recommend([request("a")])) == 1


async def test_an_engine_that_dies_without_a_call_is_restarted(engine: Restartable) -> None:
    """The next call finds a new one."""
    async with EngineServer(engine, port=0) as server, connected(server) as client:
        engine.dead = True
        await eventually(lambda: engine.starts == 2 and server.is_serving, "a new engine")
        assert len(await client.recommend([request("a")])) == 1


async def test_a_stop_answers_the_calls_under_way_and_closes_the_engine(engine: Restartable) -> None:
    """Only then is the engine closed."""
    engine.engines.gate.clear()
    async with AsyncExitStack() as stack:
        async with EngineServer(engine, port=0) as server:
            client = await stack.enter_async_context(connected(server))
            call = asyncio.create_task(client.recommend([request("a")]))
            await engine.engines.until(lambda: bool(engine.engines.batches), "a call in the engine")
            asyncio.get_running_loop().call_later(0.05, engine.engines.gate.set)
        assert await call == [ListResult(["for a"], [-1.0], 1, 0)]
        assert engine.engines.alive == []


async def test_an_engine_that_does_not_start_and_a_port_in_use_are_told(engine: Restartable) -> None:
    """Neither leaves anything behind."""
    engine.engines.failing_starts = 1
    with pytest.raises(EngineFailed, match="does not start"):
        async with EngineServer(engine, port=0):
            pass
    async with EngineServer(engine, port=0) as server:
        with pytest.raises(InputError, match=f"port {server.port} of 127.0.0.1 is in use"):
            async with EngineServer(Restartable(Engines()), port=server.port):
                pass


@pytest.mark.parametrize(
    "url", ["localhost:8100", "ftp://localhost", "http://", "http://h:port", "http://h?q=1", ""]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    """Before anything is tried."""
    with pytest.raises(InputError, match="http://host:port is wanted"):
        EngineClient(url)


async def test_a_server_that_is_not_there_is_waited_for_and_given_up(unused_tcp_port: int) -> None:
    """Daemons may start before their server, but not wait for ever."""
    client = EngineClient(f"http://127.0.0.1:{unused_tcp_port}", start_timeout_seconds=0.3)
    with pytest.raises(EngineFailed, match="cannot be reached"):
        await client.start()
    with pytest.raises(EngineFailed):
        await client.recommend([request("a")])
    await client.close()


async def test_a_client_may_start_before_its_server(engine: Restartable, unused_tcp_port: int) -> None:
    """It is connected as soon as the engine serves."""
    client = EngineClient(f"http://127.0.0.1:{unused_tcp_port}", start_timeout_seconds=30)
    starting = asyncio.create_task(client.start())
    await asyncio.sleep(0.05)
    async with EngineServer(engine, port=unused_tcp_port):
        assert await starting == MODEL
        await client.close()


async def test_a_lost_or_silent_server_is_a_failed_engine(engine: Restartable) -> None:
    """A daemon then does what it does when its own engine fails."""
    async with EngineServer(engine, port=0) as server:
        client = EngineClient(f"http://127.0.0.1:{server.port}", timeout_seconds=0.3)
        await client.start()
        engine.engines.gate.clear()
        with pytest.raises(EngineFailed, match=r"did not answer within 0\.3 seconds"):
            await client.recommend([request("a")])
        engine.engines.gate.set()
        assert len(await client.recommend([request("a")])) == 1
    with pytest.raises(EngineFailed, match="cannot be reached"):
        await client.recommend([request("a")])
    await client.close()


@asynccontextmanager
async def impostor(body: bytes, version: str) -> AsyncIterator[EngineClient]:
    """A client, once started, whose server answers every call of an engine with this body."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, headers={wire.VERSION_HEADER: version})

    async def model(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(MODEL))

    app = web.Application()
    app.add_routes(
        [
            web.post(wire.LISTS_PATH, answer),
            web.post(wire.VIDEOS_PATH, answer),
            web.get(wire.MODEL_PATH, model),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = EngineClient(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        await client.start()
        yield client
    finally:
        await client.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "version", "message"),
    [
        (wire.encode([]), MODEL.version, "1 requests with 0 outcomes"),
        (b"<html>", MODEL.version, "no outcomes"),
        (wire.encode([ListResult([], [], 1, 0)]), "2", "now serves version 2, no longer 1"),
    ],
)
async def test_an_answer_that_is_none_is_a_failed_engine(body: bytes, version: str, message: str) -> None:
    """Lists of another model than the daemon was told of are not published under the old one's name."""
    async with impostor(body, version) as client:
        with pytest.raises(EngineFailed, match=message):
            await client.recommend([request("a")])


@pytest.mark.parametrize(
    ("body", "version", "message"),
    [
        (b"<html>", MODEL.version, "did not say what became of new videos"),
        (wire.encode(AddedVideos(1, 0, [])), "2", "now serves version 2, no longer 1"),
    ],
)
async def test_an_answer_that_tells_nothing_of_videos_is_a_failed_engine(
    body: bytes, version: str, message: str
) -> None:
    """They are then as good as not added."""
    async with impostor(body, version) as client:
        with pytest.raises(EngineFailed, match=message):
            await client.add_videos([NewVideo("new")])
