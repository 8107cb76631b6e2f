"""Where events come from: one loop that takes what the consumer has fetched and folds it, partition by partition."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import IllegalStateError, KafkaError

from stream.dead_letters import DeadLetterGuard
from stream.errors import Fatal
from stream.hot_keys import HotKeys, Share
from stream.kafka import client_options, is_connection_error, stop
from stream.observability import Metrics
from stream.partition import Partition, Phase
from stream.plain_records import PlainRecordsConsumer
from stream.settings import KafkaSettings, Settings

log = structlog.get_logger(__name__)

_POLL_MS: Final = 200
# Records that are unpacked and folded at once. Of more, what one is made of has left the processor's cache before it is
# looked at again; of fewer, each pays more of what comes with asking.
_BITE: Final = 256
_FETCH_BYTES: Final = (
    4 << 20
)  # of a partition: with less, a single one is waited for more often than it is read
_READ_ONE_SECONDS: Final = 10.0
_WATCH_SECONDS: Final = 2.0
_HEARTBEAT_MS: Final = 250


def heartbeat_ms(kafka: KafkaSettings) -> int:
    """How often a daemon tells its group that it is there, and hears whether it still belongs to it.

    While a group rebalances nobody's events are read, and that lasts until the last daemon has heard of it: this is
    what users wait for their lists when a daemon is restarted.
    """
    return max(min(kafka.session_timeout_ms // 3, _HEARTBEAT_MS), 1)


def events_consumer(settings: Settings) -> AIOKafkaConsumer:
    """The consumer of the events topic, not yet started: offsets are committed by the commit cycle alone."""
    kafka = settings.kafka
    return PlainRecordsConsumer(
        **client_options(kafka),
        group_id=kafka.group_id,
        group_instance_id=kafka.group_instance_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=kafka.session_timeout_ms,
        heartbeat_interval_ms=heartbeat_ms(kafka),
        rebalance_timeout_ms=kafka.rebalance_timeout_ms,
        # a partition that stays with its daemon finds its state in the local files
        partition_assignment_strategy=(StickyPartitionAssignor,),
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
        fetch_max_wait_ms=100,
        # the getmany loop asks all the while, however long lists take and partitions are paused
        max_poll_interval_ms=kafka.max_poll_interval_ms,
    )


def lone_consumer(settings: Settings) -> AIOKafkaConsumer:
    """A consumer of no group, for reading given offsets."""
    return AIOKafkaConsumer(
        **client_options(settings.kafka),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
        fetch_max_wait_ms=100,
    )


async def read_record(settings: Settings, tp: TopicPartition, offset: int) -> Any | None:
    """The record at an offset, None if Kafka no longer has it or does not answer in time."""
    consumer = lone_consumer(settings)
    try:
        async with asyncio.timeout(_READ_ONE_SECONDS):
            await consumer.start()
            consumer.assign([tp])
            consumer.seek(tp, offset)
            record = await consumer.getone(tp)
            return record if record.offset == offset else None
    except (KafkaError, OSError, TimeoutError) as error:
        log.warning("record_not_read", partition=tp.partition, offset=offset, error=str(error))
        return None
    finally:
        await stop(consumer)


class Source:
    """The getmany loop, and the pausing that keeps memory bounded.

    A partition is paused while its uncommitted bytes or its owed lists are above its share of the limits, and resumed
    below half of that: lag stays in Kafka, and one hot partition stalls nobody else.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        partitions: Mapping[TopicPartition, Partition],
        metrics: Metrics,
        guard: DeadLetterGuard,
        on_folded: Callable[[], None],
        hot_keys: HotKeys,
        *,
        max_poll_records: int,
        max_bytes: int,
        max_owed: int,
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._metrics = metrics
        self._guard = guard
        self._on_folded = on_folded
        self._max_poll_records = max_poll_records
        self._max_bytes = max_bytes
        self._max_owed = max_owed
        self._full: set[Partition] = set()
        self._ends: dict[TopicPartition, int] = {}
        self._hot = hot_keys
        metrics.before_scrape(self._set_gauges)

    async def run(self) -> None:
        """Fetch and fold until cancelled; raises Fatal."""
        tasks = {
            asyncio.create_task(self._read(), name="records"),
            asyncio.create_task(self._watch_ends(), name="ends"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            read = 0
            while fetched := await self._fetch(_POLL_MS if not read else 0, self._max_poll_records - read):
                for tp, records in fetched.items():
                    self._fold(tp, records)
                    read += len(records)
                if read >= self._max_poll_records:
                    break
            self._balance()
            if read:
                self._on_folded()
                # a full fetch buffer would never make getmany wait: the other tasks need their turn
                await asyncio.sleep(0)

    async def _fetch(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        """The next few records, none if there are none in time or Kafka is not reached; raises Fatal."""
        try:
            return await self._consumer.getmany(  # type: ignore[no-any-return]
                timeout_ms=timeout_ms, max_records=min(max_records, _BITE)
            )
        except (KafkaError, OSError) as error:
            if not is_connection_error(error):
                raise Fatal(f"events cannot be read: {str(error) or type(error).__name__}") from error
            log.warning("fetch_failed", error=str(error) or type(error).__name__)
            await asyncio.sleep(_POLL_MS / 1000)
            return {}

    async def _watch_ends(self) -> None:
        """Ask for the ends of paused partitions: nothing is fetched from them, and so nothing tells how they grow."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            tps = [part.tp for part in self._full]
            if not tps:
                continue
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    self._ends.update(await self._consumer.end_offsets(tps))
            except (KafkaError, OSError, TimeoutError) as error:
                log.debug("ends_not_read", error=str(error) or type(error).__name__)

    def _fold(self, tp: TopicPartition, records: list[Any]) -> None:
        partition = self._partitions.get(tp)
        if partition is None or partition.phase is not Phase.RUNNING:
            if partition is None or partition.phase is Phase.RESTORING:
                # fetched before the pause of its assignment took hold: read it again when the state is there
                with contextlib.suppress(IllegalStateError):  # not assigned any more
                    self._consumer.seek(tp, records[0].offset)
            return
        now = time.monotonic()
        counts = partition.fold(records, now)
        self._hot.note(tp.partition, records, now)
        metrics = self._metrics
        metrics.count_records(tp.topic, tp.partition, len(records))
        for kind, events in counts.events.items():
            metrics.events[kind].inc(events)
        if counts.out_of_order:
            metrics.out_of_order.inc(counts.out_of_order)
        if counts.duplicates:
            metrics.duplicates.inc(counts.duplicates)
        for stage, dead in counts.dead.items():
            metrics.dead_letters[stage].inc(dead)
        self._guard.count(len(records), sum(counts.dead.values()))

    def _balance(self) -> None:
        running = [part for part in self._partitions.values() if part.phase is Phase.RUNNING]
        self._full.intersection_update(running)
        if not running:
            return
        bytes_share = self._max_bytes // len(running)
        owed_share = max(self._max_owed // len(running), 1)
        for part in running:
            if part not in self._full:
                if part.uncommitted_bytes > bytes_share or part.owed > owed_share:
                    self._full.add(part)
                    self._consumer.pause(part.tp)
            elif part.uncommitted_bytes <= bytes_share // 2 and part.owed <= owed_share // 2:
                self._full.discard(part)
                self._consumer.resume(part.tp)

    def _set_gauges(self) -> None:
        metrics = self._metrics
        parts = list(self._partitions.values())
        metrics.owed_users.set(sum(part.owed for part in parts))
        metrics.in_flight_requests.set(sum(part.in_flight for part in parts))
        metrics.in_flight_bytes.set(sum(part.uncommitted_bytes for part in parts))
        metrics.state_cache_bytes.set(sum(part.cache.nbytes for part in parts))
        metrics.paused_partitions.set(len(self._full))
        now = time.monotonic()
        metrics.busiest_partition_share.set(_largest(self._hot.partitions(now)))
        metrics.hottest_user_share.set(_largest(self._hot.users(1, now)))
        for part in parts:
            tp = part.tp
            if part.phase is not Phase.RUNNING:
                continue
            metrics.set_partition_owed(tp.topic, tp.partition, part.owed)
            metrics.set_state_users(tp.topic, tp.partition, part.cache.users)
            end = max(self._consumer.highwater(tp) or 0, self._ends.get(tp, 0))
            if part.next_offset is not None:
                metrics.set_consumer_lag(tp.topic, tp.partition, max(end - part.next_offset, 0))


def _largest(shares: list[Share]) -> float:
    return shares[0].share if shares else 0.0
