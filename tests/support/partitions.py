"""Partitions without a broker: records as a consumer hands them over, and partitions on any store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from dict_store import DictStore

from mtgr.requests import ListRequest, ListResult
from schemas.codecs import encode_event
from schemas.events import Event, Like, Profile
from schemas.lists import ModelVersion
from stream.partition import Partition, PartitionSettings
from stream.state import StateStore
from stream.stored import CorruptState
from stream.triggers import TriggerRules

TOPIC = "user-events"
MAX_EVENTS = 16
AT_ONCE = TriggerRules(min_events=1, quiet_period=0.0, max_wait=0.0)


@dataclass(frozen=True)
class Record:
    """What the daemon reads of a consumed record."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = 1_000
    topic: str = TOPIC
    partition: int = 0


def record_of(event: Event, offset: int, **fields: Any) -> Record:
    """The record of an event, keyed by its user."""
    defaults: dict[str, Any] = {"key": event.user_id.encode(), "value": encode_event(event)}
    return Record(offset, **(defaults | fields))


def like(user_id: str, event_id: str, **fields: Any) -> Like:
    """The smallest event."""
    defaults: dict[str, Any] = {"video_id": "v", "timestamp_ms": 0}
    return Like(user_id=user_id, event_id=event_id, **(defaults | fields))


def profile(user_id: str, timestamp_ms: int, **attributes: Any) -> Profile:
    """What is known of a user."""
    return Profile(
        event_id=f"p{timestamp_ms}", user_id=user_id, timestamp_ms=timestamp_ms, attributes=attributes
    )


def likes(user_ids: list[str], first_offset: int = 0) -> list[Record]:
    """One event of each of these users, in order, with ids of their own."""
    return [
        record_of(like(user_id, f"e{offset}"), offset)
        for offset, user_id in enumerate(user_ids, first_offset)
    ]


def partition_settings(**fields: Any) -> PartitionSettings:
    """Settings under which a list is due at once, changed by what the test is about."""
    defaults: dict[str, Any] = {
        "rules": AT_ONCE,
        "max_events": MAX_EVENTS,
        "list_length": 3,
        "strategy": "topk",
        "max_event_bytes": 1_000,
        "cache_bytes": 1 << 20,
        "model": ModelVersion("tiny", "1"),
    }
    return PartitionSettings(**(defaults | fields))


def running(number: int = 0, store: StateStore | None = None, **fields: Any) -> Partition:
    """A partition that has been restored from its store and runs."""
    store = store if store is not None else DictStore()
    partition = Partition(TopicPartition(TOPIC, number), store, partition_settings(**fields), raise_corrupt)
    scanned = list(store.scan())
    partition.begin(len(scanned), [user_id for user_id, owed in scanned if owed])
    return partition


def raise_corrupt(partition: Partition, error: CorruptState) -> None:
    """For partitions whose stores are sound."""
    raise error


def result(request: ListRequest) -> ListResult:
    """A list that no other user gets."""
    videos = [f"{request.user_id[:100]}-{rank}" for rank in range(request.count)]
    return ListResult(videos, [-1.0 - rank for rank in range(request.count)], 5, 2)
