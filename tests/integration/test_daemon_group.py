"""Daemons of one group share the partitions, and take over from each other without losing anything."""

from __future__ import annotations

import signal

from daemons import Deployment, Running, inside
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, check_durable, stored_states
from generators import Script
from records import Outgoing, produce, read_to_end
from traffic import traffic

from mtgr.reference import ReferenceRecommender
from stream.stored import user_of_tail_key


async def test_partitions_move_between_daemons_in_good_order(deployment: Deployment, engine: Script) -> None:
    """A daemon that joins takes its share and one that leaves gives it back, under traffic: each list is made once, in
    the order of its user's events, and the states are a pure fold."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=1, users=names("u", 20))
    one, two = deployment.start("one"), deployment.start("two")
    async with traffic(servers, topics.events, maker):
        await one.ready()
        await two.ready()
        await _has_partitions(one, 1)
        await _has_partitions(two, 1)
        for running in (one, two):
            await running.until_metric("mtgr_lists_total", lambda lists: lists > 10)
        await two.drain()
        await _has_partitions(one, 2)
        two = await deployment.start("two").ready()
        await _has_partitions(two, 1)
        await two.until_metric("mtgr_lists_total", lambda lists: lists > 10)
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    await one.drain()
    await two.drain()
    outcome.check_order()
    outcome.check_lists(engine.reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_daemon_takes_over_from_one_that_was_killed(deployment: Deployment, engine: Script) -> None:
    """When a daemon is killed under traffic, the other serves its users too, what the dead one owed included, and gives
    their partition back when it returns."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=2, users=names("u", 20))
    one, two = deployment.start("one"), deployment.start("two")
    async with traffic(servers, topics.events, maker):
        await one.ready()
        await two.ready()
        await _has_partitions(one, 1)
        await two.until_metric("mtgr_lists_total", lambda lists: lists > 10)
        two.kill()
        await check_durable(servers, topics)
        await _has_partitions(one, 2)
    await all_served(servers, topics)
    two = deployment.start("two")
    async with traffic(servers, topics.events, maker):
        await two.ready()
        await _has_partitions(two, 1)
        await two.until_metric("mtgr_lists_total", lambda lists: lists > 10)
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    await one.drain()
    await two.drain()
    outcome.check_lists(engine.reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def _has_partitions(running: Running, count: int) -> None:
    """Wait until a daemon has so many partitions, all of them restored."""
    await running.until_metric("mtgr_assigned_partitions", lambda partitions: partitions == count)
    await running.ready()


async def test_daemon_that_was_suspended_sets_nothing_back(deployment: Deployment, engine: Script) -> None:
    """A daemon that is frozen for longer than its session, and wakes up when another has gone on with its users, drops
    what it still held and joins the group anew."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=3, users=names("u", 200))
    # rare commits: it is frozen between two of them, with work of many users in hand
    changes = {"stream.commit_interval_ms": 2_000, "kafka.session_timeout_ms": 1_500}
    one, two = deployment.start("one", changes), deployment.start("two", changes)
    async with traffic(servers, topics.events, maker, at_once=50):
        await one.ready()
        await two.ready()
        await _has_partitions(one, 1)
        await two.until_metric("mtgr_commits_total", lambda commits: commits > 0)
        await two.until_metric("mtgr_in_flight_bytes", lambda nbytes: nbytes > 50_000)
        two.child.send(signal.SIGSTOP)
        await _has_partitions(one, 2)
    await all_served(servers, topics)
    await all_committed(servers, topics)
    two.child.send(signal.SIGCONT)
    await two.until_logged("partitions_assigned", 2)
    await _has_partitions(two, 1)
    await one.drain()
    await two.drain()
    outcome = await all_served(servers, topics)
    outcome.check_lists(engine.reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_owner_writes_again_what_another_daemon_wrote_over(
    deployment: Deployment, reference: ReferenceRecommender
) -> None:
    """What a daemon that lost its partitions writes all the same, because it was suspended behind its check, is seen
    by the owner and set right by its next commit."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=6, users=names("u", 10))
    async with inside(deployment, generator=Script(reference).make):
        await produce(servers, topics.events, all_outgoing(maker.each()))
        await all_served(servers, topics)
        await all_committed(servers, topics)
        stale = {r.key: r for r in await read_to_end(servers, topics.changelog) if user_of_tail_key(r.key)}
        await produce(servers, topics.events, all_outgoing(maker.each()))
        await all_served(servers, topics)
        await all_committed(servers, topics)
        late = [Outgoing(r.key, r.value, partition=r.partition) for r in stale.values()]
        await produce(servers, topics.changelog, late)
        # one more event in each partition: those of the other users are set right all the same
        partitions = {record.partition: user_of_tail_key(key) for key, record in stale.items()}
        more = [
            next(event for event in maker.each() if event.user_id == user) for user in partitions.values()
        ]
        await produce(servers, topics.events, all_outgoing(more))
        await all_served(servers, topics)
        await all_committed(servers, topics)
    outcome = await all_served(servers, topics)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))
