"""Exactly once, on a real broker: whatever is killed, frozen or cut off, a list is seen once and no state is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from brokers import Broker
from crashing import STEPS
from daemons import Deployment, deployed, inside
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, check_durable, stored_states
from generators import Script
from records import TopicNames, produce, read_to_end
from traffic import traffic

from mtgr.reference import ReferenceRecommender

_CRASHING = Path(__file__).parents[1] / "support" / "crashing.py"
_EXACTLY_ONCE = {
    "stream.delivery": "exactly_once",
    "kafka.session_timeout_ms": 1_500,
    "kafka.rebalance_timeout_ms": 15_000,
    "stream.drain_deadline_seconds": 10,
}


async def test_a_crash_at_any_step_repeats_no_list_and_loses_none(
    deployment: Deployment, engine: Script
) -> None:
    """Killed at each step of a transaction in turn, under traffic, daemons leave every list in the topic once, in
    order, and the states equal to the pure fold."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=1, users=names("u", 20))
    async with traffic(servers, topics.events, maker, at_once=5):
        for number, step in enumerate(STEPS):
            prefix = (sys.executable, str(_CRASHING), step, str(1 + number % 3))
            running = deployment.start(changes=_EXACTLY_ONCE, prefix=prefix)
            assert await running.ended() == -signal.SIGKILL, step
    await check_durable(servers, topics)
    last = await deployment.start(changes=_EXACTLY_ONCE).ready()
    await all_served(servers, topics)
    await all_committed(servers, topics)
    await last.drain()
    outcome = await all_served(servers, topics)
    outcome.check_order()
    outcome.check_lists(engine.reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_a_daemon_that_was_frozen_and_replaced_publishes_nothing_more(
    deployment: Deployment, engine: Script
) -> None:
    """A daemon that is frozen for longer than its session, with lists and events in hand, is fenced: when it wakes
    up nothing of that is seen, and it joins the group anew."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=3, users=names("u", 200))
    # rare commits: it is frozen between two of them, with work of many users in hand
    changes = {**_EXACTLY_ONCE, "stream.commit_interval_ms": 2_000, "trigger.max_wait_ms": 100}
    one, two = deployment.start("one", changes), deployment.start("two", changes)
    async with traffic(servers, topics.events, maker, at_once=50):
        for running in (one, two):
            await running.ready()
        for running in (one, two):
            await running.until_metric("mtgr_assigned_partitions", lambda partitions: partitions == 1)
            await running.ready()
        await two.until_metric("mtgr_commits_total", lambda commits: commits > 0)
        await two.until_metric("mtgr_in_flight_bytes", lambda nbytes: nbytes > 50_000)
        two.child.send(signal.SIGSTOP)
        await one.until_metric("mtgr_assigned_partitions", lambda partitions: partitions == 2)
    await all_served(servers, topics)
    await all_committed(servers, topics)
    before = await _places(servers, topics.lists)
    two.child.send(signal.SIGCONT)
    await two.until_logged("partitions_assigned", 2)
    for running in (one, two):
        await running.ready()
    assert await _places(servers, topics.lists) == before
    assert two.logged("transaction_abandoned")
    assert not [line for line in two.log() if line.get("logger") == "asyncio"]
    await one.drain()
    await two.drain()
    outcome = await all_served(servers, topics)
    outcome.check_order()
    outcome.check_lists(engine.reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_partitions_move_in_good_order(deployment: Deployment, reference: ReferenceRecommender) -> None:
    """A daemon that joins and one that leaves in good order, under traffic, give nothing up: all that was made is in
    the last commit."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=4, users=names("u", 20))
    script = Script(reference)
    async with inside(deployment, "one", _EXACTLY_ONCE, generator=script.make) as one:
        async with traffic(servers, topics.events, maker):
            await one.until(lambda: one.metric("lists_total") > 10, "lists of one")
            async with inside(deployment, "two", _EXACTLY_ONCE, generator=script.make) as two:
                await two.until(lambda: two.metric("lists_total") > 10, "lists of two")
            await one.until(lambda: one.metric("assigned_partitions") == 2, "both partitions back")
            await one.ready()
        await all_served(servers, topics)
        await all_committed(servers, topics)
        assert one.metric("commit_failures_total") == two.metric("commit_failures_total") == 0
    outcome = await all_served(servers, topics)
    outcome.check_order()
    outcome.check_lists(reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_a_broker_that_dies_in_the_middle_of_transactions_repeats_nothing(
    restartable_kafka: Broker,
    topic_names: TopicNames,
    checkpoint: Path,
    reference: ReferenceRecommender,
    tmp_path: Path,
) -> None:
    """Transactions that a broker's death cuts off are ended or made again: every list is seen once."""
    servers = restartable_kafka.bootstrap_servers
    maker = EventMaker(seed=5, users=names("u", 20))
    with deployed(servers, topic_names, checkpoint, tmp_path) as deployment:
        async with inside(deployment, changes=_EXACTLY_ONCE, generator=Script(reference).make) as running:
            async with traffic(servers, topic_names.events, maker):
                await running.until(lambda: running.metric("lists_total") > 10, "lists")
                await asyncio.to_thread(restartable_kafka.kill)
                await asyncio.to_thread(restartable_kafka.restart)
                before = running.metric("lists_total")
                await running.until(lambda: running.metric("lists_total") > before + 10, "more lists")
            await all_served(servers, topic_names)
            await all_committed(servers, topic_names)
        outcome = await all_served(servers, topic_names)
        outcome.check_order()
        outcome.check_lists(reference)
        outcome.check_state(changelog_states(await read_to_end(servers, topic_names.changelog)))


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_dead_letters_are_seen_once(
    deployment: Deployment, reference: ReferenceRecommender, delivery: str
) -> None:
    """What is no event is in the dead letters once, beside the lists of what is one."""
    servers, topics = deployment.servers, deployment.names
    events = all_outgoing(EventMaker(seed=6, users=names("u", 5)).take(20))
    bad = [one._replace(value=b"nonsense") for one in events[:10]]
    changes = {**_EXACTLY_ONCE, "stream.delivery": delivery}
    async with inside(deployment, changes=changes, generator=Script(reference).make):
        await produce(servers, topics.events, [*bad, *events])
        await all_served(servers, topics)
        await all_committed(servers, topics)
    assert len(await read_to_end(servers, topics.dead_letters)) == 10


async def _places(servers: str, topic: str) -> set[tuple[int, int]]:
    return {(record.partition, record.offset) for record in await read_to_end(servers, topic)}
