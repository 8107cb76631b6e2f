"""The end of a daemon: it drains at the first signal, exits at the second, and loses nothing either way."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import GroupAuthorizationFailedError
from daemons import Deployment, inside
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, stored_states
from records import DEADLINE_SECONDS, produce, read_to_end

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
        await produce(servers, topics.events, all_outgoing(EventMaker(seed=1, users=names("u", 5)).each()))
        await all_served(servers, topics)
        await all_committed(servers, topics)
        monkeypatch.setattr(changelog, "append", slow)
        events = EventMaker(seed=2, users=names("u", 5), prefix="f").take(120)
        await produce(servers, topics.events, all_outgoing(events))
        await asyncio.wait_for(waiting.wait(), DEADLINE_SECONDS)
        monkeypatch.setattr(changelog, "append", append)
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
