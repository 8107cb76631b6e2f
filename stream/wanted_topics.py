"""The topics as they should be, by the settings."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from schemas.attributes import MAX_ATTRIBUTE_CHARACTERS, MAX_ATTRIBUTE_VALUES, MAX_ATTRIBUTES
from schemas.bounds import MAX_ID_CHARACTERS
from stream.outgoing import BATCH_BYTES
from stream.settings import Settings

Role = Literal["events", "lists", "dead_letters", "changelog", "videos"]

_DAY_MS: Final = 86_400_000
_DURABLE_REPLICATION: Final = 3
# Kafka refuses records whose time is more than an hour ahead: a daemon's clock may be wrong, so it is not asked.
_BROKERS_CLOCK: Final = {"message.timestamp.type": "LogAppendTime"}
_VIDEO_BYTES: Final = 80  # of a recommended video beside its id
_RECORD_BYTES: Final = 8_192  # of a record beside what it is mostly made of: ids, times, headers
_LONGEST_PROFILE: Final = MAX_ATTRIBUTES * 4 * (64 + MAX_ATTRIBUTE_VALUES * (MAX_ATTRIBUTE_CHARACTERS + 2))


class Topic(Struct, frozen=True, kw_only=True):
    """What one topic should be. `configs` are given to Kafka when the topic is created.

    batch_bytes: the longest batch of records that the daemon may write to it, 0 where it writes none.
    """

    role: Role
    name: str
    partitions: int
    replication_factor: int
    configs: dict[str, str]
    batch_bytes: int = 0


def wanted_topics(settings: Settings) -> list[Topic]:
    """The topics of a daemon with these settings; the changelog has the events' partitions, one to one.

    That of the videos is among them only where it is named.
    """
    topics = settings.topics
    durable = {}
    if topics.replication_factor >= _DURABLE_REPLICATION:
        durable = {"min.insync.replicas": str(topics.replication_factor // 2 + 1)}
    # a dead letter is the record that died and its headers beside it: longer than the longest event
    dead = {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS), "max.message.bytes": str(2 << 20)}
    # Small segments, because only closed ones are compacted, and a restore reads what is not compacted.
    changelog = {
        "cleanup.policy": "compact",
        **_BROKERS_CLOCK,
        "segment.bytes": str(64 << 20),
        "segment.ms": str(_DAY_MS),
        "min.cleanable.dirty.ratio": "0.2",
        # what was forgotten is gone from the log, whatever else is written to it, two days later
        "max.compaction.lag.ms": str(_DAY_MS),
        "delete.retention.ms": str(_DAY_MS),
    }
    by_role: dict[Role, tuple[str, dict[str, str]]] = {
        "events": (topics.events, {"cleanup.policy": "delete"}),
        "lists": (topics.lists, {"cleanup.policy": "delete", **_BROKERS_CLOCK}),
        "dead_letters": (topics.dead_letters, dead),
        "changelog": (settings.changelog_topic, changelog),
    }
    if topics.videos is not None:
        by_role["videos"] = (topics.videos, {"cleanup.policy": "compact"})
    return [
        Topic(
            role=role,
            name=name,
            partitions=topics.partitions,
            replication_factor=topics.replication_factor,
            configs=configs | durable,
            batch_bytes=_batch_bytes(role, settings),
        )
        for role, (name, configs) in by_role.items()
    ]


def _batch_bytes(role: Role, settings: Settings) -> int:
    match role:
        case "lists":  # six bytes for a character that JSON escapes
            a_video = 6 * MAX_ID_CHARACTERS + _VIDEO_BYTES
            return max(BATCH_BYTES, settings.generator.list_length * a_video + _RECORD_BYTES)
        case "changelog":
            profile = min(settings.stream.max_event_bytes, _LONGEST_PROFILE)
            return max(BATCH_BYTES, profile + _RECORD_BYTES)
        case "dead_letters":  # a longer record is cut down to what the topic takes
            return BATCH_BYTES
        case _:
            return 0
