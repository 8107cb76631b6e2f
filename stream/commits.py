"""The commit cycle: makes durable what was folded and published, and only then commits the source offsets.

At least once, in this order: lists are published and acknowledged as they are made; a user's state says "served" only
after that; the cycle writes dead letters, sees that the partitions are still its own, writes the changelog, waits for
its acknowledgement, writes the local files, and commits the offsets last. A crash at any point repeats work and loses
none. `stream.exactly_once` is the other cycle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from stream import changelog
from stream.kafka import producer_options, start, stop
from stream.outgoing import (
    BATCH_BYTES,
    REQUEST_BYTES,
    OutgoingList,
    all_of,
    send_dead_letters,
    send_lists,
)
from stream.partition import CommitWork, Partition, Phase
from stream.settings import Settings
from stream.source import lone_consumer

log = structlog.get_logger(__name__)

_STOP_SECONDS: Final = 5.0
_MEND_SECONDS: Final = 30.0


class PartitionsLost(Exception):
    """The group has given the partitions to another daemon: nothing may be written for them any more."""


class CommitCycle(Protocol):
    """How what the daemon did becomes durable."""

    async def start(self) -> None:
        """Connect; raises KafkaUnreachable."""

    async def claim(self, tp: TopicPartition) -> int | None:
        """Become the one who writes for a partition, before its state is restored.

        Returns the source offset to read from, None for where the consumer stands. Raises PartitionsLost where the
        group has given the partition to another daemon, Fatal where Kafka refuses.
        """

    async def release(self, tps: Iterable[TopicPartition]) -> None:
        """Write for these partitions no more."""

    async def publish(self, lists: Sequence[OutgoingList]) -> bool:
        """Write lists: True once the states may say that they were served, False if `commit` is to write them.

        Raises KafkaError.
        """

    async def commit(self, work: Sequence[CommitWork]) -> Sequence[CommitWork]:
        """Make the work of some partitions durable and commit their offsets; returns what of it was given up.

        A partition whose work was given up has to begin again from what is durable. May be repeated after a
        KafkaError or a cancellation; raises PartitionsLost where it must not be, Fatal where it is of no use.
        """

    async def restart(self) -> None:
        """Connect anew after an error, giving up whatever was under way."""

    async def stop(self) -> None:
        """Wait for what was written and disconnect."""


async def commit_offsets(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
    """Commit source offsets as a member of the group; raises PartitionsLost where the group refuses it."""
    try:
        await consumer.commit(dict(offsets))
    except (CommitFailedError, IllegalStateError) as error:
        raise PartitionsLost(" ".join(str(error).split())) from error


class AtLeastOnce:
    """The CommitCycle that never loses and, after a crash, may repeat: consumers deduplicate by list_id."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer, max_dead_letter_bytes: int) -> None:
        """`max_dead_letter_bytes` is what the dead-letter topic takes, its max.message.bytes."""
        self._settings = settings
        self._max_dead_letter_bytes = min(max_dead_letter_bytes, REQUEST_BYTES)
        self._consumer = consumer
        self._topics = settings.topics
        self._changelog = settings.changelog_topic
        self._producer: AIOKafkaProducer | None = None
        self._connected = asyncio.Event()
        self._session_seconds = settings.kafka.session_timeout_ms / 1000
        self._gaps: dict[
            Partition, int
        ] = {}  # whose changelog holds records of somebody else, between the files' checkpoint and an offset
        self._accepted = float("-inf")  # when the last commit was asked for that the group accepted

    async def start(self) -> None:
        producer = self._new_producer()
        await start(producer, self._settings.kafka)
        self._producer = producer
        self._connected.set()

    async def claim(self, tp: TopicPartition) -> None:
        """Nothing to do: what is written is checked against the group instead, before it is written."""

    async def release(self, tps: Iterable[TopicPartition]) -> None:
        """Nothing to do: one producer writes for all partitions."""

    async def publish(self, lists: Sequence[OutgoingList]) -> bool:
        await send_lists(await self._connection(), self._topics.lists, lists)
        return True

    async def commit(self, work: Sequence[CommitWork]) -> Sequence[CommitWork]:
        producer = await self._connection()
        now_ms = time.time_ns() // 1_000_000
        await all_of(
            [
                send_dead_letters(producer, self._topics.dead_letters, part.dead, self._max_dead_letter_bytes)
                for part in work
                if part.dead
            ]
        )
        await self._check_ownership(work)
        ends = await all_of(
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
            if part.partition.phase is Phase.CLOSED:  # its files may be another daemon's by now
                continue
            begin = part.partition.store.checkpoint
            is_whole = end - begin == len(part.changes)
            # Files that passed over records of somebody else would be no copy of the changelog: they stay where they
            # stood, so that whoever restores from them reads these records, until what stands there has been mended.
            part.partition.write(part.changes, end if is_whole else begin)
            if not is_whole:
                self._gaps[part.partition] = end
        await self._commit_offsets(
            {part.partition.tp: part.offset for part in work if part.offset is not None}
        )
        for partition, end in list(self._gaps.items()):
            if partition.phase is not Phase.CLOSED:
                await self._mend(producer, partition, end)
            del self._gaps[partition]
        return ()

    async def _mend(self, producer: AIOKafkaProducer, partition: Partition, end: int) -> None:
        """Write again what somebody else has written over, from the files' checkpoint to an offset of the changelog.

        The check before a write does not hold up a daemon that is suspended right behind it, nor what its client
        still sends when the network is back. The owner sees that there are records between its own; its files say
        what should stand there.
        """
        store, tp = partition.store, TopicPartition(self._changelog, partition.tp.partition)
        while True:
            begin = store.checkpoint
            consumer = lone_consumer(self._settings)
            try:
                async with asyncio.timeout(_MEND_SECONDS):
                    await consumer.start()
                    found = await changelog.last_values(consumer, tp, begin, end)
            except TimeoutError:
                log.warning("changelog_not_checked", partition=tp.partition, begin=begin, end=end)
                return
            finally:
                await stop(consumer)
            if partition.phase is Phase.CLOSED:
                return
            mended = [(key, value) for key, last in found.items() if (value := store.value(key)) != last]
            if not mended:
                store.apply((), end)
                return  # markers of transactions, compacted records, or an earlier try of the same cycle
            log.error("changelog_overwritten", partition=tp.partition, keys=len(mended), begin=begin, end=end)
            committed = await self._consumer.committed(partition.tp)
            await self._commit_offsets({partition.tp: committed or 0})
            written = await changelog.append(producer, tp, mended, time.time_ns() // 1_000_000)
            if written - end == len(mended):
                store.apply((), written)
                return
            store.apply((), end)
            end = written

    async def _check_ownership(self, work: Sequence[CommitWork]) -> None:
        """Raise PartitionsLost unless the partitions are still this daemon's, by committing what is committed.

        A daemon that was suspended for longer than its session wakes up with states that are behind those of the
        new owner. Written to the changelog, they would set it back, and nothing would ever mend that. Within half a
        session of a commit that the group accepted there is no such owner, and nothing is asked.
        """
        if _now() - self._accepted < self._session_seconds / 2:
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
        asked = _now()
        await commit_offsets(self._consumer, offsets)
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

    async def _connection(self) -> AIOKafkaProducer:
        """The producer, once it is there: lists are made while a failed one is being replaced."""
        await self._connected.wait()
        assert self._producer is not None
        return self._producer

    def _new_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **producer_options(self._settings.kafka),
            max_batch_size=BATCH_BYTES,
            max_request_size=REQUEST_BYTES,
        )


def _now() -> float:
    """Seconds that go on while the machine sleeps, which those of time.monotonic do not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
