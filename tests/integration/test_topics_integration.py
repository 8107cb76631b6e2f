"""`mtgr-stream topics` makes the topics that the daemon needs and tells what is wrong with others."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from records import TopicNames, create_topic
from tools import Tool, settings_for

from mtgr.errors import InputError
from schemas.codecs import encode_list
from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from stream.outgoing import BATCH_BYTES, REQUEST_BYTES
from stream.topics import ensure_topics, partition_count, review_topics
from stream.wanted_topics import wanted_topics

pytestmark = pytest.mark.broker


@pytest.fixture
def tool(kafka: str, topic_names: TopicNames) -> Tool:
    return Tool(kafka, topic_names)


async def test_missing_topics_are_told_then_created_then_found(tool: Tool, topic_names: TopicNames) -> None:
    """--check creates nothing and fails; the command itself creates all four, and finds them the next time."""
    check = await tool.run("topics", "--check")
    assert check.code == 2
    assert check.err.count("is missing: create it by mtgr-stream topics") == 4
    made = await tool.run("topics")
    assert (made.code, made.err) == (0, "")
    assert made.out.count("created") == 4
    again = await tool.run("topics", "--check")
    assert again.code == 0
    assert again.out.count("ready") == 4
    assert topic_names.changelog in again.out


async def test_the_changelog_is_made_compacted(kafka: str, topic_names: TopicNames) -> None:
    """The settings that Kafka then shows are those that were wanted."""
    settings = settings_for(kafka, topic_names)
    reports = await ensure_topics(settings)
    assert {report.outcome for report in reports} == {"created"}
    reports = await review_topics(settings, create=False)
    by_role = {report.topic.role: report for report in reports}
    assert by_role["changelog"].configs["cleanup.policy"] == "compact"
    assert by_role["events"].configs["cleanup.policy"] == "delete"
    assert {report.partitions for report in reports} == {2}


async def test_wrong_topics_are_told_one_by_one_and_nothing_is_created(
    kafka: str, topic_names: TopicNames
) -> None:
    """A compacted events topic, too few partitions, a changelog that is not compacted: one line for each."""
    settings = settings_for(kafka, topic_names)
    await create_topic(kafka, topic_names.events, partitions=3, config={"cleanup.policy": "compact"})
    await create_topic(kafka, topic_names.changelog, partitions=1, config={"cleanup.policy": "delete"})
    with pytest.raises(InputError):
        await ensure_topics(settings)
    reports = await review_topics(settings, create=True)
    assert [report.outcome for report in reports] == ["wrong", "missing", "missing", "wrong"]
    events, _, _, changelog = (report.problems for report in reports)
    assert f"topic {topic_names.events} has 3 partitions where topics.partitions is 2" in events[0]
    assert "compaction keeps only the last of each user" in events[1]
    assert "a changelog must have those of the events topic" in changelog[0]
    assert "where a changelog must have compact" in changelog[1]


async def test_a_topic_that_is_not_there_is_not_made_by_asking(kafka: str, topic_names: TopicNames) -> None:
    """Looking for a topic never lets the broker create it with a shape of its own."""
    settings = settings_for(kafka, topic_names)
    for _ in range(2):
        with pytest.raises(InputError, match=f"there is no topic {topic_names.events}"):
            await partition_count(settings.kafka, topic_names.events)
        assert all(report.outcome == "missing" for report in await review_topics(settings, create=False))


async def test_more_replicas_than_brokers_is_one_line(kafka: str, topic_names: TopicNames) -> None:
    """What Kafka refuses is told in Kafka's words."""
    with pytest.raises(InputError, match="Kafka refuses to create it: Unable to replicate"):
        await ensure_topics(settings_for(kafka, topic_names, topics__replication_factor=3))


@pytest.mark.parametrize("role", ["lists", "changelog", "dead_letters"])
async def test_a_topic_that_takes_too_little_at_once_is_told(
    kafka: str, topic_names: TopicNames, role: str
) -> None:
    """A daemon whose batches a topic would refuse does not start: the setting and what would be right are named."""
    settings = settings_for(kafka, topic_names)
    name = getattr(topic_names, role)
    policy = "compact" if role == "changelog" else "delete"
    config = {"cleanup.policy": policy, "max.message.bytes": "100000"}
    await create_topic(kafka, name, partitions=2, config=config)
    message = f"topic {name} has max.message.bytes = 100000 where .*: set it to 524288 or more"
    with pytest.raises(InputError, match=message):
        await ensure_topics(settings)


async def test_lists_as_long_as_they_may_be_fit_their_topic(kafka: str, topic_names: TopicNames) -> None:
    """What is asked of the topic grows with the lists, and a batch of that size is what Kafka then takes."""
    settings = settings_for(kafka, topic_names, generator__list_length=1_000)
    (lists,) = [topic for topic in wanted_topics(settings) if topic.role == "lists"]
    longest = RecommendationList(
        list_id="l" * 32,
        user_id="\x01" * 128,
        session_id="\x01" * 128,
        items=tuple(RecommendedVideo("\x01" * 128, -1.2345678901234567e-300, 1_000) for _ in range(1_000)),
        model=ModelVersion("m" * 128, "v" * 128),
        strategy="topk",
        generated_at_ms=4_102_444_800_000,
        trigger=TriggerEvent("t" * 249, 99_999, 2**62, "\x01" * 128, 4_102_444_800_000),
        sequence_length=10**9,
        cached_tokens=10**9,
        latency_ms=1e300,
    )
    value = encode_list(longest)
    assert 524_288 < len(value) < lists.batch_bytes < len(value) * 1.2
    config = {"max.message.bytes": str(lists.batch_bytes)}
    await create_topic(kafka, topic_names.lists, config=config)
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka, max_batch_size=BATCH_BYTES, max_request_size=REQUEST_BYTES
    )
    async with producer:
        await producer.send_and_wait(topic_names.lists, value, key=longest.user_id.encode())
