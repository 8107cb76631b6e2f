"""A whole topic of events read as an event log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from operator import attrgetter
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from mtgr.datasets import OnInvalid
from mtgr.errors import InputError
from schemas.codecs import CONTENT_TYPE_HEADER, decode_instruction
from schemas.errors import UndecodableEvent
from schemas.events import Event, Forget, Instruction
from stream.kafka import KafkaUnreachable, client_options, connected
from stream.settings import KafkaSettings
from stream.topics import partition_count

_POLL_MS: Final = 500
_FETCH_BYTES: Final = 4 << 20  # of a partition: with less, one is waited for more often than it is read


def read_topic(kafka: KafkaSettings, topic: str, on_invalid: OnInvalid | None = None) -> Iterator[Event]:
    """Every event that is in a topic now, in time order; those of one time by partition and offset.

    What is committed between the beginning and the end of each partition, as the end is when this is called,
    is read at once and held in memory; an event that the caller has taken is let go of. Of a user who was
    forgotten there are only the events after that. No consumer group is joined. A record that is no event is
    handed to `on_invalid` as the InputError that names topic, partition, offset, field and value, and passed
    over; without `on_invalid` that error is raised. Raises InputError where there is no such topic or nothing
    in it, KafkaUnreachable where no broker answers, at the start or on the way. Not to be called where an event
    loop runs: there is `collect_topic`.
    """
    events = asyncio.run(collect_topic(kafka, topic, on_invalid))
    return _handed_over(events)


async def collect_topic(kafka: KafkaSettings, topic: str, on_invalid: OnInvalid | None = None) -> list[Event]:
    """The events that `read_topic` gives, in a list."""
    partitions = await partition_count(kafka, topic)
    consumer = AIOKafkaConsumer(
        **client_options(kafka),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
        fetch_max_wait_ms=100,
    )
    tps = [TopicPartition(topic, number) for number in range(partitions)]
    consumer.assign(tps)
    async with connected(consumer, kafka):
        found = await _read(consumer, tps, kafka, on_invalid)
    # by partition first, so that one topic is one log, whichever partition answers sooner
    events = [event for tp in tps for event in found.pop(tp)]
    events.sort(key=attrgetter("timestamp_ms"))
    return events


async def _read(
    consumer: AIOKafkaConsumer, tps: list[TopicPartition], kafka: KafkaSettings, on_invalid: OnInvalid | None
) -> dict[TopicPartition, list[Event]]:
    beginnings, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
    found: dict[TopicPartition, list[Event]] = {tp: [] for tp in tps}
    forgotten: dict[TopicPartition, dict[str, int]] = {tp: {} for tp in tps}  # how many events came before
    unread = {tp for tp in tps if beginnings[tp] < ends[tp]}
    if not unread:
        raise InputError(f"topic {tps[0].topic}: holds nothing; it should hold events")
    for tp in tps:
        consumer.seek(tp, beginnings[tp])
    consumer.pause(*(set(tps) - unread))
    moved = time.monotonic()
    while unread:
        fetched = await consumer.getmany(timeout_ms=_POLL_MS)
        for tp, records in fetched.items():
            for event in _events(records, ends[tp], on_invalid):
                if isinstance(event, Forget):
                    forgotten[tp][event.user_id] = len(found[tp])
                else:
                    found[tp].append(event)
        # not by the last record: what follows it may be marks of transactions, which are never seen
        read = {tp for tp in unread if await consumer.position(tp) >= ends[tp]}
        consumer.pause(*read)
        unread -= read
        if fetched or read:
            moved = time.monotonic()
        elif time.monotonic() - moved > kafka.connect_timeout_seconds:
            tp = min(unread, key=lambda tp: tp.partition)
            raise KafkaUnreachable(
                f"topic {tp.topic}: partition {tp.partition} stands at offset {await consumer.position(tp)} of "
                f"{ends[tp]}, and nothing came for {kafka.connect_timeout_seconds:g} seconds; is a broker gone?"
            )
    return {
        tp: [event for place, event in enumerate(events) if place >= forgotten[tp].get(event.user_id, 0)]
        for tp, events in found.items()
    }


def _events(records: list[Any], end: int, on_invalid: OnInvalid | None) -> Iterator[Instruction]:
    for record in records:
        if record.offset >= end:
            return
        try:
            yield decode_instruction(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
        except UndecodableEvent as error:
            place = f"topic {record.topic}: partition {record.partition} offset {record.offset}"
            wrong = InputError(f"{place}: {error}")
            if on_invalid is None:
                raise wrong from None
            on_invalid(wrong)


def _handed_over(events: list[Event]) -> Iterator[Event]:
    events.reverse()
    while events:
        yield events.pop()
