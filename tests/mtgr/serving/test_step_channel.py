"""Steps go out and answers come back in order, whatever else the workers are asked, and whoever ends is missed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from records import eventually

from mtgr.errors import EngineFailed
from mtgr.serving.session_steps import Answer, Step, decode_answer, encode_steps
from mtgr.serving.step_channel import StepChannel
from mtgr.serving.step_server import StepServer


class Launched:
    """Lists that a device is still making until it is told that they are made."""

    def __init__(self, answer: Answer, made: threading.Event) -> None:
        self.answer, self.made = answer, made

    @property
    def is_there(self) -> bool:
        return self.made.is_set()

    def wait(self) -> Answer:
        self.made.wait()
        return self.answer


class Sessions:
    """A worker whose lists are the rows of the steps; it fails where these say so."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.made = threading.Event()
        self.made.set()

    def launch(self, steps: list[Step]) -> Any:
        rows = b"".join(step.rows for step in steps)
        if rows == b"fail":
            raise RuntimeError("out of memory")
        self.seen.append(rows)
        return Launched(Answer(rows, b""), self.made)


class Workers:
    """Some workers as vLLM would run them: each serves in a thread of its own, and all have stopped or one failed."""

    def __init__(self, ranks: int) -> None:
        self.sessions = [Sessions() for _ in range(ranks)]
        self.servers: dict[int, StepServer] = {}
        self.serving = 0
        self._turns = [threading.Lock() for _ in range(ranks)]

    def serve(self, address: str) -> asyncio.Task[Any]:
        async def all_ranks() -> None:
            await asyncio.gather(
                *(asyncio.to_thread(self._serve, rank, address) for rank in range(len(self.sessions)))
            )

        return asyncio.create_task(all_ranks())

    def _serve(self, rank: int, address: str) -> None:
        with self._turns[rank]:  # a worker does what it is asked one after the other
            if rank not in self.servers:
                self.servers[rank] = StepServer(address, rank)
            self.serving += 1
            try:
                self.servers[rank].serve(self.sessions[rank])  # type: ignore[arg-type]
            finally:
                self.serving -= 1


Open = Callable[[int], Any]


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Open]:
    channels = []

    async def open_channel(ranks: int) -> tuple[StepChannel, Workers]:
        workers = Workers(ranks)
        channel = StepChannel(workers.serve)
        channels.append((channel, workers))
        await channel.open(ranks)
        return channel, workers

    yield open_channel
    for channel, workers in channels:
        channel.close()
        await eventually(lambda workers=workers: not workers.serving, "the end of all workers")


def steps(rows: bytes) -> bytes:
    return encode_steps([Step(rows, b"", b"", b"", b"", b"", b"")])


async def lists(answer: asyncio.Future[bytes]) -> bytes:
    return decode_answer(await answer).items


async def test_answers_come_in_the_order_of_the_steps(opened: Open) -> None:
    """Small ones and some larger than any buffer between the two, sent before the first is answered."""
    channel, workers = await opened(1)
    sent = [bytes([number]) * size for number, size in enumerate([1, 3 << 20, 10, 0, 300_000])]
    answers = [channel.run(steps(rows)) for rows in sent]
    assert [await lists(answer) for answer in answers] == sent
    assert workers.sessions[0].seen == sent


async def test_steps_are_begun_while_earlier_ones_are_computed(opened: Open) -> None:
    """A device has its next work before it is done, and the first lists do not wait for that to come."""
    channel, workers = await opened(1)
    worker = workers.sessions[0]
    worker.made.clear()
    first, second = channel.run(steps(b"first")), channel.run(steps(b"second"))
    await eventually(lambda: worker.seen == [b"first", b"second"], "both steps")
    assert not first.done()
    worker.made.set()
    assert [await lists(first), await lists(second)] == [b"first", b"second"]


async def test_every_rank_gets_all_steps_and_the_first_answers(opened: Open) -> None:
    """As tensor parallel ranks need it, which compute each step together."""
    channel, workers = await opened(3)
    for rows in (b"one", b"two"):
        assert await lists(channel.run(steps(rows))) == rows
    for sessions in workers.sessions:
        await eventually(lambda sessions=sessions: sessions.seen == [b"one", b"two"], "both steps")


