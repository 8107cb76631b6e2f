"""`mtgr-stream tail` shows lists as they come, and takes them from nobody."""

from __future__ import annotations

import time

import msgspec
import pytest
from events import outgoing, watch
from records import Outgoing, TopicNames, eventually, produce
from tools import Tool, ended, settings_for

from schemas.codecs import encode_list
from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from stream.settings import Settings
from stream.tools.event_lookup import EventLookup
from stream.tools.list_feed import ListFeed

pytestmark = pytest.mark.broker


@pytest.fixture
def tool(kafka: str, topics: TopicNames) -> Tool:
    return Tool(kafka, topics)


@pytest.fixture
def settings(kafka: str, topics: TopicNames) -> Settings:
    return settings_for(kafka, topics)


def made(user_id: str, number: int = 0, trigger: TriggerEvent | None = None) -> RecommendationList:
    return RecommendationList(
        list_id=f"{user_id}-{number}",
        user_id=user_id,
        session_id=None,
        items=(RecommendedVideo("v1", -0.5, 1),),
        model=ModelVersion("tiny", "0"),
        strategy="topk",
        generated_at_ms=int(time.time() * 1000),
        trigger=trigger or TriggerEvent("events", 0, 0, "e", 1),
        sequence_length=10,
        cached_tokens=8,
        latency_ms=12.5,
    )


async def publish(kafka: str, topic: str, *lists: RecommendationList) -> None:
    await produce(kafka, topic, [Outgoing(each.user_id.encode(), encode_list(each)) for each in lists])


async def test_lists_on_a_pipe_are_json_lines(tool: Tool, kafka: str, topics: TopicNames) -> None:
    """From the beginning, each list is a line that reads back as the list it was; of one user, only that
    one's.
    """
    lists = [made(f"u{number % 4}", number) for number in range(20)]
    await publish(kafka, topics.lists, *lists)
    shown = await tool.run("tail", "--from", "beginning", "--limit", 20)
    read = [msgspec.json.decode(line, type=RecommendationList) for line in shown.out.splitlines()]
    assert sorted(read, key=lambda each: each.list_id) == sorted(lists, key=lambda each: each.list_id)


async def test_from_the_end_shows_what_comes_and_not_what_was(
    settings: Settings, kafka: str, topics: TopicNames
) -> None:
    """Once the feed is open, no list is missed, and none from before is shown."""
    await publish(kafka, topics.lists, made("u1", 1), made("u2", 2))
    async with ListFeed.open(settings) as feed:
        await publish(kafka, topics.lists, made("u1", 3), made("u2", 4))
        assert sorted(await taken(feed, 2)) == ["u1-3", "u2-4"]


async def test_one_users_lists_are_all_that_is_shown(
    settings: Settings, kafka: str, topics: TopicNames
) -> None:
    """Of many users' lists in the same partition, one user's come, in their order."""
    await publish(kafka, topics.lists, *(made(f"u{number % 4}", number) for number in range(20)))
    async with ListFeed.open(settings, "beginning", "u2") as feed:
        assert await taken(feed, 5) == [f"u2-{number}" for number in (2, 6, 10, 14, 18)]


async def taken(feed: ListFeed, count: int) -> list[str]:
    found: list[str] = []

    async def enough() -> bool:
        found.extend(each.list_id for each in await feed.next(0.2))
        return len(found) >= count

    await eventually(enough, f"{count} lists")
    return found


async def test_what_is_no_list_is_logged_and_passed_over(tool: Tool, kafka: str, topics: TopicNames) -> None:
    """A record of somebody else's in the topic does not end the tail."""
    await produce(
        kafka, topics.lists, [Outgoing(b"u1", b"not a list"), Outgoing(b"u1", encode_list(made("u1")))]
    )
    shown = await tool.run("tail", "--from", "beginning", "--limit", 1)
    assert shown.code == 0
    assert '"list_id":"u1-0"' in shown.out
    assert "list_undecodable" in shown.err


async def test_the_event_behind_a_list_is_found_by_its_place(
    settings: Settings, kafka: str, topics: TopicNames
) -> None:
    """A trigger leads to the event, in any order and partition; one that is not there leads to nothing."""
    events = [watch("u1", f"e{number}", f"v{number}") for number in range(200)]
    for partition in (0, 1):
        await produce(
            kafka, topics.events, [outgoing(event)._replace(partition=partition) for event in events]
        )
    places = [(0, 150), (1, 3), (0, 0), (1, 199), (0, 10_000)]
    triggers = [TriggerEvent(topics.events, partition, offset, "e", 1) for partition, offset in places]
    async with EventLookup.open(settings.kafka) as lookup:
        for _ in range(2):
            found = await lookup.find(triggers)
            assert found == [events[150], events[3], events[0], events[199], None]


async def test_a_closed_pipe_ends_the_tail_quietly(tool: Tool, kafka: str, topics: TopicNames) -> None:
    """`tail | head` ends without a word."""
    async with tool.started("tail", "--from", "beginning") as process:
        assert process.stdout is not None
        await publish(kafka, topics.lists, made("u1", 0))
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        await publish(kafka, topics.lists, *(made("u1", number) for number in range(1, 2_000)))
        assert (await ended(process)).err == ""
