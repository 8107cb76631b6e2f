"""The event behind a list, found again by its place in the events topic."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.codecs import CONTENT_TYPE_HEADER, decode_event
from schemas.errors import UndecodableEvent
from schemas.events import Event
from schemas.lists import TriggerEvent
from stream.kafka import client_options, connected
from stream.settings import KafkaSettings

_REMEMBERED: Final = 10_000
_TIMEOUT_MS: Final = 500


class EventLookup:
    """Reads single records at random: made for the few that a person looks at, not for a stream."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._found: OrderedDict[tuple[str, int, int], Event | None] = OrderedDict()

    @classmethod
    @asynccontextmanager
    async def open(cls, kafka: KafkaSettings) -> AsyncIterator[Self]:
        """Raises KafkaUnreachable where no broker answers."""
        consumer = AIOKafkaConsumer(
            **client_options(kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        async with connected(consumer, kafka):
            yield cls(consumer)

    async def find(self, triggers: Iterable[TriggerEvent]) -> list[Event | None]:
        """The event of each trigger, None where its topic no longer has it."""
        return [await self._find(trigger) for trigger in triggers]

    async def _find(self, trigger: TriggerEvent) -> Event | None:
        place = (trigger.topic, trigger.partition, trigger.offset)
        if place not in self._found:
            self._found[place] = await self._read(*place)
            if len(self._found) > _REMEMBERED:
                self._found.popitem(last=False)
        return self._found[place]

    async def _read(self, topic: str, partition: int, offset: int) -> Event | None:
        tp = TopicPartition(topic, partition)
        self._consumer.assign([tp])
        self._consumer.seek(tp, offset)
        fetched = await self._consumer.getmany(tp, timeout_ms=_TIMEOUT_MS, max_records=1)
        for record in fetched.get(tp, ()):
            if record.offset == offset:
                try:
                    return decode_event(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
                except UndecodableEvent:
                    return None
        return None
