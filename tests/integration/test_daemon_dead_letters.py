"""Records that are no valid events: kept whole in the dead-letter topic, in order, while the rest goes on."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from daemons import Deployment, inside
from events import EventMaker, all_outgoing, names, outgoing, watch
from expectations import all_committed, all_served, check_durable
from generators import Script
from records import (
    DEADLINE_SECONDS,
    Outgoing,
    TopicNames,
    committed_offsets,
    eventually,
    produce,
    read_to_end,
)

from mtgr.reference import ReferenceRecommender
from schemas.codecs import JSON, MESSAGEPACK, ContentType, encode_event
from schemas.dead_letters import DeadLetter, original_headers
from stream import changelog
from stream.errors import Fatal

_GOOD = watch("u1", "good")
_CONTENT_TYPES: Final[tuple[ContentType | None, ...]] = (JSON, MESSAGEPACK, None)


def _json(**changes: Any) -> bytes:
    """The good event as JSON with some fields changed, or left out where they are None."""
    fields = msgspec.json.decode(encode_event(_GOOD)) | changes
    return msgspec.json.encode({key: value for key, value in fields.items() if value is not None})


# name: record, stage, class, a part of the message
_BAD: dict[str, tuple[Outgoing, str, str, str]] = {
    "torn JSON": (Outgoing(b"u1", _json()[:-9]), "decode", "MalformedEvent", "truncated"),
    "no JSON": (Outgoing(b"u1", b"\x00\x01\xff"), "decode", "MalformedEvent", ""),
    "not UTF-8": (
        Outgoing(b"u1", _json(session_id="?").replace(b"?", b"\xff")),
        "decode",
        "MalformedEvent",
        "",
    ),
    "empty": (Outgoing(b"u1", b""), "decode", "MalformedEvent", "empty"),
    "tombstone": (Outgoing(b"u1", None), "decode", "MalformedEvent", "tombstone"),
    "oversized": (
        Outgoing(b"u1", _json(session_id="s" * 9_000)),
        "decode",
        "OversizedEvent",
        "max_event_bytes",
    ),
    "deeply nested": (Outgoing(b"u1", b'{"x":' + b"[" * 5_000), "decode", "MalformedEvent", ""),
    "content type": (
        Outgoing(b"u1", _json(), [("content-type", b"text/csv")]),
        "decode",
        "UnsupportedContentType",
        "text/csv",
    ),
    "JSON said to be MessagePack": (
        Outgoing(b"u1", _json(), [("content-type", MESSAGEPACK.encode())]),
        "validate",
        "InvalidEvent",
        "",
    ),
    "an array": (Outgoing(b"u1", b"[]"), "validate", "InvalidEvent", "array"),
    "unknown type": (Outgoing(b"u1", _json(type="purchase")), "validate", "InvalidEvent", "type"),
    "unknown version": (
        Outgoing(b"u1", _json(schema_version=2)),
        "validate",
        "InvalidEvent",
        "schema_version = 2",
    ),
    "missing field": (
        Outgoing(b"u1", _json(video_id=None)),
        "validate",
        "InvalidEvent",
        "video_id is missing",
    ),
    "wrong type": (Outgoing(b"u1", _json(watch_seconds="7")), "validate", "InvalidEvent", "watch_seconds"),
    "out of range": (
        Outgoing(b"u1", _json(watch_ratio=-0.5)),
        "validate",
        "InvalidEvent",
        "watch_ratio = -0.5",
    ),
    "future": (Outgoing(b"u1", _json(timestamp_ms=10**15)), "validate", "InvalidEvent", "timestamp_ms"),
    "long id": (Outgoing(b"u1", _json(event_id="e" * 200)), "validate", "InvalidEvent", "event_id"),
    "wrong key": (Outgoing(b"u2", _json()), "validate", "KeyMismatch", "u1"),
    "no key": (Outgoing(None, _json()), "validate", "KeyMismatch", "no key"),
}


async def test_bad_records_are_kept_whole_in_order_and_the_rest_goes_on(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """Each bad record is in the dead-letter topic with key, value, timestamp and headers as it had them, and why it
    died; JSON and MessagePack events among them are served as ever."""
    servers, topics = deployment.servers, deployment.names
    good = EventMaker(seed=4, users=names("u", 6)).take(len(_BAD) + 1)
    records: list[Outgoing] = []
    for number, (bad, *_) in enumerate(_BAD.values()):
        content_type = _CONTENT_TYPES[number % 3]
        records.append(outgoing(good[number], content_type, ("x-other", b"kept")))
        headers = [("x-other", b"kept"), *bad.headers, ("x-empty", b"")]
        records.append(bad._replace(headers=headers, partition=0, timestamp_ms=1_700_000_000_000 + number))
    records.append(outgoing(good[-1], MESSAGEPACK))
    async with inside(deployment, changes={"stream.max_event_bytes": 8_192}) as running:
        await produce(servers, topics.events, records)
        outcome = await all_served(servers, topics)
        await all_committed(servers, topics)
        assert running.metric("dead_letters_total", stage="decode") + running.metric(
            "dead_letters_total", stage="validate"
        ) == len(_BAD)
    outcome.check_order()
    outcome.check_lists(reference)
    assert sum(len(outcome.fold.sequence(user)) for user in outcome.fold.users) == len(good)
    dead = await read_to_end(servers, topics.dead_letters)
    sources = {(r.partition, r.offset): r for r in await read_to_end(servers, topics.events)}
    assert len(dead) == len(_BAD)
    for record, (name, (bad, stage, error_class, message)) in zip(dead, _BAD.items(), strict=True):
        letter = DeadLetter.from_headers(record.headers)
        source = sources[letter.partition, letter.offset]
        assert letter.topic == topics.events
        assert (letter.stage, letter.exception_class) == (stage, error_class), name
        assert message in letter.message, name
        assert "\n" not in letter.message
        _check_kept(record, source)
        assert source.value == bad.value


async def test_a_stop_in_the_middle_of_a_commit_repeats_no_dead_letter(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is told to stop while it commits ends what it has begun, rather than to do it once more."""
    servers, topics = deployment.servers, deployment.names
    append = changelog.append

    async def slowly(*arguments: Any) -> int:
        await asyncio.sleep(1)
        return await append(*arguments)

    monkeypatch.setattr(changelog, "append", slowly)
    events = all_outgoing(EventMaker(seed=9, users=["ada"]).take(3))
    async with inside(deployment, generator=Script(reference).make):
        await produce(servers, topics.events, [*events, events[0]._replace(value=b"{")])
        await _dead(servers, topics, 1)  # in the topic, while the states of its cycle are not
    assert len(await read_to_end(servers, topics.dead_letters)) == 1
    await all_committed(servers, topics)


