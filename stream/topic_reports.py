"""What a topic is, beside what it should be, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from stream.wanted_topics import Topic

Outcome = Literal["ready", "created", "missing", "wrong"]


class TopicReport(Struct, frozen=True, kw_only=True):
    """What one topic is: its shape and settings in Kafka, and what is wrong with them, one line each.

    partitions and replication_factor are 0, and configs empty, where the topic is missing.
    """

    topic: Topic
    outcome: Outcome
    partitions: int = 0
    replication_factor: int = 0
    configs: dict[str, str] = {}
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class FoundTopic(Struct, frozen=True):
    """The shape that a topic has in Kafka."""

    partitions: int
    replication_factor: int


def report_on(topic: Topic, found: FoundTopic | None, configs: Mapping[str, str]) -> TopicReport:
    """Compare a topic with what was found of it, None where it is missing; configs: all that are in force there."""
    if found is None:
        noun = topic.role.replace("_", " ")
        problem = f"topic {topic.name} ({noun}) is missing: create it by mtgr-stream topics"
        return TopicReport(topic=topic, outcome="missing", problems=(problem,))
    problems = [
        *_partition_problems(topic, found),
        *_cleanup_problems(topic, configs["cleanup.policy"]),
        *_size_problems(topic, int(configs["max.message.bytes"])),
    ]
    notes = []
    if found.replication_factor < topic.replication_factor:
        notes.append(
            f"topic {topic.name} has replication factor {found.replication_factor} where "
            f"topics.replication_factor is {topic.replication_factor}"
        )
    return TopicReport(
        topic=topic,
        outcome="wrong" if problems else "ready",
        partitions=found.partitions,
        replication_factor=found.replication_factor,
        configs=dict(configs),
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _partition_problems(topic: Topic, found: FoundTopic) -> list[str]:
    # the others may have any number: nothing else is counted by theirs
    if topic.role not in ("events", "changelog") or found.partitions == topic.partitions:
        return []
    has = (
        f"topic {topic.name} has {found.partitions} partitions where topics.partitions is {topic.partitions}"
    )
    if topic.role == "events":
        return [f"{has}: set topics.partitions = {found.partitions}, or name another topics.events"]
    return [
        f"{has}, and a changelog must have those of the events topic: name another topics.changelog, or "
        f"delete this one and what state was kept in it"
    ]


def _size_problems(topic: Topic, most: int) -> list[str]:
    if most >= topic.batch_bytes:
        return []
    return [
        f"topic {topic.name} has max.message.bytes = {most} where the daemon may write {topic.batch_bytes} bytes at "
        f"once: set it to {topic.batch_bytes} or more"
    ]


def _cleanup_problems(topic: Topic, policy: str) -> list[str]:
    policies = {part.strip() for part in policy.split(",")}
    has = f"topic {topic.name} has cleanup.policy = {policy}"
    match topic.role:
        case "changelog" if policies != {"compact"}:
            return [f"{has} where a changelog must have compact, or the state of silent users is lost"]
        case "videos" if policies != {"compact"}:
            return [
                f"{has} where videos must have compact, or a daemon that starts later knows fewer of them"
            ]
        case "events" | "dead_letters" if "compact" in policies:
            noun = "events" if topic.role == "events" else "dead letters"
            return [f"{has} where {noun} must have delete: compaction keeps only the last of each user"]
        case _:
            return []
