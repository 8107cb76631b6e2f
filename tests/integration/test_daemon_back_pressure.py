"""A generator that cannot keep up: what waits stays in Kafka, bounded by the settings, and the group is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaConsumer
from daemons import Deployment, inside
from events import EventMaker, all_outgoing, names, watch
from expectations import all_committed, all_served, changelog_states
from generators import Script
from records import produce, read_to_end
from traffic import traffic

from mtgr.reference import ReferenceRecommender
from schemas.codecs import encode_event
from stream import daemon
from stream.commits import AtLeastOnce
from stream.partition import CommitWork
from stream.settings import Settings
from stream.source import Source, events_consumer


async def test_flood_before_a_hanging_generator_waits_in_kafka(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """While no list is made, partitions are paused with no more owed and in flight than the settings allow, for longer
    than the group's session; once lists are made again, everybody gets theirs."""
    servers, topics = deployment.servers, deployment.names
    script = Script(reference)
    script.gate.clear()
    changes = {
        "stream.max_owed_requests": 100,
        "kafka.max_poll_records": 50,
        "generator.max_batch_users": 8,
        "generator.max_concurrent_batches": 2,
        "generator.request_timeout_seconds": 120,
    }
    events = EventMaker(seed=1, users=names("u", 600)).each()
    async with inside(deployment, changes=changes, generator=script.make) as running:
        await produce(servers, topics.events, all_outgoing(events))
        await running.until(lambda: running.metric("paused_partitions") == 2, "a pause of both partitions")
        session_over = time.monotonic() + 8
        while time.monotonic() < session_over:
            # of each partition: its share, and what was fetched with the record that went over it
            assert running.metric("owed_users") <= 100 + 2 * 50
            assert running.metric("in_flight_requests") <= 16
            assert running.metric("paused_partitions") == 2
            await asyncio.sleep(0.1)
        lag = sum(
            running.metric("consumer_lag", topic=topics.events, partition=str(partition))
            for partition in range(2)
        )
        assert len(events) - (100 + 2 * 50) <= lag < len(events)
        script.gate.set()
        outcome = await all_served(servers, topics)
        await all_committed(servers, topics)
        assert script.most_users <= 16
        assert running.metric("restore_seconds_count") == 2, "the group was lost and joined again"
    outcome.check_order()
    outcome.check_lists(reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_bytes_in_flight_are_bounded_while_kafka_takes_no_commit(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that cannot be committed fill no more memory than stream.max_in_flight_mebibytes and one fetch."""
    servers, topics = deployment.servers, deployment.names
    commit = AtLeastOnce.commit
    taken = asyncio.Event()

    async def held_up(cycle: AtLeastOnce, work: Sequence[CommitWork]) -> Sequence[CommitWork]:
        await taken.wait()
        return await commit(cycle, work)

    monkeypatch.setattr(AtLeastOnce, "commit", held_up)
    changes = {"stream.max_in_flight_mebibytes": 1, "kafka.max_poll_records": 100}
    events = [
        watch(user, f"{'e' * 100}-{number}", session_id="s" * 100)
        for number in range(100)
        for user in names("u", 100)
    ]
    nbytes = sum(len(encode_event(event)) for event in events)
    assert nbytes > 3 << 20
    async with inside(deployment, changes=changes) as running:
        await produce(servers, topics.events, all_outgoing(events))
        await running.until(lambda: running.metric("paused_partitions") == 2, "a pause of both partitions")
        assert running.metric("in_flight_bytes") <= (1 << 20) + 2 * 100 * nbytes / len(events)
        taken.set()
        outcome = await all_served(servers, topics)
        await all_committed(servers, topics)
        await running.until(lambda: running.metric("in_flight_bytes") == 0, "the end of what was in flight")
    outcome.check_order()
    outcome.check_lists(reference)


async def test_generations_of_three_poll_intervals_cost_no_rebalance(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While each batch takes three times max.poll.interval and events keep coming, lag grows in Kafka, what is pending
    stays below its bound, and the group keeps its generation; then the lag goes to zero, and nothing is lost."""
    servers, topics = deployment.servers, deployment.names
    script = Script(reference)
    script.gate.clear()
    consumers = []

    def watched(settings: Settings) -> AIOKafkaConsumer:
        consumers.append(events_consumer(settings))
        return consumers[-1]

    monkeypatch.setattr(daemon, "events_consumer", watched)
    interval = 1.0
    changes = {
        "kafka.max_poll_interval_ms": round(1_000 * interval),
        "stream.drain_deadline_seconds": 1,
        "stream.max_owed_requests": 40,
        "kafka.max_poll_records": 20,
        "generator.max_batch_users": 8,
        "generator.max_concurrent_batches": 1,
    }
    maker = EventMaker(seed=3, users=names("u", 150))
    async with inside(deployment, changes=changes, generator=script.make) as running:
        (consumer,) = consumers
        generation = consumer._coordinator.generation

        def lag() -> float:
            partitions = (str(number) for number in range(2))
            return sum(
                running.metric("consumer_lag", topic=topics.events, partition=one) for one in partitions
            )

        lags = []
        async with traffic(servers, topics.events, maker, at_once=40):
            await running.until(
                lambda: running.metric("paused_partitions") == 2, "a pause of both partitions"
            )
            for _ in range(2):  # batches
                begun, over = len(script.batches), time.monotonic() + 3 * interval
                while time.monotonic() < over:
                    assert running.metric("owed_users") <= 40 + 2 * 20
                    assert running.metric("in_flight_requests") <= 8
                    assert consumer._coordinator.generation == generation
                    await asyncio.sleep(0.1)
                lags.append(lag())
                script.gate.set()
                await running.until(lambda begun=begun: len(script.batches) > begun, "the next batch")
                script.gate.clear()
        assert lags[1] > lags[0] > 40
        script.gate.set()
        outcome = await all_served(servers, topics)
        await all_committed(servers, topics)
        await running.until(lambda: lag() == running.metric("owed_users") == 0, "an end of lag and debts")
        assert consumer._coordinator.generation == generation
    outcome.check_order()
    outcome.check_lists(reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_a_daemon_that_asks_for_nothing_leaves_its_group(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """max.poll.interval is in force: were the daemon to ask for no events while lists are made, it would be out."""

    async def silent(source: Source) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Source, "_read", silent)
    changes = {"kafka.max_poll_interval_ms": 1_000, "stream.drain_deadline_seconds": 1}
    async with inside(deployment, changes=changes, generator=Script(reference).make) as running:
        await running.until(
            lambda: (
                running.daemon.health.reasons["partitions"] is not None
                or running.metric("restore_seconds_count") > 2
            ),
            "a rebalance",
        )
