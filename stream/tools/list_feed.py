"""Recommendation lists as they come out of their topic, for whoever wants to look at them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, Self

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.codecs import CONTENT_TYPE_HEADER, decode_list
from schemas.errors import UndecodableList
from schemas.lists import RecommendationList
from stream.kafka import client_options, connected
from stream.settings import Settings
from stream.tools.partitioning import partition_of
from stream.topics import partition_count

log = structlog.get_logger(__name__)

Place = Literal["beginning", "end"]

_MAX_RECORDS: Final = 1_000


class ListFeed:
    """Reads the lists topic without a group, so that it takes nothing from other consumers."""

    def __init__(self, consumer: AIOKafkaConsumer, user_id: str | None) -> None:
        self._consumer = consumer
        self._user_id = user_id

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, place: Place = "end", user_id: str | None = None
    ) -> AsyncIterator[Self]:
        """Lists from `place` on, of one user or of all; once this is entered, no list that comes is missed.

        Raises InputError where there is no lists topic, KafkaUnreachable where no broker answers.
        """
        topic = settings.topics.lists
        partitions = await partition_count(settings.kafka, topic)
        numbers = range(partitions) if user_id is None else [partition_of(user_id.encode(), partitions)]
        consumer = AIOKafkaConsumer(
            **client_options(settings.kafka), enable_auto_commit=False, isolation_level="read_committed"
        )
        consumer.assign([TopicPartition(topic, number) for number in numbers])
        async with connected(consumer, settings.kafka):
            if place == "end":
                await consumer.seek_to_end()
            else:
                await consumer.seek_to_beginning()
            yield cls(consumer, user_id)

    async def next(self, timeout_seconds: float) -> Sequence[RecommendationList]:
        """Lists that have come, those of a user in order; none if the time is up."""
        fetched = await self._consumer.getmany(
            timeout_ms=int(timeout_seconds * 1000), max_records=_MAX_RECORDS
        )
        records = [record for records in fetched.values() for record in records]
        records.sort(key=lambda record: record.timestamp)
        return [found for record in records if (found := self._read(record)) is not None]

    def _read(self, record: Any) -> RecommendationList | None:
        content_type = dict(record.headers).get(CONTENT_TYPE_HEADER)
        try:
            found = decode_list(record.value, content_type)
        except UndecodableList as error:
            log.warning(
                "list_undecodable", partition=record.partition, offset=record.offset, error=str(error)
            )
            return None
        return found if self._user_id is None or found.user_id == self._user_id else None
