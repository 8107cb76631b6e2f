"""`mtgr-stream produce` brings a log to Kafka: whole, in order for each user, and resumable."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from aiokafka import ConsumerRecord
from brokers import Broker
from events import EventMaker, names
from records import TopicNames, consume, read_to_end
from tools import Tool, ended, settings_for

from schemas.codecs import decode_event, decode_video
from schemas.events import Event
from schemas.videos import Video
from stream.tools.partitioning import partition_of
from stream.topics import ensure_topics

pytestmark = pytest.mark.broker

WriteLog = Callable[[int], tuple[Path, list[Event]]]


@pytest.fixture
def tool(kafka: str, topics: TopicNames) -> Tool:
    return Tool(kafka, topics)


@pytest.fixture
def log_of(tmp_path: Path) -> WriteLog:
    def write(count: int) -> tuple[Path, list[Event]]:
        events = EventMaker(seed=count, users=names("u", 50)).take(count)
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(msgspec.json.Encoder().encode_lines(events))
        return path, events

    return write


def in_order_of_users(events: Sequence[Event]) -> dict[str, list[str]]:
    orders = defaultdict(list)
    for event in events:
        orders[event.user_id].append(event.event_id)
    return orders


def ordered(records: Sequence[ConsumerRecord]) -> list[ConsumerRecord]:
    return sorted(records, key=lambda record: (record.partition, record.offset))


def decoded(records: Sequence[ConsumerRecord]) -> list[Event]:
    return [decode_event(record.value, dict(record.headers)["content-type"]) for record in ordered(records)]


async def test_a_log_arrives_whole_keyed_and_in_order(
    tool: Tool, kafka: str, topics: TopicNames, log_of: WriteLog, tmp_path: Path
) -> None:
    """Every event is there once, in its user's partition by Kafka's own hash, in the log's order for each
    user.

    In two runs and two encodings: the second goes on where the first ended, until there is nothing left.
    """
    path, events = log_of(20_000)
    kept = ("--resume", tmp_path / "position.json")
    part = await tool.run("produce", path, "--limit", 7_000, *kept)
    assert part.code == 0, part.err
    assert f"7,000 events to {topics.events}" in part.out
    rest = await tool.run("produce", path, "--format", "msgpack", *kept)
    assert "13,000 events" in rest.out
    assert "after 7,000 sent before" in rest.out
    assert (
        "nothing to send: all 20,000 events were sent before" in (await tool.run("produce", path, *kept)).out
    )
    records = await read_to_end(kafka, topics.events)
    assert len(records) == 20_000
    for record in records:
        assert record.partition == partition_of(record.key, 2)
    found = decoded(records)
    assert [event.user_id.encode() for event in found] == [record.key for record in ordered(records)]
    assert in_order_of_users(found) == in_order_of_users(events)


async def test_ctrl_c_keeps_what_was_acknowledged_and_the_next_run_sends_the_rest(
    tool: Tool, kafka: str, topics: TopicNames, log_of: WriteLog, tmp_path: Path
) -> None:
    """An interrupted run says how far it came and exits with 130; together the runs send each event once."""
    path, events = log_of(5_000)
    position = tmp_path / "position.json"
    arguments = (path, "--rate", 500, "--resume", position)
    async with tool.started("produce", *arguments) as process:
        await consume(kafka, topics.events, 100)
        process.send_signal(signal.SIGINT)
        stopped = await ended(process)
    assert stopped.code == 130, stopped.err
    acknowledged = json.loads(position.read_text())["acknowledged"]
    assert 100 <= acknowledged < 5_000
    assert stopped.out.startswith(f"{acknowledged:,} events")
    rest = await tool.run("produce", path, "--resume", position)
    assert f"after {acknowledged:,} sent before" in rest.out
    records = await read_to_end(kafka, topics.events)
    assert in_order_of_users(decoded(records)) == in_order_of_users(events)


async def test_standard_input_is_sent_as_it_comes(
    tool: Tool, kafka: str, topics: TopicNames, log_of: WriteLog
) -> None:
    """Lines from a pipe that stays open are not held back, not even one whose end comes later."""
    path, _ = log_of(10)
    text = path.read_bytes()
    half = text.index(b"\n") + 20
    async with tool.started("produce", "-") as process:
        assert process.stdin is not None
        process.stdin.write(text[:half])
        await process.stdin.drain()
        await consume(kafka, topics.events, 1)
        done = await ended(process, text[half:])
    assert done.code == 0, done.err
    assert len(await read_to_end(kafka, topics.events)) == 10


async def test_invalid_lines_stop_a_run_or_are_counted(
    tool: Tool, kafka: str, topics: TopicNames, log_of: WriteLog
) -> None:
    """By default the first invalid line ends the run in one line; --skip-invalid counts them."""
    path, _ = log_of(100)
    lines = path.read_bytes().splitlines()
    lines[50] = b'{"type":"watch"}'
    path.write_bytes(b"\n".join(lines))
    refused = await tool.run("produce", path)
    assert refused.code == 2
    assert f"{path}: line 51: event_id is missing" in refused.err
    assert "Traceback" not in refused.err
    skipped = await tool.run("produce", path, "--skip-invalid", "--resume", path.with_suffix(".position"))
    assert skipped.code == 0
    assert "99 events" in skipped.out
    assert "1 invalid passed over" in skipped.out


async def test_a_broker_that_goes_away_ends_the_run_after_the_time_that_was_set(
    restartable_kafka: Broker, log_of: WriteLog, tmp_path: Path, topic_names: TopicNames
) -> None:
    """The run fails in one line, and its position says what the broker had acknowledged."""
    broker = restartable_kafka
    tool = Tool(broker.bootstrap_servers, topic_names)
    await ensure_topics(settings_for(broker.bootstrap_servers, topic_names))
    path, _ = log_of(5_000)
    position = tmp_path / "position.json"
    patience = ("--set", "kafka.connect_timeout_seconds=3")
    async with tool.started("produce", path, "--rate", 500, "--resume", position, *patience) as process:
        await consume(broker.bootstrap_servers, topic_names.events, 200)
        await asyncio.to_thread(broker.kill)
        failed = await ended(process)
    assert failed.code == 1
    assert "Kafka took no events for 3 seconds; run again to go on after event" in failed.err
    acknowledged = json.loads(position.read_text())["acknowledged"]
    await asyncio.to_thread(broker.restart)
    rest = await tool.run("produce", path, "--resume", position)
    assert rest.code == 0, rest.err
    assert f"{5_000 - acknowledged:,} events" in rest.out
    found = {
        event.event_id for event in decoded(await read_to_end(broker.bootstrap_servers, topic_names.events))
    }
    assert len(found) == 5_000


@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
async def test_videos_of_a_file_are_sent_before_the_events(
    kafka: str, topics: TopicNames, log_of: WriteLog, tmp_path: Path, content_type: str
) -> None:
    """Each row of a table becomes a video with its attributes, keyed by its id, in a compacted topic."""
    log, events = log_of(20)
    file = tmp_path / "videos.csv"
    file.write_text("video_id,author,seconds\nv1,a,31.5\nv2,b,\n")
    topic = f"{topics.group}-videos"
    tool = Tool(kafka, topics, topics__videos=topic)
    missing = await tool.run("produce", "--videos", file)
    assert (missing.code, f"there is no topic {topic}" in missing.err) == (2, True)
    assert (await tool.run("topics")).code == 0
    encoding = content_type.removeprefix("application/")
    ended = await tool.run("produce", log, "--videos", file, "--format", encoding)
    assert ended.code == 0, ended.err
    assert f"2 videos to {topic}" in ended.out
    found = {
        record.key: decode_video(record.value, dict(record.headers)["content-type"])
        for record in await read_to_end(kafka, topic)
    }
    assert found == {
        b"v1": Video(video_id="v1", attributes={"author": "a", "seconds": 31.5}),
        b"v2": Video(video_id="v2", attributes={"author": "b"}),
    }
    assert len(await read_to_end(kafka, topics.events)) == len(events)
