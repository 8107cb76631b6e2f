"""The topics are wanted in the shape that the daemon needs."""

from __future__ import annotations

import msgspec

from stream.settings import KafkaSettings, Settings, TopicSettings
from stream.wanted_topics import wanted_topics


def test_the_changelog_is_compacted_and_partitioned_like_the_events() -> None:
    """A user's state must be found by the partition of the user's events, and be kept for ever."""
    settings = Settings(kafka=KafkaSettings(group_id="g"), topics=TopicSettings(partitions=17))
    by_role = {topic.role: topic for topic in wanted_topics(settings)}
    changelog = by_role["changelog"]
    assert changelog.name == "g-changelog"
    assert changelog.partitions == by_role["events"].partitions == 17
    assert changelog.configs["cleanup.policy"] == "compact"
    assert {by_role[role].configs["cleanup.policy"] for role in ("events", "lists", "dead_letters")} == {
        "delete"
    }


def test_videos_are_compacted_and_wanted_only_where_they_are_named() -> None:
    """A daemon without new videos needs no topic for them; one with them needs all of them for ever."""
    assert "videos" not in {topic.role for topic in wanted_topics(Settings())}
    (videos,) = [t for t in wanted_topics(Settings(topics=TopicSettings(videos="v"))) if t.role == "videos"]
    assert (videos.name, videos.configs["cleanup.policy"]) == ("v", "compact")


def test_three_replicas_must_agree_by_majority() -> None:
    """An acknowledged record of a replicated topic survives the loss of a broker."""
    topics = msgspec.structs.replace(TopicSettings(), replication_factor=3)
    assert {topic.configs["min.insync.replicas"] for topic in wanted_topics(Settings(topics=topics))} == {"2"}
    assert all("min.insync.replicas" not in topic.configs for topic in wanted_topics(Settings()))
