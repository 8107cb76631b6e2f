"""A broker that goes and comes back, or was never there."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from brokers import Broker
from daemons import Deployment, Inside, deployed, inside
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, stored_states
from msgspec.structs import replace
from records import TopicNames, produce, read_to_end
from traffic import traffic

from mtgr.reference import ReferenceRecommender
from stream import daemon as daemon_module
from stream.demo.broker import free_port
from stream.errors import Fatal
from stream.settings import Settings
from stream.source import lone_consumer

_NOTICED_SECONDS = 30.0
_RECOVERED_SECONDS = 60.0


async def test_broker_outages_of_every_kind_are_survived(
    restartable_kafka: Broker,
    topic_names: TopicNames,
    checkpoint: Path,
    reference: ReferenceRecommender,
    tmp_path: Path,
) -> None:
    """Absent at the start, killed, shut down or frozen under traffic: the daemon says that it is not ready and why, is
    ready again once the broker is back, and has lost nothing."""
    broker = restartable_kafka
    servers = broker.bootstrap_servers
    maker = EventMaker(seed=1, users=names("u", 20))
    await asyncio.to_thread(broker.shut_down)
    with deployed(servers, topic_names, checkpoint, tmp_path) as deployment:
        async with inside(deployment, wait=False) as running:
            await _not_ready(running, "kafka", "connecting")
            await asyncio.to_thread(broker.restart)
            await running.ready(_RECOVERED_SECONDS)
            for take_down, bring_back in (
                (broker.kill, broker.restart),
                (broker.shut_down, broker.restart),
                (broker.pause, broker.unpause),
            ):
                async with traffic(servers, topic_names.events, maker):
                    await _makes_lists(running)
                    await asyncio.to_thread(take_down)
                    await _not_ready(running, "kafka", "")
                    await asyncio.to_thread(bring_back)
                    await running.ready(_RECOVERED_SECONDS)
                await all_served(servers, topic_names, within=_RECOVERED_SECONDS)
            outcome = await all_served(servers, topic_names)
            await all_committed(servers, topic_names)
        outcome.check_lists(reference)
        outcome.check_state(stored_states(deployment.state_directory(), topic_names))
        outcome.check_state(changelog_states(await read_to_end(servers, topic_names.changelog)))


async def test_broker_that_does_not_come_ends_the_start(
    topic_names: TopicNames, checkpoint: Path, tmp_path: Path
) -> None:
    """Kafka that cannot be reached is tried again, with word of it in the log, until the set time is over; then the
    daemon ends with one line that names the address."""
    servers = f"127.0.0.1:{free_port()}"
    with deployed(servers, topic_names, checkpoint, tmp_path) as deployment:
        running = deployment.start(changes={"kafka.connect_timeout_seconds": 3})
        assert await running.ended() == 2
    assert len(running.logged("kafka_unreachable")) >= 2
    (line,) = running.plain_output()
    assert servers in line
    assert "3 seconds" in line


async def test_stop_is_heard_while_the_broker_is_awaited(
    topic_names: TopicNames, checkpoint: Path, tmp_path: Path
) -> None:
    """A daemon that waits for Kafka to appear ends in good order when told to."""
    with deployed(f"127.0.0.1:{free_port()}", topic_names, checkpoint, tmp_path) as deployment:
        running = deployment.start()
        await running.until_logged("kafka_unreachable")
        await running.drain()


async def _not_ready(running: Inside, component: str, reason: str) -> None:
    """Wait until /readyz answers 503 because of a component."""
    deadline = time.monotonic() + _NOTICED_SECONDS
    while True:
        status, reasons = await running.readiness()
        told = reasons.get(component)
        if status == 503 and told is not None and reason in told:
            return
        assert not running.task.done(), "the daemon ended"
        assert time.monotonic() < deadline, f"/readyz says {status} {reasons}"
        await asyncio.sleep(0.1)


async def test_broker_lost_during_a_restore_is_waited_for(
    deployment: Deployment, reference: ReferenceRecommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that Kafka does not answer is tried again, and says so meanwhile."""
    servers, topics = deployment.servers, deployment.names
    away = True

    def lost(settings: Settings) -> AIOKafkaConsumer:
        if away:
            kafka = replace(settings.kafka, bootstrap_servers=f"127.0.0.1:{free_port()}")
            settings = replace(settings, kafka=kafka)
        return lone_consumer(settings)

    monkeypatch.setattr(daemon_module, "lone_consumer", lost)
    await produce(servers, topics.events, all_outgoing(EventMaker(seed=2, users=names("u", 5)).each()))
    async with inside(deployment, wait=False) as running:
        await _not_ready(running, "partition-0", "127.0.0.1")
        away = False
        await running.ready()
        outcome = await all_served(servers, topics)
    outcome.check_order()
    outcome.check_lists(reference)


async def test_broker_that_stays_away_ends_the_daemon(
    restartable_kafka: Broker, topic_names: TopicNames, checkpoint: Path, tmp_path: Path
) -> None:
    """When Kafka has been gone for the set time, a daemon that was at work stops and says why."""
    servers = restartable_kafka.bootstrap_servers
    with deployed(servers, topic_names, checkpoint, tmp_path) as deployment:
        async with inside(deployment, changes={"kafka.connect_timeout_seconds": 4}) as running:
            await asyncio.to_thread(restartable_kafka.kill)
            with pytest.raises(Fatal, match=r"kafka.connect_timeout_seconds"):
                await asyncio.wait_for(running.task, _NOTICED_SECONDS)


async def _makes_lists(running: Inside) -> None:
    """Wait until one more list was made."""
    before = running.metric("lists_total")
    await running.until(lambda: running.metric("lists_total") > before, "a list")
