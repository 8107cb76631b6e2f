"""The end of a daemon: it drains at the first signal, exits at the second, and loses nothing either way."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import GroupAuthorizationFailedError
from daemons import Deployment, inside
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, check_durable, stored_states
from generators import Script
from records import DEADLINE_SECONDS, eventually, produce, read_to_end

from mtgr.reference import ReferenceRecommender
from stream import changelog


async def test_commit_that_the_drain_meets_half_way_is_not_lost(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that comes while a commit waits for Kafka leaves offsets, changelog and local files in agreement."""
    servers, topics = deployment.servers, deployment.names
    append = changelog.append
    waiting = asyncio.Event()

    async def slow(*arguments: Any) -> int:
        end = await append(*arguments)
        waiting.set()
        await asyncio.sleep(1)
        return end

    async with inside(deployment) as running:
        first = EventMaker(seed=1, users=names("u", 5)).each()
        await produce(servers, topics.events, all_outgoing(first))
        await all_served(servers, topics)
        await all_committed(servers, topics)
        monkeypatch.setattr(changelog, "append", slow)
        events = EventMaker(seed=2, users=names("u", 5), prefix="f").take(120)
        await produce(servers, topics.events, all_outgoing(events))
        await asyncio.wait_for(waiting.wait(), DEADLINE_SECONDS)
        monkeypatch.setattr(changelog, "append", append)
        kinds = ("watch", "like", "favorite", "share")
        await running.until(
            lambda: (
                sum(running.metric("events_total", type=kind) for kind in kinds) == len(first) + len(events)
            ),
            "every event read",
        )
        await running.drain()
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    outcome.check_lists(reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_commit_that_kafka_refuses_is_repeated_until_it_is_taken(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While offsets cannot be committed the daemon says so and goes on making lists; nothing is lost by the retries."""
    servers, topics = deployment.servers, deployment.names
    commit = AIOKafkaConsumer.commit
    refused = 0

    async def refuse(consumer: AIOKafkaConsumer, offsets: Any) -> None:
        nonlocal refused
        if refused < 4:
            refused += 1
            raise GroupAuthorizationFailedError(topics.group)
        await commit(consumer, offsets)

    maker = EventMaker(seed=3, users=names("u", 5))
    async with inside(deployment) as running:
        monkeypatch.setattr(AIOKafkaConsumer, "commit", refuse)
        await produce(servers, topics.events, all_outgoing(maker.take(100)))
        await running.until(lambda: not running.daemon.health.is_ready, "a reason not to be ready")
        assert "GroupAuthorizationFailed" in (running.daemon.health.reasons["kafka"] or "")
        while refused < 4:
            await produce(servers, topics.events, all_outgoing(maker.take(20)))
            await asyncio.sleep(0.1)
        await all_committed(servers, topics)
        await running.ready()
        outcome = await all_served(servers, topics)
        assert running.metric("commit_failures_total") == 4
    outcome.check_lists(reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_signal_drains_what_is_owed_and_leaves_the_group(
    deployment: Deployment, engine: Script, number: signal.Signals
) -> None:
    """At the first signal everybody who is owed a list gets it, everything is committed, the exit code is 0, and the
    next daemon is given the partitions at once."""
    servers, topics = deployment.servers, deployment.names
    # a member that had not left would hold its partitions for a minute
    slow = {
        "trigger.quiet_period_ms": 3_600_000,
        "trigger.max_wait_ms": 3_600_000,
        "kafka.session_timeout_ms": 60_000,
        "kafka.rebalance_timeout_ms": 60_000,
    }
    running = await deployment.start(changes=slow).ready()
    await produce(servers, topics.events, all_outgoing(EventMaker(seed=4, users=names("u", 50)).take(200)))
    await all_committed(servers, topics)
    assert await read_to_end(servers, topics.lists) == []
    running.child.send(number)
    assert await running.ended() == 0
    assert running.plain_output() == []
    outcome = await all_served(servers, topics, within=5)
    await all_committed(servers, topics, within=5)
    outcome.check_order()
    outcome.check_lists(engine.reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    started = time.monotonic()
    await (await deployment.start().ready(within=40)).drain()
    assert time.monotonic() - started < 40


async def test_drain_ends_at_its_deadline_and_what_is_left_stays_owed(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """A generator that hangs holds the end up for no longer than stream.drain_deadline_seconds; the next daemon makes
    the lists."""
    servers, topics = deployment.servers, deployment.names
    script = Script(reference)
    script.gate.clear()
    events = EventMaker(seed=5, users=names("u", 10)).take(50)
    async with inside(
        deployment, changes={"stream.drain_deadline_seconds": 1}, generator=script.make
    ) as running:
        await produce(servers, topics.events, all_outgoing(events))
        await all_committed(servers, topics)
        await running.until(lambda: bool(script.batches), "a batch at the generator")
        started = time.monotonic()
        await running.drain()
        assert 1 <= time.monotonic() - started < 10
    await check_durable(servers, topics)
    assert await read_to_end(servers, topics.lists) == []
    async with inside(deployment):
        outcome = await all_served(servers, topics)
    outcome.check_order()
    outcome.check_lists(reference)


async def test_second_signal_exits_at_once(deployment: Deployment, engine: Script) -> None:
    """Who does not want to wait for the drain sends the signal again; what was committed is durable."""
    servers, topics = deployment.servers, deployment.names
    engine.gate.clear()
    running = await deployment.start(
        changes={
            "kafka.rebalance_timeout_ms": 600_000,
            "kafka.max_poll_interval_ms": 600_000,
            "stream.drain_deadline_seconds": 600,
        }
    ).ready()
    await produce(servers, topics.events, all_outgoing(EventMaker(seed=6, users=names("u", 10)).take(50)))
    await eventually(lambda: bool(engine.batches), "a batch at the engine")
    running.terminate()
    await running.until_readiness(
        lambda answer: "drains" in (answer["components"].get("daemon", {}).get("reason") or ""), "it drains"
    )
    running.terminate()
    assert await running.ended(within=5) == 128 + signal.SIGTERM
    await check_durable(servers, topics)
    engine.gate.set()
    await deployment.start().ready()
    outcome = await all_served(servers, topics)
    outcome.check_lists(engine.reference)
