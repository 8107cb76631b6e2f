"""Which partitions are this daemon's: restored when they are assigned, handed over when they are revoked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError
from msgspec.structs import replace

from stream.commits import CommitCycle, PartitionsLost
from stream.committer import Committer
from stream.errors import Fatal
from stream.observability import Health, Metrics
from stream.partition import Partition, PartitionSettings, Phase
from stream.restore import Restorer, component
from stream.stored import CorruptState

log = structlog.get_logger(__name__)

_RESTORES_AT_ONCE: Final = 4


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """The partitions assigned to this daemon, and what happens to each when that changes.

    aiokafka logs and forgets what its callbacks raise, so a failure is kept in `failure` for the daemon to stop at.
    """

    def __init__(
        self,
        partitions: dict[TopicPartition, Partition],
        consumer: AIOKafkaConsumer,
        restorer: Restorer,
        settings: PartitionSettings,
        metrics: Metrics,
        health: Health,
        *,
        leave_seconds: float,
    ) -> None:
        self.partitions = partitions
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._consumer = consumer
        self._restorer = restorer
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._leave_seconds = leave_seconds
        self._share = settings  # of each partition, what those assigned together divide
        self._cycle: CommitCycle | None = None
        self._committer: Committer | None = None
        self._on_running: Callable[[], None] | None = None
        self._closed = False
        self._restores: dict[TopicPartition, asyncio.Task[None]] = {}
        self._leaving: set[TopicPartition] = set()  # being handed over
        self._restore_slots = asyncio.Semaphore(_RESTORES_AT_ONCE)

    def attach(self, cycle: CommitCycle, committer: Committer, on_running: Callable[[], None]) -> None:
        """Name who writes and who commits what is handed over, and what to call when a partition begins to run."""
        self._cycle = cycle
        self._committer = committer
        self._on_running = on_running

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Pause what was assigned and restore its state beside the group's life; reading begins after that."""
        with self._failing():
            self._take_over(sorted(assigned))

    def _take_over(self, tps: Sequence[TopicPartition]) -> None:
        self._consumer.pause(*tps)
        if self._closed:
            return
        log.info("partitions_assigned", partitions=[tp.partition for tp in tps])
        self._metrics.assigned_partitions.set(len(tps))
        share = self._settings.cache_bytes // max(len(tps), 1)
        self._share = replace(self._settings, cache_bytes=share)
        for tp in tps:
            self._begin(tp, None)
        self._health.ready("partitions")

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finish what fits the time, commit it, and let go."""
        with self._failing():
            await self._hand_over(sorted(revoked))

    async def _hand_over(self, tps: Sequence[TopicPartition]) -> None:
        if not tps:
            return
        self._health.not_ready("partitions", "the group rebalances")
        started = time.monotonic()
        await self.release(tps, self._leave_seconds)
        log.info(
            "partitions_revoked",
            partitions=[tp.partition for tp in tps],
            seconds=round(time.monotonic() - started, 3),
        )

    def regain(self, partition: Partition) -> None:
        """Begin again with a partition whose work was given up: from what is durable, as if it had just been assigned.

        Does nothing where the group is taking it away.
        """
        tp = partition.tp
        if self._closed or tp in self._leaving or self.partitions.get(tp) is not partition:
            return
        try:
            self._consumer.pause(tp)
        except IllegalStateError:
            return
        self._begin(tp, partition)

    def _mend(self, partition: Partition, error: CorruptState) -> None:
        """Begin again with a partition whose files do not read back, from the changelog alone."""
        try:
            self._restorer.mend(partition.tp, error)
        except Fatal as fatal:
            self.fail(fatal)
            return
        self.regain(partition)

    def _begin(self, tp: TopicPartition, before: Partition | None) -> None:
        self._health.not_ready(component(tp), "its state is being restored")
        restore = asyncio.create_task(self._restore(tp, before), name=f"restore-{tp.partition}")
        restore.add_done_callback(partial(self._restored, tp))
        self._restores[tp] = restore

    async def release(self, tps: Iterable[TopicPartition], seconds: float) -> None:
        """Hand partitions over: lists under way are awaited for so many seconds, then a last commit, then the end."""
        released = list(tps)
        self._leaving.update(released)
        try:
            await self._release(released, seconds)
        finally:
            self._leaving.difference_update(released)

    async def _release(self, tps: Sequence[TopicPartition], seconds: float) -> None:
        leaving = []
        for tp in tps:
            if (restore := self._restores.pop(tp, None)) is not None:
                restore.cancel()
                await asyncio.gather(restore, return_exceptions=True)
                self._health.remove(component(tp))
            if (partition := self.partitions.get(tp)) is not None:
                if partition.phase is Phase.RUNNING:
                    partition.phase = Phase.LEAVING
                leaving.append(partition)
        deadline = time.monotonic() + seconds
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(part.idle.wait() for part in leaving if part.phase is Phase.LEAVING))
        except TimeoutError:
            log.warning("lists_left_behind", lists=sum(part.in_flight for part in leaving))
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 1.0)):
                if self._committer is not None:
                    await self._committer.commit([part for part in leaving if part.phase is Phase.LEAVING])
        except TimeoutError:
            log.warning("last_commit_timed_out", partitions=[part.tp.partition for part in leaving])
        except Fatal as error:
            self.fail(error)
        await self.close(leaving)
        if self._cycle is not None:
            await self._cycle.release(tps)

    async def close_all(self) -> None:
        """Close every partition without a further commit, and take no other."""
        self._closed = True
        restores = list(self._restores.values())
        for restore in restores:
            restore.cancel()
        await asyncio.gather(*restores, return_exceptions=True)
        await self.close(list(self.partitions.values()))

    async def close(self, partitions: Iterable[Partition]) -> None:
        """Close partitions without a further commit."""
        closing = [partition for partition in partitions if self.partitions.get(partition.tp) is partition]
        for partition in closing:
            del self.partitions[partition.tp]
            partition.phase = Phase.CLOSED
            self._metrics.remove_partition(partition.tp.topic, partition.tp.partition)
            self._health.remove(component(partition.tp))
        # to its end, whoever waits for it: files that stay open are locked for the next owner, this daemon too
        await asyncio.shield(self._close_files(closing))

    async def _close_files(self, closing: Sequence[Partition]) -> None:
        closed = await asyncio.gather(
            *(asyncio.to_thread(partition.close) for partition in closing), return_exceptions=True
        )
        for partition, error in zip(closing, closed, strict=True):
            if error is not None:
                log.error("partition_not_closed", partition=partition.tp.partition, error=str(error))
                self.fail(Fatal(f"state of partition {partition.tp.partition} cannot be closed: {error}"))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Stop the daemon with what the block raises, which aiokafka would log and forget."""
        try:
            yield
        except Exception as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Stop the daemon with this error; the first stands."""
        if not self.failure.done():
            self.failure.set_exception(error)

    def _restored(self, tp: TopicPartition, restore: asyncio.Task[None]) -> None:
        if self._restores.get(tp) is restore:
            del self._restores[tp]
        if restore.cancelled():
            return
        error = restore.exception()
        if isinstance(error, PartitionsLost):  # the group is about to take it away, and will say so
            log.warning("partitions_lost", reason=str(error), partitions=[tp.partition])
            self._health.remove(component(tp))
            self._health.not_ready("partitions", "the group rebalances")
        elif isinstance(error, CorruptState) and tp in self.partitions:
            self.partitions[tp].distrust(error)
        elif error is not None:
            self.fail(error)

    async def _restore(self, tp: TopicPartition, before: Partition | None) -> None:
        """Claim a partition and bring its state up to date; `before` is what the daemon made of it until now."""
        if before is not None:
            if self._committer is not None:  # what it writes of the partition now, the restore must not miss
                await self._committer.settled()
            await self.close([before])
            self._health.not_ready(component(tp), "its state is being restored")
        async with self._restore_slots:
            started = time.monotonic()
            # what is read after this is all that was ever written: its last owner can add nothing
            offset = await self._cycle.claim(tp) if self._cycle is not None else None
            if offset is None and before is not None:
                offset = await self._committed_offset(tp)
            store = await self._restorer.open(tp)
            partition = self.partitions[tp] = Partition(tp, store, self._share, self._mend)
            restored = await self._restorer.restore(tp, store)
            seconds = time.monotonic() - started
        self._metrics.restore_seconds.observe(seconds)
        log.info(
            "partition_restored",
            partition=tp.partition,
            users=restored.users,
            owed=len(restored.owed),
            changelog_records=restored.records,
            changelog_bytes=restored.nbytes,
            seconds=round(seconds, 3),
        )
        partition.begin(restored.users, restored.owed)
        if offset is not None:
            self._consumer.seek(tp, offset)
        self._health.ready(component(tp))
        self._consumer.resume(tp)
        if self._on_running is not None:
            self._on_running()

    async def _committed_offset(self, tp: TopicPartition) -> int:
        """Where the group goes on with a partition of which this daemon has read more than it has committed."""
        committed: int | None = await self._consumer.committed(tp)
        if committed is None:
            committed = (await self._consumer.beginning_offsets([tp]))[tp]
        return committed
