"""The restore of a partition's state: its files opened, brought to the end of the changelog, and looked through."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from msgspec import Struct

from mtgr.errors import InputError
from stream import changelog
from stream.errors import Fatal
from stream.kafka import is_connection_error, stop
from stream.observability import Health, Metrics
from stream.restore_progress import RestoreProgress
from stream.state import RocksMemory, RocksStore, StateInUse
from stream.stored import CorruptState

log = structlog.get_logger(__name__)

_LOCK_PATIENCE_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 1.0
_SOUND_SECONDS: Final = 3_600.0  # so long must files last that were made from the changelog


class Restored(Struct, frozen=True):
    """What a restore read, and whom it found."""

    users: int
    owed: list[str]
    """Users who are owed a list, who have waited longest first."""
    records: int
    """Read from the changelog."""
    nbytes: int
    """Of their keys and values."""


class Restorer:
    """Makes the states of partitions what their changelog says, from the local files and what these lack."""

    def __init__(
        self,
        consumer: Callable[[], AIOKafkaConsumer],
        metrics: Metrics,
        health: Health,
        *,
        directory: Path,
        store_memory: RocksMemory,
        group_id: str,
        changelog_topic: str,
        patience_seconds: float,
    ) -> None:
        """`consumer` makes one of no group, not started; `patience_seconds` is how long no broker may answer."""
        self._consumer = consumer
        self._metrics = metrics
        self._health = health
        self._directory = directory
        self._store_memory = store_memory
        self._group_id = group_id
        self._changelog_topic = changelog_topic
        self._patience = patience_seconds
        self._progress = RestoreProgress()
        self._mended: dict[TopicPartition, float] = {}  # when its files were found bad

    async def open(self, tp: TopicPartition) -> RocksStore:
        """The files of a partition, which are the caller's to close.

        Raises Fatal where another daemon has them open, InputError where their folder cannot be used. Whoever is
        cancelled leaves nothing open.
        """
        path = self._directory / self._changelog_topic / str(tp.partition)
        identity = f"{self._group_id}/{tp.topic}/{tp.partition}"
        deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS
        while True:
            try:
                store = await _opened(RocksStore, path, identity, self._store_memory)
            except StateInUse as error:  # a neighbour that shares the folder may still be closing it
                if time.monotonic() > deadline:
                    raise Fatal(f"{error}: give each daemon a state.directory of its own") from error
            except OSError as error:
                raise InputError(f"state.directory: {path} cannot be used: {error.strerror}") from error
            else:
                self._metrics.state_repairs.inc(store.refused)
                return store
            await asyncio.sleep(0.2)

    async def restore(self, tp: TopicPartition, store: RocksStore) -> Restored:
        """Bring the files of a partition to the end of its changelog; while no broker answers, from where they stand.

        Raises CorruptState where the files do not read back; Fatal where the changelog does not, or cannot be read.
        """
        is_new = store.checkpoint == 0
        self._progress.begin(tp.partition)
        try:
            await self._read_changelog(tp, store)
        finally:
            records, nbytes = self._progress.end(tp.partition)
        try:
            users, owed = await asyncio.to_thread(_scan, store)
        except CorruptState as error:
            if is_new:
                raise Fatal(f"changelog {self._changelog_topic}-{tp.partition}: {error}") from error
            raise
        return Restored(users, owed, records, nbytes)

    def mend(self, tp: TopicPartition, error: CorruptState) -> None:
        """Take note that files do not read back, which the next restore makes from the changelog alone.

        Raises Fatal where it has made them within the last hour: the disk or the changelog is damaged.
        """
        now = time.monotonic()
        mended, self._mended[tp] = self._mended.get(tp), now
        if mended is not None and now - mended < _SOUND_SECONDS:
            raise Fatal(
                f"state of partition {tp.partition} was restored from {self._changelog_topic} {now - mended:.0f} "
                f"seconds ago, and does not read back again: {error}: the disk or the changelog is damaged"
            )
        self._metrics.state_repairs.inc()
        log.error(
            "state_files_corrupt", partition=tp.partition, error=str(error), repair="restore from changelog"
        )

    async def _read_changelog(self, tp: TopicPartition, store: RocksStore) -> None:
        source = TopicPartition(self._changelog_topic, tp.partition)

        def count(step: changelog.RestoreStep) -> None:
            self._metrics.restored_records.inc(step.records)
            self._progress.show(tp.partition, step)

        deadline = time.monotonic() + self._patience
        while True:
            consumer = self._consumer()
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
                self._health.not_ready(component(tp), f"its state is being restored: {reason}")
            finally:
                await stop(consumer)
            await asyncio.sleep(_RETRY_SECONDS)


def component(tp: TopicPartition) -> str:
    """What health calls a partition."""
    return f"partition-{tp.partition}"


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
