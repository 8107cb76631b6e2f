"""What went through Kafka while the demo ran, as read from Kafka: the events, and the lists they led to."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

from schemas.codecs import CONTENT_TYPE_HEADER, decode_event
from schemas.events import Profile, Watch
from schemas.lists import RecommendationList
from stream.kafka import client_options, connected
from stream.settings import Settings
from stream.topics import partition_count

_READ_SECONDS: Final = 60.0


class StoredEvent(NamedTuple):
    """An event's place in its topic, its user, when it was sent, in milliseconds since 1970, and what it was about."""

    partition: int
    offset: int
    user_id: str
    sent_ms: int
    video_id: str | None
    """None for what is known of the user, after which no list is due."""
    watched: bool
    event_id: str


class Arrival(NamedTuple):
    """A list, and when a consumer had it, in milliseconds since 1970."""

    recommended: RecommendationList
    arrived_ms: float


class Outcome(Struct, frozen=True):
    """What the lists of the live events were like."""

    lists: int
    users: int
    """Users with at least one list."""
    median_ms: float
    """Between sending the first event that no list had covered and a consumer's having the list."""
    p99_ms: float
    cached_share: float
    """Events of the users' sequences that were taken from the KV cache, from 0 to 1."""


async def ends(settings: Settings, topic: str) -> dict[int, int]:
    """The offset after the last record of each partition."""
    async with connected(_reader(settings), settings.kafka) as consumer:
        found = await consumer.end_offsets(await _partitions(settings, topic))
    return {place.partition: offset for place, offset in found.items()}


async def stored_events(settings: Settings) -> list[StoredEvent]:
    """Every event that is in the events topic now; raises TimeoutError if Kafka takes a minute over it."""
    topic = settings.topics.events
    events: list[StoredEvent] = []
    async with connected(_reader(settings), settings.kafka) as consumer:
        places = await _partitions(settings, topic)
        consumer.assign(places)
        await consumer.seek_to_beginning()
        targets = await consumer.end_offsets(places)
        deadline = monotonic() + _READ_SECONDS
        while any([await consumer.position(place) < target for place, target in targets.items()]):
            if monotonic() > deadline:
                raise TimeoutError(f"{topic} could not be read to its end")
            fetched = await consumer.getmany(timeout_ms=200)
            events += [_stored(record) for records in fetched.values() for record in records]
    return events


def _stored(record: Any) -> StoredEvent:
    event = decode_event(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
    return StoredEvent(
        record.partition,
        record.offset,
        event.user_id,
        record.timestamp,
        None if isinstance(event, Profile) else event.video_id,
        isinstance(event, Watch),
        event.event_id,
    )


def outcome(
    events: Iterable[StoredEvent], arrivals: Sequence[Arrival], live_from: Mapping[int, int]
) -> Outcome | None:
    """Judge the lists, in order of arrival, that serve events from `live_from` (partition to offset) on.

    A list covers its user's events up to its trigger; one that covers nothing new, sent a second time, does
    not count, and an event sent a second time waits for none. None if no list serves a live event.
    """
    offsets: dict[str, list[int]] = defaultdict(list)
    sent: dict[tuple[int, int], int] = {}
    known: set[tuple[str, str]] = set()
    for event in sorted(event for event in events if event.video_id is not None):
        if (event.user_id, event.event_id) in known:
            continue
        known.add((event.user_id, event.event_id))
        offsets[event.user_id].append(event.offset)
        sent[event.partition, event.offset] = event.sent_ms
    covered: dict[str, int] = {}
    waits: list[float] = []
    users: set[str] = set()
    cached = length = 0
    for recommended, arrived_ms in arrivals:
        user, trigger = recommended.user_id, recommended.trigger
        before = covered.get(user, -1)
        if trigger.offset <= before or trigger.offset < live_from[trigger.partition]:
            continue
        covered[user] = trigger.offset
        first_live = max(before, live_from[trigger.partition] - 1)
        first = offsets[user][bisect_right(offsets[user], first_live)]
        waits.append(arrived_ms - sent[trigger.partition, first])
        users.add(user)
        cached += min(recommended.cached_tokens, recommended.sequence_length)
        length += recommended.sequence_length
    if not waits:
        return None
    median, p99 = np.percentile(waits, (50, 99)).tolist()
    return Outcome(len(waits), len(users), median, p99, cached / length)


def _reader(settings: Settings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        **client_options(settings.kafka), enable_auto_commit=False, isolation_level="read_committed"
    )


async def _partitions(settings: Settings, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(await partition_count(settings.kafka, topic))]
