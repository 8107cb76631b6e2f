"""A broker in memory that keeps transactions as Kafka does, with the producer that the daemon's code asks of it.

What a transaction writes is seen when it is committed. A producer that starts fences those of its id before it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.errors import ProducerFenced
from changelogs import Batch


class Written(NamedTuple):
    """A record in a topic."""

    topic: str
    partition: int | None
    key: bytes
    value: bytes | None


class Metadata(NamedTuple):
    offset: int


class TransactionalKafka:
    """`failures` names the step at which the next transactions fail, and how; "answer" is after the commit.

    `held` keeps every commit from its end until it is set.
    """

    def __init__(self) -> None:
        self.seen: list[Written] = []
        self.offsets: dict[TopicPartition, int] = {}
        self.failures: list[tuple[str, BaseException]] = []
        self.held = asyncio.Event()
        self.held.set()
        self.commits = 0
        self.under_way = 0
        self.most_under_way = 0
        self.epochs: dict[str, int] = defaultdict(int)
        self.ends: dict[tuple[str, int], int] = defaultdict(int)

    def values(self, topic: str) -> list[bytes | None]:
        """What consumers that read committed records see of a topic."""
        return [record.value for record in self.seen if record.topic == topic]


class TransactionalProducer:
    """One producer of an id."""

    def __init__(self, kafka: TransactionalKafka, transactional_id: str) -> None:
        self._kafka = kafka
        self._id = transactional_id
        self._epoch = 0
        self._open = False
        self._written: list[Written] = []
        self._offsets: dict[TopicPartition, int] = {}
        self.aborted = 0
        self.stopped = False
        self.start_error: BaseException | None = None

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error
        self._kafka.epochs[self._id] += 1
        self._epoch = self._kafka.epochs[self._id]

    async def stop(self) -> None:
        self.stopped = True

    async def begin_transaction(self) -> None:
        assert not self._open
        self._fail("begin")
        self._open = True
        self._written, self._offsets = [], {}
        self._kafka.under_way += 1
        self._kafka.most_under_way = max(self._kafka.most_under_way, self._kafka.under_way)

    async def commit_transaction(self) -> None:
        await asyncio.sleep(0)
        assert self._open
        await self._kafka.held.wait()
        self._fail("commit")
        self._end()
        self._kafka.seen += self._written
        self._kafka.offsets |= self._offsets
        self._kafka.commits += 1
        self._fail("answer")

    async def abort_transaction(self) -> None:
        assert self._open
        self.aborted += 1
        self._end()

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes, partition: int | None = None, **_: Any
    ) -> asyncio.Future[Metadata]:
        assert self._open
        self._fail("send")
        self._written.append(Written(topic, partition, key, value))
        return self._acknowledged(0)

    def create_batch(self) -> Batch:
        return Batch(1_000)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Metadata]:
        assert self._open
        base = self._kafka.ends[topic, partition]
        self._kafka.ends[topic, partition] += len(batch.records)
        self._written += [Written(topic, partition, *change) for change in batch.records]
        return self._acknowledged(base)

    async def partitions_for(self, topic: str) -> set[int]:
        return {0, 1}

    async def send_offsets_to_transaction(self, offsets: dict[TopicPartition, int], group: str) -> None:
        assert self._open
        await asyncio.sleep(0)
        self._fail("offsets")
        self._offsets |= offsets

    def _acknowledged(self, base: int) -> asyncio.Future[Metadata]:
        future: asyncio.Future[Metadata] = asyncio.get_running_loop().create_future()
        try:
            self._fail("acknowledgement")
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(Metadata(base))
        return future

    def _end(self) -> None:
        self._open = False
        self._kafka.under_way -= 1

    def _fail(self, step: str) -> None:
        if self._epoch != self._kafka.epochs[self._id]:
            raise ProducerFenced
        failures = self._kafka.failures
        if failures and failures[0][0] == step:
            raise failures.pop(0)[1]


class GroupMember:
    """A consumer as the commit cycle asks for it: what is committed, and whether the group takes a commit."""

    def __init__(self, kafka: TransactionalKafka, refusals: Sequence[BaseException] = ()) -> None:
        self._kafka = kafka
        self.refusals = list(refusals)
        self.commits: list[dict[TopicPartition, int]] = []

    async def committed(self, tp: TopicPartition) -> int | None:
        return self._kafka.offsets.get(tp)

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.commits.append(offsets)