async def test_a_pause_comes_in_order_with_the_steps(opened: Open) -> None:
    """What was sent before is answered, the workers are free meanwhile, and what is sent then waits for its turn."""
    channel, workers = await opened(2)
    before = channel.run(steps(b"before"))
    async with channel.paused():
        assert not workers.serving
        assert await lists(before) == b"before"
        meanwhile = channel.run(steps(b"meanwhile"))
        await asyncio.sleep(0)
        assert workers.sessions[0].seen == [b"before"]
    assert await lists(meanwhile) == b"meanwhile"
    async with channel.paused():
        pass
    assert await lists(channel.run(steps(b"after"))) == b"after"


async def test_a_pause_that_is_given_up_leaves_the_workers_serving(opened: Open) -> None:
    """Whoever asked for it may be cancelled before it begins."""
    channel, workers = await opened(1)
    workers.sessions[0].made.clear()
    answer = channel.run(steps(b"one"))

    async def pause() -> None:
        async with channel.paused():
            pass

    pausing = asyncio.create_task(pause())
    await eventually(lambda: workers.sessions[0].seen == [b"one"], "the steps")
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    workers.sessions[0].made.set()
    assert await lists(answer) == b"one"
    assert await lists(channel.run(steps(b"two"))) == b"two"


async def test_a_worker_that_fails_is_quoted(opened: Open) -> None:
    """To all that wait for answers, and all that come."""
    channel, _ = await opened(1)
    for answer in [channel.run(steps(rows)) for rows in (b"fail", b"behind it")]:
        with pytest.raises(EngineFailed, match="the engine failed: out of memory"):
            await answer
    with pytest.raises(EngineFailed, match="out of memory"):
        await channel.run(steps(b"late"))
    with pytest.raises(EngineFailed, match="out of memory"):
        async with channel.paused():
            pass


async def test_a_worker_that_dies_is_missed_at_once(opened: Open) -> None:
    """Its socket ends with it: nobody waits for what will not come, nor for a pause of the dead."""
    channel, workers = await opened(2)
    workers.sessions[0].made.clear()
    answer = channel.run(steps(b"one"))
    await eventually(lambda: workers.sessions[1].seen == [b"one"], "the steps")

    async def pause() -> None:
        async with channel.paused():
            pass

    pausing = asyncio.create_task(pause())
    await asyncio.sleep(0)
    workers.servers[1]._socket.shutdown(2)
    for waiting in (answer, pausing):
        with pytest.raises(EngineFailed, match="the engine died"):
            await asyncio.wait_for(waiting, 10)
    workers.sessions[0].made.set()


async def test_workers_stop_when_the_front_end_goes(opened: Open) -> None:
    """Also in the midst of a step that nobody waits for any more."""
    channel, workers = await opened(2)
    workers.sessions[0].made.clear()
    answer = channel.run(steps(b"one"))
    await eventually(lambda: workers.sessions[0].seen == [b"one"], "the steps")
    channel.close()
    with pytest.raises(EngineFailed, match="closed"):
        await answer
    workers.sessions[0].made.set()
    await eventually(lambda: not workers.serving, "the end of all workers")


def test_a_channel_whose_loop_is_closed_still_parts_from_its_workers() -> None:
    """Which then stop serving: an engine that is closed late ends as it would have."""
    threads: list[threading.Thread] = []

    def serve(address: str) -> asyncio.Task[Any]:
        def worker() -> None:
            StepServer(address, 0).serve(Sessions())  # type: ignore[arg-type]

        threads.append(threading.Thread(target=worker, daemon=True))
        threads[0].start()
        return asyncio.create_task(asyncio.Event().wait())

    channel = StepChannel(serve)
    asyncio.run(channel.open(1))
    assert threads[0].is_alive()
    channel.close()
    threads[0].join(20)
    assert not threads[0].is_alive()
