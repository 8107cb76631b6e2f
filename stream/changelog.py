"""The changelog topic: every change of state, in order, compacted by key; and the restore from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from msgspec import Struct

from stream.errors import Fatal
from stream.outgoing import BATCH_BYTES
from stream.stored import Change, user_of_tail_key

_RESTORE_RECORDS: Final = 20_000
# A transaction's marker at the end is passed without a record, which a poll waits for as long as it may.
_POLL_MS: Final = 20
_RECORD_BYTES: Final = 32  # of a record in a batch beside key and value, more than it takes


async def append(
    producer: AIOKafkaProducer, changelog: TopicPartition, changes: Sequence[Change], now_ms: int
) -> int:
    """Write changes in their order and wait until they are durable; returns the offset after the last of them.

    The records are packed into whole batches here: handing them to the producer one by one costs more than all the
    rest of a commit cycle. A batch is durable whole or not at all. So a tail record and the deletions behind it share
    one, if any takes them: after a crash between them, nobody would know any more what was still to be deleted.
    """
    sent: list[asyncio.Future[Any]] = []
    batch = producer.create_batch()
    end = len(changes)
    for at, (key, value) in enumerate(changes, start=1):
        deletes_next = at < end and changes[at][1] is None
        if (deletes_next and not _have_room(batch, changes, at - 1)) or batch.append(
            timestamp=now_ms, key=key, value=value
        ) is None:
            sent.append(await producer.send_batch(batch, changelog.topic, partition=changelog.partition))
            batch = producer.create_batch()
            batch.append(timestamp=now_ms, key=key, value=value)
    if batch.record_count():
        sent.append(await producer.send_batch(batch, changelog.topic, partition=changelog.partition))
    last: int = batch.record_count()
    metadata = await asyncio.gather(*sent)
    return int(metadata[-1].offset) + last


def _have_room(batch: Any, changes: Sequence[Change], at: int) -> bool:
    """Whether a batch takes the change at a place and, where it is a tail record, all deletions behind it."""
    key, value = changes[at]
    if user_of_tail_key(key) is None or not batch.record_count():
        return True
    nbytes = len(key) + len(value or b"") + _RECORD_BYTES
    for key, value in islice(changes, at + 1, None):
        if value is not None or user_of_tail_key(key) is not None:
            break
        nbytes += len(key) + _RECORD_BYTES
    return int(batch.size()) + nbytes <= BATCH_BYTES


async def last_values(
    consumer: AIOKafkaConsumer, changelog: TopicPartition, begin: int, end: int
) -> dict[bytes, bytes | None]:
    """The last value of every key between two offsets; `consumer` belongs to no group and is used for this alone."""
    consumer.assign([changelog])
    consumer.seek(changelog, begin)
    values: dict[bytes, bytes | None] = {}
    while await consumer.position(changelog) < end:
        fetched = await consumer.getmany(changelog, timeout_ms=_POLL_MS, max_records=_RESTORE_RECORDS)
        for record in fetched.get(changelog, ()):
            if record.offset < end:
                values[record.key] = record.value
    return values


class Restorable(Protocol):
    """What a restore writes to: a StateStore, or part of one."""

    @property
    def checkpoint(self) -> int:
        """The offset to read from next."""

    def apply(self, changes: Iterable[Change], checkpoint: int) -> None:
        """Write changes and move the checkpoint."""


class RestoreStep(Struct, frozen=True):
    """Part of a restore: what was read at once, and where that leaves it between its first offset and its last."""

    records: int
    nbytes: int
    """Of keys and values."""
    begin: int
    position: int
    end: int


async def restore(
    consumer: AIOKafkaConsumer,
    changelog: TopicPartition,
    store: Restorable,
    on_progress: Callable[[RestoreStep], None],
) -> int:
    """Bring a store up to the end of its changelog, reading only what it lacks; returns the records read.

    `consumer` belongs to no group and is used for this alone. Raises Fatal if the changelog ends before the store's
    checkpoint: its records were lost, or it is another topic of the same name.
    """
    consumer.assign([changelog])
    begin = (await consumer.beginning_offsets([changelog]))[changelog]
    end = (await consumer.end_offsets([changelog]))[changelog]
    if store.checkpoint > end:
        raise Fatal(
            f"changelog {changelog.topic}-{changelog.partition} ends at {end}, before the local state's "
            f"{store.checkpoint}: delete the local state if the topic was made anew"
        )
    begin = position = max(store.checkpoint, begin)
    consumer.seek(changelog, position)
    restored = 0
    while position < end:
        fetched = await consumer.getmany(changelog, timeout_ms=_POLL_MS, max_records=_RESTORE_RECORDS)
        records = fetched.get(changelog, ())
        # markers of transactions and compacted gaps end a topic without a record: ask where we stand
        position = await consumer.position(changelog)
        if records:
            changes = [(record.key, record.value) for record in records]
            await asyncio.to_thread(store.apply, changes, position)
            restored += len(changes)
            nbytes = sum([len(key) + len(value or b"") for key, value in changes])
            on_progress(RestoreStep(len(changes), nbytes, begin, position, end))
    return restored
