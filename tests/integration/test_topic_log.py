"""A topic is read as an event log: all of it, in time order, and nothing that was not committed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer
from brokers import Broker
from events import EventMaker, all_outgoing, names, outgoing, watch
from records import Outgoing, TopicNames, create_topic, produce
from tools import settings_for

from mtgr.datasets import OnInvalid, SkippedRecords
from mtgr.errors import InputError
from schemas.codecs import JSON, MESSAGEPACK, encode_event
from schemas.events import Event, Forget
from stream.kafka import KafkaUnreachable
from stream.tools.topic_log import collect_topic, read_topic

pytestmark = pytest.mark.broker


async def read(kafka: str, topics: TopicNames, on_invalid: OnInvalid | None = None) -> list[Event]:
    settings = settings_for(kafka, topics)
    # on a thread of its own, as a command calls it: with no event loop
    return await asyncio.to_thread(lambda: list(read_topic(settings.kafka, topics.events, on_invalid)))


async def test_a_whole_topic_is_one_log_in_time_order(kafka: str, topics: TopicNames) -> None:
    """Every event of every partition comes once, by time, whatever order and format it was sent in."""
    events = EventMaker(1, names("u", 50)).take(5_000)
    sent = [outgoing(event, (None, JSON, MESSAGEPACK)[place % 3]) for place, event in enumerate(events)]
    random.Random(2).shuffle(sent)
    await produce(kafka, topics.events, sent)
    assert await read(kafka, topics) == events


async def test_events_of_one_time_come_by_partition_and_offset(kafka: str, topics: TopicNames) -> None:
    """The log of a topic is the same however often it is read."""
    events = [watch("u", f"e{number}") for number in range(400)]
    sent = [outgoing(event)._replace(partition=int(place < 200)) for place, event in enumerate(events)]
    await produce(kafka, topics.events, sent)
    assert await read(kafka, topics) == events[200:] + events[:200]


async def test_nothing_is_learnt_from_before_a_user_was_forgotten(kafka: str, topics: TopicNames) -> None:
    """Of a forgotten user only what came afterwards is read; others are read whole."""
    before, after = EventMaker(1, ["ada", "bob"], "old").take(40), EventMaker(2, ["ada"], "new").take(5)
    forget = Forget(event_id="f", user_id="ada", timestamp_ms=0)
    sent = [*all_outgoing(before), Outgoing(b"ada", encode_event(forget)), *all_outgoing(after)]
    await produce(kafka, topics.events, [one._replace(partition=0) for one in sent])
    kept = [event for event in before if event.user_id == "bob"] + after
    assert sorted(event.event_id for event in await read(kafka, topics)) == sorted(
        event.event_id for event in kept
    )


async def test_what_a_transaction_has_not_committed_is_no_event(kafka: str, topics: TopicNames) -> None:
    """Aborted records and those of an open transaction are left out, and the reading ends before them."""
    committed, aborted, pending = (EventMaker(seed, names("u", 4), f"e{seed}").take(40) for seed in range(3))
    first = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topics.group}-1")
    second = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{topics.group}-2")
    async with first, second:
        await send(first, topics, committed)
        await first.commit_transaction()
        await send(first, topics, aborted)
        await first.abort_transaction()
        assert await read(kafka, topics) == committed
        await send(second, topics, pending)
        assert await read(kafka, topics) == committed
        await second.abort_transaction()


async def send(producer: AIOKafkaProducer, topics: TopicNames, events: Sequence[Event]) -> None:
    await producer.begin_transaction()
    for record in all_outgoing(events):
        await producer.send_and_wait(topics.events, record.value, key=record.key)


async def test_records_that_are_no_events_are_named_or_counted(kafka: str, topics: TopicNames) -> None:
    """Topic, partition, offset, field and value lead to the first; with a counter the rest is read."""
    good = outgoing(watch("u", "e"))._replace(partition=1)
    wrong = [
        good._replace(value=(good.value or b"").replace(b"7.5", b"-7.5")),
        Outgoing(b"u", None, partition=1),
        good._replace(headers=[("content-type", b"text/plain")]),
    ]
    await produce(kafka, topics.events, [good, *wrong, good])
    with pytest.raises(InputError, match=r"partition 1 offset 1: watch_seconds = -7.5: expected") as raised:
        await read(kafka, topics)
    assert str(raised.value).startswith(f"topic {topics.events}: ")
    skipped = SkippedRecords()
    assert len(await read(kafka, topics, skipped)) == 2
    assert skipped.count == 3


async def test_a_topic_without_events_is_told(kafka: str, topics: TopicNames) -> None:
    """No such topic, and a topic that holds nothing, are one line each."""
    with pytest.raises(InputError, match="holds nothing; it should hold events"):
        await read(kafka, topics)
    settings = settings_for(kafka, topics)
    with pytest.raises(InputError, match="there is no topic nowhere"):
        await collect_topic(settings.kafka, "nowhere")


async def test_a_broker_that_stops_on_the_way_is_told(
    restartable_kafka: Broker, topic_names: TopicNames
) -> None:
    """A reading that comes to a halt ends with the place where it stands, and never waits for good."""
    servers = restartable_kafka.bootstrap_servers
    await create_topic(servers, topic_names.events, partitions=1)
    good = [outgoing(watch("u", f"e{number}", "v" * 100)) for number in range(30_000)]
    await produce(servers, topic_names.events, [*good, Outgoing(b"u", b"no event"), *good])
    settings = settings_for(servers, topic_names, kafka__connect_timeout_seconds=2)
    stopped: list[InputError] = []

    def stop(error: InputError) -> None:
        stopped.append(error)
        restartable_kafka.pause()

    try:
        with pytest.raises(KafkaUnreachable, match=r"partition 0 stands at offset \d+ of 60001"):
            await collect_topic(settings.kafka, topic_names.events, stop)
        assert len(stopped) == 1
    finally:
        restartable_kafka.unpause()
