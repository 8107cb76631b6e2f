"""Makes the lists that are owed: users due, batched across partitions, through the generator, to the lists topic."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from mtgr.requests import ListRefusal
from stream.commits import CommitCycle
from stream.dead_letters import DeadLetterGuard, DeadRecord
from stream.errors import Fatal
from stream.generation import Generator
from stream.observability import Metrics
from stream.outgoing import OutgoingList
from stream.partition import Partition, PendingList, Phase

log = structlog.get_logger(__name__)

_PUBLISH_PAUSE_SECONDS: Final = 0.5

_Entry = tuple[Partition, PendingList]


class Dispatcher:
    """Takes the users whose deadlines are the oldest from all partitions into one batch after another.

    `max_batches` batches are under way at once, so that the generator never waits for the next. `read_record` gives the
    source record at an offset back, for a dead letter; None if it is gone. Lists that Kafka does not take are made
    again after a pause, until that has failed for `patience_seconds`.
    """

    def __init__(
        self,
        partitions: Mapping[TopicPartition, Partition],
        generator: Generator,
        cycle: CommitCycle,
        metrics: Metrics,
        guard: DeadLetterGuard,
        read_record: Callable[[TopicPartition, int], Awaitable[Any | None]],
        *,
        max_users: int,
        max_batches: int,
        patience_seconds: float,
    ) -> None:
        self._partitions = partitions
        self._generator = generator
        self._cycle = cycle
        self._metrics = metrics
        self._guard = guard
        self._read_record = read_record
        self._max_users = max_users
        self._slots = asyncio.Semaphore(max_batches)
        self._woken = asyncio.Event()
        self._patience = patience_seconds
        self._failing_since: float | None = None  # lists could not be published
        self._hurried = False

    def wake(self) -> None:
        """Events were folded in, a list was settled, or partitions came: look again at who is due."""
        self._woken.set()

    def hurry(self) -> None:
        """No further event will come: everyone who is owed a list is due now."""
        self._hurried = True
        self.wake()

    async def run(self) -> None:
        """Serve until cancelled; raises Fatal."""
        async with asyncio.TaskGroup() as batches:
            while True:
                await self._slots.acquire()
                batch = await self._next_batch()
                batches.create_task(self._serve_one(batch))

    async def drained(self) -> None:
        """Return once nobody is owed a list."""
        while any(partition.owed for partition in self._running()):
            self._woken.set()
            await asyncio.sleep(0.01)

    def _running(self) -> list[Partition]:
        return [part for part in self._partitions.values() if part.phase is Phase.RUNNING]

    async def _next_batch(self) -> list[_Entry]:
        while True:
            self._woken.clear()
            now = time.monotonic()
            batch = self._take(now)
            if batch:
                return batch
            deadlines = [
                deadline
                for part in self._running()
                if (deadline := part.triggers.next_deadline()) is not None
            ]
            timeout = max(min(deadlines) - now, 0.001) if deadlines else None
            try:
                async with asyncio.timeout(timeout):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _take(self, now: float) -> list[_Entry]:
        batch: list[_Entry] = []
        waiting = self._running()
        if self._hurried:
            for partition in waiting:
                partition.triggers.hurry()
        while waiting and len(batch) < self._max_users:
            partition = min(waiting, key=_next_deadline)
            deadline = _next_deadline(partition)
            pending = partition.take_due(now)
            if pending is None:
                waiting.remove(partition)
            else:
                batch.append((partition, pending))
                if math.isfinite(deadline):  # owed from before, it was due at once
                    self._metrics.overdue_seconds.observe(now - deadline)
        return batch

    async def _serve_one(self, batch: Sequence[_Entry]) -> None:
        try:
            await self._serve(batch)
        finally:
            self._slots.release()
            self.wake()

    async def _serve(self, batch: Sequence[_Entry]) -> None:
        metrics = self._metrics
        metrics.list_batch_users.observe(len(batch))
        outcomes = await self._generator.recommend([pending.request for _, pending in batch])
        now_ms = time.time_ns() // 1_000_000
        lists: list[OutgoingList] = []
        served: list[_Entry] = []
        refused: list[tuple[Partition, PendingList, ListRefusal]] = []
        for (partition, pending), outcome in zip(batch, outcomes, strict=True):
            if partition.phase is Phase.CLOSED:
                continue  # its new owner owes the list now
            if isinstance(outcome, ListRefusal):
                refused.append((partition, pending, outcome))
                continue
            metrics.prompt_tokens.inc(outcome.sequence_length)
            metrics.cached_tokens.inc(outcome.cached_tokens)
            metrics.list_requests["session" if outcome.cached_tokens else "recomputed"].inc()
            metrics.list_events.observe(pending.events)
            value = partition.make_list(pending, outcome, now_ms)
            lists.append(OutgoingList(value, pending.traceparent, pending.since_ms))
            served.append((partition, pending))
        self._guard.count(len(batch), len(refused))
        if lists:
            await self._publish(lists, served)
        for partition, pending, refusal in refused:
            await self._bury(partition, pending, refusal)

    async def _publish(self, lists: Sequence[OutgoingList], served: Sequence[_Entry]) -> None:
        started = time.monotonic()
        try:
            published = await self._cycle.publish(lists)
        except (KafkaError, OSError) as error:
            for partition, pending in served:
                if partition.phase is not Phase.CLOSED:
                    partition.withdraw(pending)
            await self._not_published(str(error) or type(error).__name__, started)
            return
        self._failing_since = None
        if published:
            self._metrics.published(lists)
        for item, (partition, pending) in zip(lists, served, strict=True):
            if partition.phase is not Phase.CLOSED:
                partition.settle(pending, None if published else item)

    async def _not_published(self, reason: str, started: float) -> None:
        """Wait a while, the batch's place still taken, before its lists are made again; raises Fatal."""
        if self._failing_since is None:
            self._failing_since = started
        seconds = time.monotonic() - self._failing_since
        log.warning("lists_not_published", error=reason, failing_for_seconds=round(seconds, 1))
        if seconds > self._patience:
            raise Fatal(
                f"lists could not be published for {seconds:.0f} seconds (kafka.connect_timeout_seconds = "
                f"{self._patience:g}): {reason}"
            )
        await asyncio.sleep(_PUBLISH_PAUSE_SECONDS)

    async def _bury(self, partition: Partition, pending: PendingList, outcome: ListRefusal) -> None:
        """Dead-letter the event after which the list was due; the user is served again with the next event."""
        self._metrics.refusals.inc()
        self._metrics.dead_letters["generate"].inc()
        record = await self._read_record(partition.tp, pending.trigger.offset)
        if partition.phase is Phase.CLOSED:
            return
        partition.bury(
            DeadRecord.of_trigger(
                pending.trigger, pending.request.user_id, record, outcome.error, outcome.message
            )
        )
        log.warning(
            "list_refused", user_id=pending.request.user_id, error=outcome.error, reason=outcome.message
        )
        partition.settle(pending)


def _next_deadline(partition: Partition) -> float:
    deadline = partition.triggers.next_deadline()
    return float("inf") if deadline is None else deadline
