"""Promises of mtgr.serving.on_demand: one start for all who wait, a new one after a failure, a clear end."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from engines import MODEL, Engine, Engines

from mtgr.errors import EngineFailed, InputError
from mtgr.requests import ListRequest, ListResult, ModelInfo
from mtgr.serving.on_demand import OnDemandEngine


class SlowEngine(Engine):
    """One that starts when it is let, again and again."""

    def __init__(self, engines: Engines) -> None:
        super().__init__(engines)
        self.starts = 0
        self.may_start = asyncio.Event()

    async def start(self) -> ModelInfo:
        self.starts += 1
        self._over.clear()
        await self.may_start.wait()
        if self._engines.failing_starts:
            self._engines.failing_starts -= 1
            raise EngineFailed("it does not start")
        return MODEL


@pytest.fixture
def engines() -> Engines:
    return Engines()


@pytest.fixture
def slow(engines: Engines) -> SlowEngine:
    return SlowEngine(engines)


@pytest.fixture
def engine(slow: SlowEngine) -> OnDemandEngine:
    return OnDemandEngine(slow)


def request_of(user_id: str) -> ListRequest:
    return ListRequest(user_id, b"", b"", 5)


async def ask(engine: OnDemandEngine, user_id: str) -> str:
    outcome = await engine.recommend(request_of(user_id))
    assert isinstance(outcome, ListResult)
    return outcome.video_ids[0]


async def test_all_who_wait_wait_for_one_start(engine: OnDemandEngine, slow: SlowEngine) -> None:
    """Also where the one who asked first does not wait for it any longer."""
    calls = [asyncio.create_task(ask(engine, user)) for user in "abc"]
    await asyncio.sleep(0)
    calls[0].cancel()
    slow.may_start.set()
    assert list(await asyncio.gather(*calls[1:])) == ["for b", "for c"]
    await engine.start()
    assert slow.starts == 1
    assert calls[0].cancelled()


async def test_a_start_that_fails_is_told_to_all_and_tried_again(
    engine: OnDemandEngine, slow: SlowEngine, engines: Engines
) -> None:
    """By the next who asks."""
    engines.failing_starts = 1
    calls = [asyncio.create_task(ask(engine, user)) for user in "ab"]
    slow.may_start.set()
    for failure in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(failure, EngineFailed)
    assert await ask(engine, "c") == "for c"
    assert slow.starts == 2


async def test_a_failure_is_followed_by_one_start_only(
    engine: OnDemandEngine, slow: SlowEngine, engines: Engines
) -> None:
    """However many calls met it, and however late they tell."""
    slow.may_start.set()
    await engine.start()
    engines.hanging = set("abc")
    calls = [asyncio.create_task(ask(engine, user)) for user in "abc"]
    await engines.until(lambda: len(engines.batches) == 3, "the calls to be under way")
    slow.break_down()
    for failure in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(failure, EngineFailed)
    engines.hanging = set()
    assert list(await asyncio.gather(ask(engine, "d"), ask(engine, "e"))) == ["for d", "for e"]
    assert slow.starts == 2


async def test_closing_ends_a_start_and_is_told(engine: OnDemandEngine, slow: SlowEngine) -> None:
    """To who waits for it and to who comes later; no engine is started any more."""
    call = asyncio.create_task(ask(engine, "a"))
    await asyncio.sleep(0)
    await engine.close()
    await engine.close()
    with pytest.raises(EngineFailed, match="the engine was closed"):
        await call
    with pytest.raises(EngineFailed, match="the engine was closed"):
        await ask(engine, "b")
    assert slow.starts <= 1
    assert slow.closed


def test_it_is_closed_in_another_loop_only_once_its_own_is(engines: Engines) -> None:
    """As by two calls of asyncio.run, one to ask and one to close; it cannot be used in the second."""
    engine = OnDemandEngine(inner := Engine(engines))

    async def close_elsewhere() -> None:
        await ask(engine, "a")
        with ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match="in another event loop"):
            pool.submit(asyncio.run, engine.close()).result()

    asyncio.run(close_elsewhere())
    with pytest.raises(RuntimeError, match="event loop was closed"):
        asyncio.run(ask(engine, "a"))
    assert not inner.closed
    asyncio.run(engine.close())
    assert inner.closed


async def test_an_engine_that_answers_nobody_in_time_is_closed_and_started_again(engines: Engines) -> None:
    """Once, by the next who asks, and not before the one that hung is gone."""
    slow = SlowEngine(engines)
    slow.may_start.set()
    engine = OnDemandEngine(slow, timeout_seconds=0.2)
    assert await ask(engine, "a") == "for a"
    engines.hanging = {"b", "c"}
    calls = [asyncio.create_task(ask(engine, user)) for user in "bc"]
    for failure in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(failure, EngineFailed)
        assert "answered nothing within 0.2 seconds" in str(failure) or "broke" in str(failure)
    assert slow.closed
    assert await ask(engine, "d") == "for d"
    assert slow.starts == 2


async def test_an_engine_that_has_much_to_do_is_not_taken_for_one_that_hangs(engines: Engines) -> None:
    """As long as it answers someone: a call may then wait for longer than that."""
    engine = OnDemandEngine(Engine(engines), timeout_seconds=0.4)
    engines.hanging = {"late"}
    late = asyncio.create_task(ask(engine, "late"))
    for _ in range(8):
        assert await ask(engine, "a") == "for a"
        await asyncio.sleep(0.1)
    assert not late.done()
    late.cancel()


def test_a_timeout_that_is_none_is_told(engines: Engines) -> None:
    """By its name."""
    with pytest.raises(InputError, match="timeout_seconds = 0: expected a number"):
        OnDemandEngine(Engine(engines), timeout_seconds=0)
