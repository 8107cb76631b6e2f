"""The brokers that the other integration tests stand on."""

from __future__ import annotations

import asyncio

import pytest
from brokers import Broker
from records import Outgoing, TopicNames, committed_offsets, consume, create_topic, produce, read_to_end


async def test_shared_broker_keeps_order_headers_and_partitions(kafka: str, topics: TopicNames) -> None:
    """Records come back by partition in the order they were sent, with key, headers and timestamp."""
    sent = [
        Outgoing(
            b"u1", b"%d" % n, [("content-type", b"application/json")], partition=n % 2, timestamp_ms=1000 + n
        )
        for n in range(20)
    ]
    await produce(kafka, topics.events, sent)
    records = await consume(kafka, topics.events, 20)
    for partition in (0, 1):
        got = [record for record in records if record.partition == partition]
        assert [record.value for record in got] == [out.value for out in sent[partition::2]]
        assert [record.timestamp for record in got] == [out.timestamp_ms for out in sent[partition::2]]
    assert {(record.key, record.headers) for record in records} == {
        (b"u1", (("content-type", b"application/json"),))
    }
    assert await committed_offsets(kafka, topics.group, topics.events) == {}


async def test_waiting_for_records_that_do_not_come_fails_with_what_came(
    kafka: str, topics: TopicNames
) -> None:
    """A test that waits in vain ends by its deadline, saying what it had."""
    await produce(kafka, topics.events, [Outgoing(b"u1", b"only")])
    with pytest.raises(AssertionError, match="wanted 2 records, got 1"):
        await consume(kafka, topics.events, 2, within=1)


async def test_restarted_broker_keeps_address_and_data(restartable_kafka: Broker) -> None:
    """A broker that was killed or shut down comes back on the same port with every record it acknowledged."""
    servers = restartable_kafka.bootstrap_servers
    await create_topic(servers, "kept")
    await produce(servers, "kept", [Outgoing(None, b"before")])
    restartable_kafka.kill()
    restartable_kafka.restart()
    await produce(servers, "kept", [Outgoing(None, b"after kill")])
    restartable_kafka.shut_down()
    restartable_kafka.restart()
    await produce(servers, "kept", [Outgoing(None, b"after shutdown")])
    assert restartable_kafka.bootstrap_servers == servers
    records = await read_to_end(servers, "kept")
    assert [record.value for record in records] == [b"before", b"after kill", b"after shutdown"]


async def test_paused_broker_answers_once_it_goes_on(restartable_kafka: Broker) -> None:
    """A frozen broker takes nothing, and what waited is acknowledged when it thaws."""
    servers = restartable_kafka.bootstrap_servers
    await create_topic(servers, "frozen")
    restartable_kafka.pause()
    waiting = asyncio.create_task(produce(servers, "frozen", [Outgoing(None, b"patient")]))
    finished, _ = await asyncio.wait([waiting], timeout=2)
    assert not finished
    restartable_kafka.unpause()
    await waiting
    assert [record.value for record in await read_to_end(servers, "frozen")] == [b"patient"]
