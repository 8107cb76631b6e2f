"""The commit cycle in transactions: what a partition's cycle writes is seen whole and once, or never.

One transaction for each partition that changed, all of them at once: lists, dead letters, changelog, source offset.
RocksDB is written after the commit, so that it never holds what was aborted. A transaction that fails is given up with
all that its partition holds in memory, and the partition is begun again from what is durable: there is one way to
recover, whatever failed and at whatever step, and a commit whose answer was lost needs no guessing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from stream import changelog
from stream.commits import commit_offsets
from stream.errors import Fatal
from stream.kafka import KafkaUnreachable, start, stop
from stream.outgoing import REQUEST_BYTES, OutgoingList, all_of, send_dead_letters, send_lists
from stream.partition import CommitWork, Phase
from stream.settings import Settings
from stream.source import heartbeat_ms
from stream.transactions import (
    Severity,
    keep_to_one_report,
    severity,
    transaction,
    transactional_id,
    transactional_producer,
)

log = structlog.get_logger(__name__)

_STOP_SECONDS: Final = 5.0


class ExactlyOnce:
    """The CommitCycle whose lists are seen once, by consumers that read what is committed."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer, max_dead_letter_bytes: int) -> None:
        """`max_dead_letter_bytes` is what the dead-letter topic takes, its max.message.bytes."""
        self._settings = settings
        self._consumer = consumer
        self._max_dead_letter_bytes = min(max_dead_letter_bytes, REQUEST_BYTES)
        self._topics = settings.topics
        self._changelog = settings.changelog_topic
        self._producers: dict[TopicPartition, AIOKafkaProducer] = {}
        self._transactions: dict[TopicPartition, tuple[CommitWork, asyncio.Task[None]]] = {}
        self._failing_since: dict[TopicPartition, float] = {}
        self._heartbeat_seconds = heartbeat_ms(settings.kafka) / 1000

    async def start(self) -> None:
        """Nothing to connect: a producer comes with each partition."""
        keep_to_one_report()

    async def restart(self) -> None:
        """Nothing: a producer that failed is replaced when its partition is claimed anew."""

    async def stop(self) -> None:
        under_way = [task for _, task in self._transactions.values()]
        if under_way:
            await asyncio.wait(under_way, timeout=_STOP_SECONDS)
        await self.release(list(self._producers))

    async def claim(self, tp: TopicPartition) -> int:
        """Fence whoever wrote for the partition before; returns the offset that is committed then.

        What is read from now on is the last word on the partition's state: every earlier transaction has ended.
        """
        await self._drop([tp])
        if tp in self._failing_since:
            # A daemon that was suspended may have lost the partition, and would fence the one that has it now: by
            # the next heartbeat it knows.
            await asyncio.sleep(self._heartbeat_seconds)
        producer = transactional_producer(self._settings, tp)
        name = transactional_id(self._settings.kafka.group_id, tp)
        try:
            await start(producer, self._settings.kafka)
            self._producers[tp] = producer
            offset = await self._committed_offset(tp)
        except (KafkaError, KafkaUnreachable) as error:
            raise Fatal(f"no transactions of {name} can be made: {_text(error)}") from error
        log.debug("partition_claimed", partition=tp.partition, transactional_id=name, offset=offset)
        return offset

    async def _committed_offset(self, tp: TopicPartition) -> int:
        committed: int | None = await self._consumer.committed(tp)
        if committed is None:
            beginning: int = (await self._consumer.beginning_offsets([tp]))[tp]
            return beginning
        # Ask the group whether the partition is ours, now that no transaction is under way: a commit that came
        # between a transaction's offset and its end would stand above that.
        await commit_offsets(self._consumer, {tp: committed})
        return committed

    async def release(self, tps: Iterable[TopicPartition]) -> None:
        """Write nothing more for these partitions: what is under way is left to whoever claims them next."""
        leaving = list(tps)
        for tp in leaving:
            self._failing_since.pop(tp, None)
        await self._drop(leaving)

    async def _drop(self, tps: Iterable[TopicPartition]) -> None:
        producers = []
        for tp in tps:
            if (running := self._transactions.pop(tp, None)) is not None:
                running[1].cancel()
                await asyncio.gather(running[1], return_exceptions=True)
            if (producer := self._producers.pop(tp, None)) is not None:
                producers.append(producer)
        for stopped in await asyncio.gather(*(stop(producer, _STOP_SECONDS) for producer in producers)):
            if not stopped:
                log.warning("producer_not_stopped")

    async def publish(self, lists: Sequence[OutgoingList]) -> bool:
        """False: a list goes into the transaction of the state that says that it was served."""
        return False

    async def commit(self, work: Sequence[CommitWork]) -> Sequence[CommitWork]:
        # A transaction goes on where the caller gives up waiting, and the next call with its work waits for its end:
        # cut off in the middle, it would keep consumers from all that comes after it.
        running = [self._transaction(part) for part in work]
        if running:
            await asyncio.wait(running)
        abandoned = []
        for part, task in zip(work, running, strict=True):
            self._transactions.pop(part.partition.tp, None)
            if not task.cancelled():  # as it is when its partition was released meanwhile
                error = task.exception()
                if error is None:
                    self._failing_since.pop(part.partition.tp, None)
                    continue
                self._judge(part, error)
            abandoned.append(part)
        return abandoned

    def _transaction(self, part: CommitWork) -> asyncio.Task[None]:
        tp = part.partition.tp
        under_way = self._transactions.get(tp)
        if under_way is not None and under_way[0] is part:
            return under_way[1]
        task = asyncio.create_task(self._commit(part), name=f"transaction-{tp.partition}")
        self._transactions[tp] = (part, task)
        return task

    async def _commit(self, part: CommitWork) -> None:
        """One partition's transaction, and then its local files."""
        tp = part.partition.tp
        producer = self._producers[tp]
        now_ms = time.time_ns() // 1_000_000
        end: int | None = None

        async def write_changes() -> None:
            nonlocal end
            to = TopicPartition(self._changelog, tp.partition)
            end = await changelog.append(producer, to, part.changes, now_ms)

        async with transaction(producer):
            steps = []
            if part.changes:
                steps.append(write_changes())
            if part.lists:
                steps.append(send_lists(producer, self._topics.lists, part.lists))
            if part.dead:
                steps.append(
                    send_dead_letters(
                        producer, self._topics.dead_letters, part.dead, self._max_dead_letter_bytes
                    )
                )
            if part.offset is not None and part.offset != part.committed:
                group_id = self._settings.kafka.group_id
                steps.append(producer.send_offsets_to_transaction({tp: part.offset}, group_id))
            await all_of(steps)
        if end is not None and part.partition.phase is not Phase.CLOSED:
            part.partition.write(part.changes, end)

    def _judge(self, part: CommitWork, error: BaseException) -> None:
        """Take note of a transaction that failed; raises Fatal where beginning again is of no use."""
        tp = part.partition.tp
        now = time.monotonic()
        seconds = now - self._failing_since.setdefault(tp, now)
        sorted_as = severity(error)
        reason = _text(error)
        if not isinstance(error, KafkaError | OSError):
            raise error
        if sorted_as is Severity.FATAL:
            raise Fatal(f"partition {tp.partition}: Kafka refuses its transaction: {reason}") from error
        patience = self._settings.kafka.connect_timeout_seconds
        if seconds > patience:
            raise Fatal(
                f"partition {tp.partition}: its transactions have failed for {seconds:.0f} seconds "
                f"(kafka.connect_timeout_seconds = {patience:g}): {reason}"
            ) from error
        log.warning(
            "transaction_abandoned",
            partition=tp.partition,
            error=type(error).__name__,
            severity=sorted_as.value,
            reason=reason,
        )


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
