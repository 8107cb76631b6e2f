"""The commit cycle: makes durable what was folded and published, and only then commits the source offsets.

At least once, in this order: lists are published and acknowledged as they are made; a user's state says "served" only
after that; the cycle writes dead letters, sees that the partitions are still its own, writes the changelog, waits for
its acknowledgement, writes the local files, and commits the offsets last. A crash at any point repeats work and loses
none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from msgspec import Struct

from schemas.codecs import CONTENT_TYPE_HEADER, JSON, encode_list
from schemas.lists import RecommendationList
from stream import changelog
from stream.dead_letters import DeadRecord
from stream.kafka import producer_options, start, stop
from stream.partition import CommitWork, Phase
from stream.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

_BATCH_BYTES: Final = 512 * 1024
_REQUEST_BYTES: Final = 2 << 20
_STOP_SECONDS: Final = 5.0
_CONTENT_TYPE: Final = (CONTENT_TYPE_HEADER, JSON.encode())


class OutgoingList(Struct, frozen=True):
    """A list, and the trace it belongs to."""

    value: RecommendationList
    traceparent: bytes | None


class PartitionsLost(Exception):
    """The group has given the partitions to another daemon: nothing may be written for them any more."""


class CommitCycle(Protocol):
    """How what the daemon did becomes durable."""

    async def start(self) -> None:
        """Connect; raises KafkaUnreachable."""

    async def publish(self, lists: Sequence[OutgoingList]) -> None:
        """Write lists; returns once the state may say that they were served. Raises KafkaError."""

    async def commit(self, work: Sequence[CommitWork]) -> None:
        """Make the work of some partitions durable and commit their offsets.

        May be repeated after a KafkaError; raises PartitionsLost where it must not be.
        """

    async def restart(self) -> None:
        """Connect anew after an error, giving up whatever was under way."""

    async def stop(self) -> None:
        """Wait for what was written and disconnect."""


class AtLeastOnce:
    """The CommitCycle that never loses and, after a crash, may repeat: consumers deduplicate by list_id."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer, max_dead_letter_bytes: int) -> None:
        """`max_dead_letter_bytes` is what the dead-letter topic takes, its max.message.bytes."""
        self._settings = settings
        self._max_dead_letter_bytes = min(max_dead_letter_bytes, _REQUEST_BYTES)
        self._consumer = consumer
        self._topics = settings.topics
        self._changelog = settings.changelog_topic
        self._producer: AIOKafkaProducer | None = None
        self._connected = asyncio.Event()
        self._session_seconds = settings.kafka.session_timeout_ms / 1000
        self._accepted = float("-inf")  # when the last commit was asked for that the group accepted

    async def start(self) -> None:
        producer = self._new_producer()
        await start(producer, self._settings.kafka)
        self._producer = producer
        self._connected.set()

    async def publish(self, lists: Sequence[OutgoingList]) -> None:
        producer = await self._connection()
        sent = []
        for item in lists:
            headers = [_CONTENT_TYPE, ("list_id", item.value.list_id.encode())]
            if item.traceparent is not None:
                headers.append(("traceparent", item.traceparent))
            sent.append(
                await producer.send(
                    self._topics.lists,
                    encode_list(item.value),
                    key=item.value.user_id.encode(),
                    headers=headers,
                )
            )
        await _all(sent)

    async def commit(self, work: Sequence[CommitWork]) -> None:
        producer = await self._connection()
        now_ms = time.time_ns() // 1_000_000
        await _all([self._bury(producer, part.dead) for part in work if part.dead])
        await self._check_ownership(work)
        ends = await _all(
            [
                changelog.append(
                    producer,
                    TopicPartition(self._changelog, part.partition.tp.partition),
                    part.changes,
                    now_ms,
                )
                for part in work
                if part.changes
            ]
        )
        for part, end in zip((part for part in work if part.changes), ends, strict=True):
            if part.partition.phase is not Phase.CLOSED:  # its files may be another daemon's by now
                part.partition.store.apply(part.changes, end)
        await self._commit_offsets(
            {part.partition.tp: part.offset for part in work if part.offset is not None}
        )

    async def _check_ownership(self, work: Sequence[CommitWork]) -> None:
        """Raise PartitionsLost unless the partitions are still this daemon's, by committing what is committed.

        A daemon that was suspended for longer than its session wakes up with states that are behind those of the
        new owner. Written to the changelog, they would set it back, and nothing would ever mend that. Within half a
        session of a commit that the group accepted there is no such owner, and nothing is asked.
        """
        if time.monotonic() - self._accepted < self._session_seconds / 2:
            return
        await self._commit_offsets(
            {
                part.partition.tp: part.committed
                if part.committed is not None
                else await self._consumer.committed(part.partition.tp) or 0
                for part in work
                if part.changes
            }
        )

    async def _commit_offsets(self, offsets: dict[TopicPartition, int]) -> None:
        if not offsets:
            return
        asked = time.monotonic()
        try:
            await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            raise PartitionsLost(str(error)) from error
        self._accepted = asked

    async def restart(self) -> None:
        # However long that takes: what the old producer still held, and wrote after the new one, would set
        # states in the changelog back.
        await self._disconnect(None)
        await self.start()

    async def stop(self) -> None:
        await self._disconnect(_STOP_SECONDS)

    async def _disconnect(self, seconds: float | None) -> None:
        self._connected.clear()
        if self._producer is not None:
            if not await stop(self._producer, seconds):
                log.warning("producer_not_stopped")
            self._producer = None

    async def _bury(self, producer: AIOKafkaProducer, dead: Sequence[DeadRecord]) -> None:
        partitions = await producer.partitions_for(self._topics.dead_letters)
        sent = []
        for record in dead:  # in order, to the partition of the same number, so that the order is kept
            fitting = record.fitting(self._max_dead_letter_bytes)
            sent.append(await self._send_dead(producer, fitting, len(partitions)))
        await _all(sent)

    async def _send_dead(
        self, producer: AIOKafkaProducer, record: DeadRecord, partitions: int
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await producer.send(
            self._topics.dead_letters,
            record.value,
            key=record.key if record.key is not None or record.value is not None else b"",
            partition=record.letter.partition % partitions,
            timestamp_ms=record.timestamp_ms,
            headers=record.all_headers(),
        )
        return future

    async def _connection(self) -> AIOKafkaProducer:
        """The producer, once it is there: lists are made while a failed one is being replaced."""
        await self._connected.wait()
        assert self._producer is not None
        return self._producer

    def _new_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **producer_options(self._settings.kafka),
            max_batch_size=_BATCH_BYTES,
            max_request_size=_REQUEST_BYTES,
        )


async def _all(steps: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all; the first error is raised only when every step has ended, so that none is still under way."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[T]", results)
