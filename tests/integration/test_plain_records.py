"""Promises of stream.plain_records, on a real broker: what any consumer reads is read, and nothing is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from records import TopicNames
from tools import settings_for

from stream.kafka import connected
from stream.plain_records import PlainRecordsConsumer
from stream.settings import Settings
from stream.transactions import transactional_producer

HEADERS: Sequence[Sequence[tuple[str, bytes | None]]] = ((), (("a", b"1"),), (("a", b""), ("b", None)))


@pytest.fixture
def settings(kafka: str, topics: TopicNames) -> Settings:
    return settings_for(kafka, topics, stream__delivery="exactly_once")


async def fill(settings: Settings, tp: TopicPartition) -> None:
    """Records with and without keys, values and headers: compressed, aborted and committed."""
    for compression in (None, "gzip"):
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.kafka.bootstrap_servers, compression_type=compression
        )
        async with producer:
            for number, headers in enumerate(HEADERS):
                await producer.send_and_wait(
                    tp.topic, b"v%d" % number, b"k", tp.partition, 1_000 + number, list(headers)
                )
            await producer.send_and_wait(tp.topic, None, b"k", tp.partition, 5)
            await producer.send_and_wait(tp.topic, b"", None, tp.partition, 6)
    async with connected(transactional_producer(settings, tp), settings.kafka) as producer:
        for number in range(4):
            await producer.begin_transaction()
            for value in (b"x", b"y", b"z"):
                await producer.send(tp.topic, b"%s%d" % (value, number), b"k", tp.partition, number)
            await (producer.commit_transaction() if number % 2 else producer.abort_transaction())


async def read(consumer: AIOKafkaConsumer, tp: TopicPartition, max_records: int) -> tuple[list[Any], int]:
    """All there is, so many at a time, and the position behind it."""
    consumer.assign([tp])
    await consumer.seek_to_beginning(tp)
    end = (await consumer.end_offsets([tp]))[tp]
    records = []
    while await consumer.position(tp) < end:
        fetched = await consumer.getmany(tp, timeout_ms=200, max_records=max_records)
        records += fetched.get(tp, [])
        assert len(fetched.get(tp, [])) <= max_records
    return records, await consumer.position(tp)


def facts(record: Any) -> tuple[Any, ...]:
    return record.offset, record.timestamp, record.key, record.value, tuple(record.headers)


async def test_records_are_those_of_any_consumer_and_no_object_is_made_of_them(settings: Settings) -> None:
    """Offset, time, key, value and headers of what is committed are the same, however few are asked for at once."""
    tp = TopicPartition(settings.topics.events, 0)
    await fill(settings, tp)
    options = {
        "bootstrap_servers": settings.kafka.bootstrap_servers,
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
    }
    async with AIOKafkaConsumer(**options) as ordinary:
        expected, end = await read(ordinary, tp, 100)
    assert len(expected) == 16
    for max_records in (1, 4, 100):
        async with PlainRecordsConsumer(**options) as consumer:
            records, position = await read(consumer, tp, max_records)
        assert [facts(record) for record in records] == [facts(record) for record in expected]
        assert position == end
        assert not any(isinstance(record, ConsumerRecord) for record in records)