async def test_dead_record_without_key_and_value_is_kept(deployment: Deployment) -> None:
    """Even a record that holds nothing at all becomes a dead letter."""
    servers, topics = deployment.servers, deployment.names
    async with inside(deployment), AIOKafkaProducer(bootstrap_servers=servers) as producer:
        batch = producer.create_batch()
        batch.append(key=None, value=None, timestamp=1, headers=[("x", b"y")])
        await (await producer.send_batch(batch, topics.events, partition=1))
        await produce(servers, topics.events, [outgoing(_GOOD)])
        await all_served(servers, topics)
        await all_committed(servers, topics)
    (record,) = await read_to_end(servers, topics.dead_letters)
    assert DeadLetter.from_headers(record.headers).partition == 1
    assert record.headers[0] == ("x", b"y")


_MOST_BYTES = 1_048_588 - 150  # what a topic takes by default, less the head of the batch


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"u1", b"x" * _MOST_BYTES, []),
        (b"k" * _MOST_BYTES, b"x", []),
        (b"u1", b"x", [("h", b"x" * _MOST_BYTES)]),
    ],
    ids=["value", "key", "header"],
)
async def test_record_too_long_for_the_dead_letter_topic_does_not_stop_the_stream(
    deployment: Deployment, key: bytes, value: bytes, headers: list[tuple[str, bytes]]
) -> None:
    """A record that just fits its own topic, and with its reason no longer the dead-letter topic, is buried without
    what is too long: the reason says where the whole of it stands."""
    servers, topics = deployment.servers, deployment.names
    huge = Outgoing(key, value, headers, partition=0)
    async with inside(deployment) as running:
        await produce(servers, topics.events, [Outgoing(b"u1", b"torn", partition=0), huge, outgoing(_GOOD)])
        await all_served(servers, topics)
        await all_committed(servers, topics)
        assert running.metric("commit_failures_total") == 0
    _, record = await read_to_end(servers, topics.dead_letters)
    letter = DeadLetter.from_headers(record.headers)
    assert (letter.topic, letter.partition, letter.offset) == (topics.events, 0, 1)
    assert record.value is None


