"""Lists and dead letters on their way to Kafka: as records, through whichever producer a commit cycle has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar, cast

from aiokafka import AIOKafkaProducer
from msgspec import Struct

from schemas.codecs import CONTENT_TYPE_HEADER, JSON, encode_list
from schemas.lists import RecommendationList
from stream.dead_letters import DeadRecord

T = TypeVar("T")

BATCH_BYTES: Final = 512 * 1024
"""Of a producer's batches: with aiokafka's own 16 KiB, requests are what costs."""
REQUEST_BYTES: Final = 2 << 20
"""The longest record that is sent."""

_CONTENT_TYPE: Final = (CONTENT_TYPE_HEADER, JSON.encode())


class OutgoingList(Struct, frozen=True):
    """A list, the trace it belongs to, and when the first event that it serves arrived."""

    value: RecommendationList
    traceparent: bytes | None
    since_ms: int


async def send_lists(producer: AIOKafkaProducer, topic: str, lists: Sequence[OutgoingList]) -> None:
    """Write lists and wait until they are acknowledged; raises KafkaError."""
    sent = []
    for item in lists:
        headers = [_CONTENT_TYPE, ("list_id", item.value.list_id.encode())]
        if item.traceparent is not None:
            headers.append(("traceparent", item.traceparent))
        sent.append(
            await producer.send(
                topic, encode_list(item.value), key=item.value.user_id.encode(), headers=headers
            )
        )
    await all_of(sent)


async def send_dead_letters(
    producer: AIOKafkaProducer, topic: str, dead: Sequence[DeadRecord], max_bytes: int
) -> None:
    """Write dead letters, cut down to `max_bytes` each, and wait until they are acknowledged; raises KafkaError."""
    partitions = len(await producer.partitions_for(topic))
    sent: list[Awaitable[Any]] = []
    for whole in dead:  # in order, to the partition of the same number, so that the order is kept
        record = whole.fitting(max_bytes)
        sent.append(
            await producer.send(
                topic,
                record.value,
                key=record.key if record.key is not None or record.value is not None else b"",
                partition=record.letter.partition % partitions,
                timestamp_ms=record.timestamp_ms,
                headers=record.all_headers(),
            )
        )
    await all_of(sent)


async def all_of(steps: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all; the first error is raised only when every step has ended, so that none is still under way."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[T]", results)
