"""Which partitions are this daemon's: restored when they are assigned, handed over when they are revoked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from msgspec.structs import replace

from mtgr.errors import InputError
from stream import changelog
from stream.commits import CommitCycle, PartitionsLost
from stream.committer import Committer
from stream.errors import Fatal
from stream.kafka import is_connection_error, stop
from stream.observability import Health, Metrics
from stream.partition import Partition, PartitionSettings, Phase
from stream.restore_progress import RestoreProgress
from stream.state import RocksMemory, RocksStore, StateInUse
from stream.stored import CorruptState

log = structlog.get_logger(__name__)

_RESTORES_AT_ONCE: Final = 4
_LOCK_PATIENCE_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 1.0
_SOUND_SECONDS: Final = 3_600.0  # so long must files last that were made from the changelog


class Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """The partitions assigned to this daemon, and what happens to each when that changes.

    aiokafka logs and forgets what its callbacks raise, so a failure is kept in `failure` for the daemon to stop at.
    """

    def __init__(
        self,
        partitions: dict[TopicPartition, Partition],
        consumer: AIOKafkaConsumer,
        restore_consumer: Callable[[], AIOKafkaConsumer],
        settings: PartitionSettings,
        metrics: Metrics,
        health: Health,
        *,
        directory: Path,
        store_memory: RocksMemory,
        group_id: str,
        changelog_topic: str,
        leave_seconds: float,
        patience_seconds: float,
    ) -> None:
        self.partitions = partitions
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._consumer = consumer
        self._restore_consumer = restore_consumer
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._directory = directory
        self._store_memory = store_memory
        self._group_id = group_id
        self._changelog_topic = changelog_topic
        self._leave_seconds = leave_seconds
        self._patience = patience_seconds
        self._share = settings  # of each partition, what those assigned together divide
        self._cycle: CommitCycle | None = None
        self._committer: Committer | None = None
        self._on_running: Callable[[], None] | None = None
        self._closed = False
        self._restores: dict[TopicPartition, asyncio.Task[None]] = {}
        self._leaving: set[TopicPartition] = set()  # being handed over
        self._mended: dict[TopicPartition, float] = {}  # when its files were found bad
        self._restore_slots = asyncio.Semaphore(_RESTORES_AT_ONCE)
        self._progress = RestoreProgress()

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
        tp, now = partition.tp, time.monotonic()
        mended, self._mended[tp] = self._mended.get(tp), now
        if mended is not None and now - mended < _SOUND_SECONDS:
            self.fail(
                Fatal(
                    f"state of partition {tp.partition} was restored from {self._changelog_topic} {now - mended:.0f} "
                    f"seconds ago, and does not read back again: {error}: the disk or the changelog is damaged"
                )
            )
            return
        self._metrics.state_repairs.inc()
        log.error(
            "state_files_corrupt", partition=tp.partition, error=str(error), repair="restore from changelog"
        )
        self.regain(partition)

    def _begin(self, tp: TopicPartition, before: Partition | None) -> None:
        self._health.not_ready(_component(tp), "its state is being restored")
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
                self._health.remove(_component(tp))
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
            self._health.remove(_component(partition.tp))
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
            self._health.remove(_component(tp))
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
            self._health.not_ready(_component(tp), "its state is being restored")
        async with self._restore_slots:
            started = time.monotonic()
            # what is read after this is all that was ever written: its last owner can add nothing
            offset = await self._cycle.claim(tp) if self._cycle is not None else None
            if offset is None and before is not None:
                offset = await self._committed_offset(tp)
            store = await self._open_store(tp)
            self._metrics.state_repairs.inc(store.refused)
            is_new = store.checkpoint == 0
            partition = self.partitions[tp] = Partition(tp, store, self._share, self._mend)
            records, nbytes = await self._read_changelog(tp, store)
            try:
                users, owed = await asyncio.to_thread(_scan, store)
            except CorruptState as error:
                if is_new:
                    raise Fatal(f"changelog {self._changelog_topic}-{tp.partition}: {error}") from error
                raise
            seconds = time.monotonic() - started
        self._metrics.restore_seconds.observe(seconds)
        log.info(
            "partition_restored",
            partition=tp.partition,
            users=users,
            owed=len(owed),
            changelog_records=records,
            changelog_bytes=nbytes,
            seconds=round(seconds, 3),
        )
        partition.begin(users, owed)
        if offset is not None:
            self._consumer.seek(tp, offset)
        self._health.ready(_component(tp))
        self._consumer.resume(tp)
        if self._on_running is not None:
            self._on_running()

    async def _committed_offset(self, tp: TopicPartition) -> int:
        """Where the group goes on with a partition of which this daemon has read more than it has committed."""
        committed: int | None = await self._consumer.committed(tp)
        if committed is None:
            committed = (await self._consumer.beginning_offsets([tp]))[tp]
        return committed

    async def _read_changelog(self, tp: TopicPartition, store: RocksStore) -> tuple[int, int]:
        """Bring a store up to date; while no broker answers, again from where it stands. Raises Fatal.

        Returns the records and the bytes read.
        """
        self._progress.begin(tp.partition)
        try:
            await self._read_patiently(TopicPartition(self._changelog_topic, tp.partition), tp, store)
        finally:
            read = self._progress.end(tp.partition)
        return read

    async def _read_patiently(self, source: TopicPartition, tp: TopicPartition, store: RocksStore) -> None:
        def count(step: changelog.RestoreStep) -> None:
            self._metrics.restored_records.inc(step.records)
            self._progress.show(tp.partition, step)

        deadline = time.monotonic() + self._patience
        while True:
            consumer = self._restore_consumer()
            try:
                await consumer.start()
                await changelog.restore(consumer, source, store, count)
                return
            except (KafkaError, OSError) as error:
                reason = str(error) or type(error).__name__
                log.warning("restore_failed", partition=tp.partition, error=reason)
                if not is_connection_error(error) or time.monotonic() > deadline:
                    raise Fatal(
                        f"changelog {source.topic}-{source.partition} cannot be read: {reason}"
                    ) from error
                self._health.not_ready(_component(tp), f"its state is being restored: {reason}")
            finally:
                await stop(consumer)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _open_store(self, tp: TopicPartition) -> RocksStore:
        path = self._directory / self._changelog_topic / str(tp.partition)
        identity = f"{self._group_id}/{tp.topic}/{tp.partition}"
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                return await _opened(RocksStore, path, identity, self._store_memory)
            except StateInUse as error:  # a neighbour that shares the folder may still be closing it
                if time.monotonic() > deadline:
                    raise Fatal(f"{error}: give each daemon a state.directory of its own") from error
            except OSError as error:
                raise InputError(f"state.directory: {path} cannot be used: {error.strerror}") from error
            await asyncio.sleep(0.2)


async def _opened(open_store: Callable[..., RocksStore], *about: object) -> RocksStore:
    """A store that a thread opens; where nobody waits for it any more, the thread's store is closed again.

    A thread cannot be cancelled: what it opened would stay locked for whoever has the partition next, this daemon too.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(open_store, *about))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)
        raise


def _close_opened(opening: asyncio.Future[RocksStore]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, opening.result().close)


def _scan(store: RocksStore) -> tuple[int, list[str]]:
    """How many users there are, and those who are owed a list, who have waited longest first."""
    users = 0
    owed = []
    for user_id, since_ms in store.scan():
        users += 1
        if since_ms:
            owed.append((since_ms, user_id))
    return users, [user_id for _, user_id in sorted(owed)]


def _component(tp: TopicPartition) -> str:
    return f"partition-{tp.partition}"