async def test_stops_rather_than_bury_a_whole_topic(deployment: Deployment, engine: Script) -> None:
    """When too large a share of records is dead, the daemon stops with an error and commits nothing past what it has
    made durable; after that, with the limit raised, nothing is missing."""
    servers, topics = deployment.servers, deployment.names
    changes = {"stream.dead_letter_window": 50, "stream.dead_letter_share_limit": 0.2}
    good = EventMaker(seed=5, users=names("u", 4)).take(40)
    running = deployment.start(changes=changes)
    await running.ready()
    await produce(servers, topics.events, all_outgoing(good))
    await all_served(servers, topics)
    await all_committed(servers, topics)
    before = await committed_offsets(servers, topics.group, topics.events)
    await produce(servers, topics.events, [Outgoing(b"u%d" % n, b"no event") for n in range(200)])
    assert await running.ended() == 1
    (told,) = running.plain_output()
    assert "stream.dead_letter_share_limit" in told
    await check_durable(servers, topics)
    after = await committed_offsets(servers, topics.group, topics.events)
    buried = len(await read_to_end(servers, topics.dead_letters))
    assert sum(after.values()) - sum(before.values()) <= buried <= 0.2 * 50
    async with inside(deployment, changes={"stream.dead_letter_share_limit": 1}):
        await all_committed(servers, topics)
    letters = [DeadLetter.from_headers(r.headers) for r in await read_to_end(servers, topics.dead_letters)]
    assert len({(letter.partition, letter.offset) for letter in letters}) == 200


async def test_user_who_breaks_the_engine_is_isolated(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """The event after which a user's list breaks every engine is dead-lettered whole, the users who shared its batch
    are served, and the next event of that user is tried again."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=6, users=[*names("u", 8), "poison"])
    script = Script(reference)
    script.breaks = lambda requests: any(request.user_id == "poison" for request in requests)
    async with inside(deployment, generator=script.make) as running:
        events = maker.each()
        await produce(servers, topics.events, all_outgoing(events))
        await eventually(lambda: bool(running.metric("refusals_total")), "a refusal")
        await all_committed(servers, topics)
        assert running.metric("generation_failures_total") >= 1
        assert running.daemon.health.is_ready
        (record,) = await _dead(servers, topics, 1)
        letter = DeadLetter.from_headers(record.headers)
        assert (letter.stage, letter.exception_class) == ("generate", "EngineFailed")
        assert "poison" in letter.message
        assert record.value == encode_event(events[-1])
        sources = {(r.partition, r.offset): r for r in await read_to_end(servers, topics.events)}
        _check_kept(record, sources[letter.partition, letter.offset])
        script.breaks = lambda requests: False
        await produce(servers, topics.events, all_outgoing(maker.each()))
        outcome = await all_served(servers, topics)
        await all_committed(servers, topics)
    outcome.check_order()
    outcome.check_lists(reference)
    assert [value.sequence_length for value in outcome.by_user()["poison"]] == [2]


async def test_engine_that_fails_once_is_restarted_and_its_batch_repeated(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """A failure that does not come again costs nobody a list and nobody a dead letter."""
    servers, topics = deployment.servers, deployment.names
    script = Script(reference)
    script.breaks = lambda requests: len(script.batches) in (2, 5)
    maker = EventMaker(seed=7, users=names("u", 6))
    async with inside(deployment, generator=script.make) as running:
        for _ in range(4):
            await produce(servers, topics.events, all_outgoing(maker.take(20)))
            await all_served(servers, topics)
        outcome = await all_served(servers, topics)
        assert running.metric("engine_restarts_total") >= 1
        assert script.starts == 1 + running.metric("engine_restarts_total")
    outcome.check_order()
    outcome.check_lists(reference)
    assert await read_to_end(servers, topics.dead_letters) == []


async def test_engine_that_never_recovers_stops_the_daemon_and_every_list_stays_owed(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """After generator.max_restarts failures in a row the daemon stops; the next one makes the lists."""
    servers, topics = deployment.servers, deployment.names
    script = Script(reference)
    script.breaks = lambda requests: True
    events = EventMaker(seed=8, users=names("u", 5)).take(40)
    async with inside(deployment, changes={"generator.max_restarts": 2}, generator=script.make) as running:
        await produce(servers, topics.events, all_outgoing(events))
        with pytest.raises(Fatal, match=r"generator.max_restarts"):
            await asyncio.wait_for(running.task, DEADLINE_SECONDS)
    await check_durable(servers, topics)
    async with inside(deployment):
        outcome = await all_served(servers, topics)
    outcome.check_lists(reference)
    assert await read_to_end(servers, topics.dead_letters) == []


async def _dead(servers: str, topics: TopicNames, count: int) -> list[ConsumerRecord]:
    """The dead letters, as soon as there are so many."""
    found: list[ConsumerRecord] = []

    async def enough() -> bool:
        found[:] = await read_to_end(servers, topics.dead_letters)
        return len(found) >= count

    await eventually(enough, f"{count} dead letters")
    return found


def _check_kept(record: ConsumerRecord, source: ConsumerRecord) -> None:
    """A dead letter is its source record and nothing less."""
    assert (record.key, record.value, record.timestamp) == (source.key, source.value, source.timestamp)
    assert original_headers(record.headers) == list(source.headers)
