"""A rolling restart under load: how long events wait for their lists meanwhile, and whether any waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from msgspec import Struct

from schemas.codecs import decode_list, encode_event
from schemas.events import Watch
from stream.bench.environment import Bench
from stream.bench.page import markdown_table
from stream.demo.broker import free_port
from stream.demo.daemon import DaemonProcess
from stream.demo.processes import Child
from stream.kafka import client_options, connected, producer_options
from stream.settings import Settings
from stream.topics import ensure_topics

_DAEMONS: Final = 3
_PARTITIONS: Final = 6
_VIDEOS: Final = 10_000
_READY_SECONDS: Final = 180.0
_ENGINE_SECONDS: Final = 300.0  # it compiles what it has not compiled before
_SETTLE_SECONDS: Final = 5.0
_OWED_SECONDS: Final = 120.0
_HTTP_SECONDS: Final = 2.0
_SESSION_MS: Final = 30_000  # of a static member: longer than it takes to start


class Mode(Struct, frozen=True):
    """A way to run the group."""

    title: str
    settings: Mapping[str, object]
    is_static: bool = False


MODES: Final = (
    Mode("at least once", {}),
    Mode("exactly once", {"stream__delivery": "exactly_once"}),
    Mode("at least once, static members", {"kafka__session_timeout_ms": _SESSION_MS}, True),
)


class Waits(Struct, frozen=True):
    """How long events waited for a list that serves them, in milliseconds."""

    events: int
    p50: float
    p99: float
    most: float


class RestartResult(Struct, frozen=True):
    """One rolling restart."""

    title: str
    users: int
    rate: float
    """Events a second, of all users together."""
    before: Waits
    during: Waits
    after: Waits
    restart_seconds: Sequence[float]
    """Of each daemon, from SIGTERM until it was ready again."""
    lost: int
    """Events that no list served."""
    repeated: int
    """Lists that came a second time."""
    backward: int
    """Lists that came after one of the same user that served more."""


class _Sent(Struct, frozen=True):
    user_id: str
    offset: int
    at: float


class _Arrived(Struct, frozen=True):
    list_id: str
    offset: int
    at: float


class _Traffic:
    """Events sent at a steady rate, users in turn, and the lists that came, each with its time."""

    def __init__(self, settings: Settings, users: int, rate: float) -> None:
        self._settings = settings
        self._users = users
        self._rate = rate
        self.sent: list[_Sent] = []
        self.arrived: dict[str, list[_Arrived]] = defaultdict(list)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take lists while the block runs."""
        topic = self._settings.topics.lists
        consumer = AIOKafkaConsumer(
            **client_options(self._settings.kafka), isolation_level="read_committed", fetch_max_wait_ms=5
        )
        async with connected(consumer, self._settings.kafka):
            consumer.assign([TopicPartition(topic, number) for number in range(_PARTITIONS)])
            await consumer.seek_to_beginning()
            async with _task(self._listen(consumer)):
                yield

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Send while the block runs; what was sent is acknowledged when it is left."""
        producer = AIOKafkaProducer(**producer_options(self._settings.kafka))
        async with connected(producer, self._settings.kafka):
            acknowledging: set[asyncio.Task[None]] = set()
            async with _task(self._send(producer, acknowledging)):
                yield
            await asyncio.gather(*acknowledging)

    async def served(self) -> None:
        """Return when every event sent is served, or none more is after two minutes."""
        deadline = time.monotonic() + _OWED_SECONDS
        for _ in count():
            if not self.owed() or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.1)

    def owed(self) -> int:
        """Events that no list serves yet."""
        newest = {user: max(one.offset for one in lists) for user, lists in self.arrived.items()}
        return sum(event.offset > newest.get(event.user_id, -1) for event in self.sent)

    def waits(self, begin: float, end: float) -> Waits:
        """Of the events sent between two times; those that no list serves are left out."""
        # a list serves its user's events up to its offset: the first to arrive that does so counts
        found = []
        for event in self.sent:
            if begin <= event.at < end:
                serving = [one.at for one in self.arrived[event.user_id] if one.offset >= event.offset]
                if serving:
                    found.append(1000 * (min(serving) - event.at))
        if not found:
            raise RuntimeError(f"no event of {end - begin:.0f} seconds was served")
        p50, p99 = np.percentile(found, (50, 99)).tolist()
        return Waits(len(found), p50, p99, max(found))

    def repeated(self) -> int:
        """Lists with the id of another."""
        ids = [one.list_id for lists in self.arrived.values() for one in lists]
        return len(ids) - len(set(ids))

    def backward(self) -> int:
        """Lists that serve less than one that came before them."""
        return sum(
            later.offset < earlier.offset
            for lists in self.arrived.values()
            for earlier, later in pairwise(lists)
        )

    async def _listen(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            fetched = await consumer.getmany(timeout_ms=50)
            now = time.time()
            for records in fetched.values():
                for record in records:
                    made = decode_list(record.value)
                    self.arrived[made.user_id].append(_Arrived(made.list_id, made.trigger.offset, now))

    async def _send(self, producer: AIOKafkaProducer, acknowledging: set[asyncio.Task[None]]) -> None:
        random = np.random.default_rng(0)
        started = time.monotonic()
        for number in count():
            early = number / self._rate - (time.monotonic() - started)
            if early > 0:
                await asyncio.sleep(early)
            user_id, now = f"user-{number % self._users}", time.time()
            event = Watch(
                event_id=f"live-{number}",
                user_id=user_id,
                video_id=f"video-{random.integers(_VIDEOS)}",
                timestamp_ms=int(now * 1000),
                watch_seconds=12.5,
                watch_ratio=0.5,
                video_seconds=25.0,
            )
            topic, key = self._settings.topics.events, user_id.encode()
            written = await producer.send(topic, encode_event(event), key=key)
            task = asyncio.create_task(self._note(user_id, now, written))
            acknowledging.add(task)

    async def _note(self, user_id: str, at: float, written: asyncio.Future[Any]) -> None:
        self.sent.append(_Sent(user_id, (await written).offset, at))


@contextmanager
def engine(checkpoint: Path, directory: Path) -> Iterator[str]:
    """An engine that daemons share (`mtgr-stream serve`), at the address given; it ends with the block."""
    port = free_port()
    command = [sys.executable, "-m", "stream", "serve", "--checkpoint", str(checkpoint), "--port", str(port)]
    with Child(command, directory / "engine.log", name="engine") as child:
        child.wait_until(lambda: _answers(f"http://127.0.0.1:{port}/healthz"), _ENGINE_SECONDS)
        yield f"http://127.0.0.1:{port}"


def run(bench: Bench, url: str, mode: Mode, *, users: int, rate: float, seconds: float) -> RestartResult:
    """Restart three daemons one after another, as an operator would, under `rate` events a second.

    They share the engine at `url`, and each has a state folder of its own. Measured are `seconds` before the first
    restart, the restarts, and `seconds` after the last.
    """
    settings, values = bench.settings(
        topics__partitions=_PARTITIONS,
        generator__kind="server",
        generator__url=url,
        log__format="json",
        **mode.settings,
    )
    asyncio.run(ensure_topics(settings))
    with ExitStack() as stack:
        group = _Group(bench.directory / settings.kafka.group_id, values, mode.is_static)
        stack.callback(group.stop)
        return asyncio.run(_run(group, settings, mode, users, rate, seconds))


async def _run(
    group: _Group, settings: Settings, mode: Mode, users: int, rate: float, seconds: float
) -> RestartResult:
    traffic = _Traffic(settings, users, rate)
    for number in range(_DAEMONS):
        await asyncio.to_thread(group.start, number)
    async with traffic.listening():
        async with traffic.sending():
            await asyncio.sleep(users / rate + _SETTLE_SECONDS)  # everybody has been seen once
            marks = [time.time()]
            await asyncio.sleep(seconds)
            marks.append(time.time())
            took = []
            for number in range(_DAEMONS):
                began = time.monotonic()
                await asyncio.to_thread(group.restart, number)
                took.append(time.monotonic() - began)
                await asyncio.sleep(_SETTLE_SECONDS)
            marks.append(time.time())
            await asyncio.sleep(seconds)
            marks.append(time.time())
        await traffic.served()
    before, during, after = (traffic.waits(*span) for span in pairwise(marks))
    return RestartResult(
        title=mode.title,
        users=users,
        rate=rate,
        before=before,
        during=during,
        after=after,
        restart_seconds=took,
        lost=traffic.owed(),
        repeated=traffic.repeated(),
        backward=traffic.backward(),
    )


def facts(result: RestartResult) -> Sequence[tuple[str, str]]:
    """The result for people: what was measured, and what came out."""
    return (
        ("delivery", result.title),
        ("users, events/s", f"{result.users:,}, {result.rate:g}"),
        *(
            (
                f"p50, p99 and longest wait {name}, ms",
                f"{waits.p50:,.0f}, {waits.p99:,.0f}, {waits.most:,.0f}",
            )
            for name, waits in (("before", result.before), ("during", result.during), ("after", result.after))
        ),
        ("events during", f"{result.during.events:,}"),
        ("each restart, s", ", ".join(f"{seconds:.1f}" for seconds in result.restart_seconds)),
        ("events without a list", str(result.lost)),
        ("lists that came twice", str(result.repeated)),
        ("lists that came after a newer one", str(result.backward)),
    )


def section(results: Sequence[RestartResult], circumstances: str) -> str:
    """The results for a page, one in a column."""
    names = [name for name, _ in facts(results[0])]
    values = [[value for _, value in facts(result)] for result in results]
    head, *rows = zip(names, *values, strict=True)
    return f"{markdown_table(head, rows)}\n{circumstances}."


class _Group:
    """The daemons of one group, each with its own state folder."""

    def __init__(self, directory: Path, values: Mapping[str, object], is_static: bool) -> None:
        self._directory = directory
        self._values = values
        self._is_static = is_static
        self._daemons: dict[int, DaemonProcess] = {}

    def start(self, number: int) -> None:
        """Start a daemon and wait until it is ready."""
        values = {**self._values, "state.directory": str(self._directory / f"state-{number}")}
        if self._is_static:
            values["kafka.group_instance_id"] = f"daemon-{number}"
        daemon = DaemonProcess(self._directory, values, name=f"daemon-{number}")
        self._daemons[number] = daemon
        daemon.wait_ready(_READY_SECONDS)

    def restart(self, number: int) -> None:
        """SIGTERM, and the same daemon again as soon as it is gone."""
        code = self._daemons[number].stop()
        if code != 0:
            raise self._daemons[number].child.failure(f"ended with exit code {code}")
        self.start(number)

    def stop(self) -> None:
        """End all of them."""
        for daemon in self._daemons.values():
            daemon.stop()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_SECONDS) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@asynccontextmanager
async def _task(work: Any) -> AsyncIterator[None]:
    """Run something beside the block; what it raises, the block raises at its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
