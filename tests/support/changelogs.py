"""A changelog topic in memory, with the producer and the consumer that the daemon's code asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from aiokafka import TopicPartition


class Entry(NamedTuple):
    """A record of the changelog, as a consumer hands it over."""

    offset: int
    key: bytes
    value: bytes | None


@dataclass
class Changelog:
    """The log of one partition; `begin` and gaps in the offsets are what compaction leaves."""

    entries: list[Entry] = field(default_factory=list)
    begin: int = 0
    end: int = 0

    def append(self, changes: Iterable[tuple[bytes, bytes | None]]) -> int:
        """Write records at the end; returns the offset of the first."""
        base = self.end
        self.entries += [Entry(base + number, *change) for number, change in enumerate(changes)]
        self.end = base + len(self.entries) - sum(entry.offset < base for entry in self.entries)
        return base

    def skip(self, offsets: int) -> None:
        """Leave offsets without a record, as markers of transactions do."""
        self.end += offsets

    def compact(self) -> None:
        """Keep the last record of each key, at its own offset."""
        last = {entry.key: entry for entry in self.entries}
        self.entries = sorted(last.values())


class Batch:
    """A producer's batch of at most so many records."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.records: list[tuple[bytes, bytes | None]] = []

    def append(self, *, timestamp: int, key: bytes, value: bytes | None) -> object | None:
        if len(self.records) >= self._size:
            return None
        self.records.append((key, value))
        return object()

    def size(self) -> int:
        return sum(len(key) + len(value or b"") for key, value in self.records)

    def record_count(self) -> int:
        return len(self.records)


class Metadata(NamedTuple):
    offset: int


class ChangelogProducer:
    """Writes whole batches to a changelog, each acknowledged a turn of the event loop later."""

    def __init__(
        self, changelog: Changelog, batch_size: int, failing_batches: frozenset[int] = frozenset()
    ) -> None:
        self._changelog = changelog
        self._batch_size = batch_size
        self._failing = failing_batches
        self.sent = 0

    def create_batch(self) -> Batch:
        return Batch(self._batch_size)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Metadata]:
        await asyncio.sleep(0)
        number, self.sent = self.sent, self.sent + 1
        future: asyncio.Future[Metadata] = asyncio.get_running_loop().create_future()
        if number in self._failing:
            future.set_exception(OSError("the broker is gone"))
        else:
            future.set_result(Metadata(self._changelog.append(batch.records)))
        return future


class ChangelogConsumer:
    """Reads a changelog from where it is told to; `held` keeps it from answering until it is set."""

    def __init__(self, changelog: Changelog, batch_size: int = 3, error: Exception | None = None) -> None:
        self._changelog = changelog
        self._batch_size = batch_size
        self._error = error
        self._position = -1
        self.read: list[int] = []
        self.waited_ms = 0  # in polls that no record came to
        self.held = asyncio.Event()
        self.held.set()
        self.reading = asyncio.Event()
        self.stopped = False

    async def start(self) -> None:
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        self.stopped = True

    def assign(self, tps: list[TopicPartition]) -> None:
        (self._tp,) = tps

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self._changelog.begin)

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self._changelog.end)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._position = offset

    async def position(self, tp: TopicPartition) -> int:
        return self._position

    async def getmany(
        self, tp: TopicPartition, *, timeout_ms: int, max_records: int
    ) -> dict[TopicPartition, list[Entry]]:
        self.reading.set()
        await self.held.wait()
        left = [entry for entry in self._changelog.entries if entry.offset >= self._position]
        batch = left[: min(self._batch_size, max_records)]
        self.read += [entry.offset for entry in batch]
        self.waited_ms += 0 if batch else timeout_ms
        # behind the last record come markers only: the position moves past them without a record
        self._position = batch[-1].offset + 1 if batch else self._changelog.end
        return {tp: batch} if batch else {}
