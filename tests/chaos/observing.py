"""What feeds a chaos run and what watches it: events that go on, lists as consumers see them, offsets as they move."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from checker import OffsetSample
from cluster import ClusterAdmin
from workload import Workload

_TURN_SECONDS = 0.05
_SAMPLE_SECONDS = 0.2
_WAITING = 20_000  # records sent and not acknowledged yet, above which none is sent
_FETCH_BYTES = 4 << 20


class Feeder:
    """Sends the workload to the events topic at a steady rate, whatever becomes of brokers, until told to stop."""

    def __init__(self, servers: str, topic: str, workload: Workload, rate: float) -> None:
        self._topic = topic
        self._workload = workload
        self.rate = rate
        self.acknowledged = 0
        self.failed = 0
        self._waiting = 0
        self._stopping = False
        self._producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True, linger_ms=5)

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[Feeder]:
        """Feed during the block; at its end, all that was sent has been acknowledged or has failed."""
        await self._producer.start()
        task = asyncio.create_task(self._run(), name="feeder")
        try:
            yield self
            self._stopping = True
            await asyncio.wait_for(task, 120)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._producer.stop()

    async def until(self, records: int, rate: float, within: float) -> None:
        """Go on at another rate until so many records are acknowledged."""
        self.rate = rate
        deadline = time.monotonic() + within
        while self.acknowledged < records:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.acknowledged} of {records} events were taken in {within:g} s")
            await asyncio.sleep(_TURN_SECONDS)

    async def _run(self) -> None:
        due = 0.0
        last = time.monotonic()
        while not self._stopping:
            await asyncio.sleep(_TURN_SECONDS)
            now = time.monotonic()
            due = min(due + (now - last) * self.rate, self.rate)  # at most a second's are made up for
            last = now
            if self._waiting > _WAITING:
                continue
            batch = self._workload.take(int(due))
            due -= len(batch)
            for sent in batch:
                future = await self._producer.send(
                    self._topic, sent.value, key=sent.key, headers=list(sent.headers)
                )
                self._waiting += 1
                future.add_done_callback(self._done)
        await self._producer.flush()

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if future.cancelled() or future.exception() is not None:
            self.failed += 1
        else:
            self.acknowledged += 1


class Watcher:
    """A consumer of the lists topic that reads what is committed, and when it saw a list in which partition."""

    def __init__(self, servers: str, topic: str, partitions: int) -> None:
        self._tps = [TopicPartition(topic, number) for number in range(partitions)]
        self._seen: dict[int, list[float]] = {number: [] for number in range(partitions)}
        self._servers = servers

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[Watcher]:
        """Watch during the block."""
        task = asyncio.create_task(self._run(), name="watcher")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def has_seen_all_since(self, moment: float) -> bool:
        """Whether a list has come in every partition since then."""
        return all(seen and seen[-1] > moment for seen in self._seen.values())

    def longest_silence(self, begin: float, end: float) -> float:
        """The longest time without a new list that a partition had between two moments, in seconds."""
        longest = 0.0
        for seen in self._seen.values():
            last = begin
            for moment in seen:
                if begin < moment <= end:
                    longest = max(longest, moment - last)
                    last = moment
        return longest

    def forget_before(self, moment: float) -> None:
        """Keep no more than what was seen since."""
        for number, seen in self._seen.items():
            self._seen[number] = [one for one in seen if one >= moment]

    async def _run(self) -> None:
        while True:
            consumer = _reader(self._servers)
            try:
                await consumer.start()
                consumer.assign(self._tps)
                await consumer.seek_to_end()
                while True:
                    fetched = await consumer.getmany(timeout_ms=200, max_records=5_000)
                    now = time.monotonic()
                    for tp in fetched:
                        self._seen[tp.partition].append(now)
            except (KafkaError, OSError):
                await asyncio.sleep(_TURN_SECONDS)
            finally:
                await consumer.stop()


class Sampler:
    """Asks again and again which offsets are committed and, after that, where the changelog ends.

    That is the end of what is replicated, committed or not: brokers let an offset and the records of its transaction
    be seen one a moment after the other. What of the changelog was aborted in the end, the checker does not read.
    """

    def __init__(self, admin: ClusterAdmin, servers: str, group: str, events: str, changelog: str) -> None:
        self._admin = admin
        self._group = group
        self._events = events
        self._changelog = changelog
        self._servers = servers
        self.samples: list[OffsetSample] = []

    @asynccontextmanager
    async def sampling(self, partitions: int) -> AsyncIterator[Sampler]:
        """Sample during the block."""
        task = asyncio.create_task(self._run(partitions), name="sampler")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, partitions: int) -> None:
        tps = [TopicPartition(self._changelog, number) for number in range(partitions)]
        consumer = _reader(self._servers, isolation="read_uncommitted")
        await consumer.start()
        consumer.assign(tps)
        try:
            while True:
                with contextlib.suppress(KafkaError, OSError, TimeoutError):
                    async with asyncio.timeout(15):
                        committed = await self._admin.committed(self._group, self._events)
                        ends = await consumer.end_offsets(tps)
                    self.samples.append(
                        OffsetSample(committed, {tp.partition: end for tp, end in ends.items()})
                    )
                await asyncio.sleep(_SAMPLE_SECONDS)
        finally:
            await consumer.stop()


def read_topic(servers: str, topic: str, partitions: int) -> Iterator[Any]:
    """Every committed record that is in a topic now, partition by partition; to be called outside of an event loop."""
    with asyncio.Runner() as runner:
        consumer = runner.run(_started(servers))
        try:
            for number in range(partitions):
                tp = TopicPartition(topic, number)
                end = runner.run(_begin(consumer, tp))
                while runner.run(consumer.position(tp)) < end:
                    fetched = runner.run(consumer.getmany(tp, timeout_ms=500, max_records=20_000))
                    yield from fetched.get(tp, ())
        finally:
            runner.run(consumer.stop())


async def end_offsets(servers: str, topic: str, partitions: int) -> dict[int, int]:
    """Where the partitions of a topic end, by number."""
    consumer = await _started(servers)
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, number) for number in range(partitions)])
    finally:
        await consumer.stop()
    return {tp.partition: end for tp, end in ends.items()}


async def _begin(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int:
    """Read this partition from its start; returns its end."""
    consumer.assign([tp])
    await consumer.seek_to_beginning(tp)
    end: int = (await consumer.end_offsets([tp]))[tp]
    return end


async def _started(servers: str) -> AIOKafkaConsumer:
    consumer = _reader(servers)
    await consumer.start()
    return consumer


def _reader(servers: str, *, isolation: str = "read_committed") -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=servers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation,
        max_partition_fetch_bytes=_FETCH_BYTES,
        request_timeout_ms=10_000,
        metadata_max_age_ms=5_000,
        fetch_max_wait_ms=100,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of values lies, 0 for none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
