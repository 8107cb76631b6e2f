"""A daemon that comes back goes on where it stopped, and owes what it owed, however it went."""

from __future__ import annotations

import asyncio
import random
import shutil

import pytest
from daemons import Deployment
from events import EventMaker, all_outgoing, names
from expectations import all_committed, all_served, changelog_states, check_durable, stored_states
from generators import Script
from records import produce, read_to_end
from traffic import traffic

# nobody is due within the test: every list stays owed
_NEVER_DUE = {"trigger.quiet_period_ms": 3_600_000, "trigger.max_wait_ms": 3_600_000}


@pytest.mark.parametrize("local_state", ["kept", "deleted"])
async def test_lists_owed_at_a_crash_are_made_after_it(
    deployment: Deployment, engine: Script, local_state: str
) -> None:
    """Events that were committed but not served when the daemon was killed are served by the next, from the local
    files or from the changelog alone, without being read again."""
    servers, topics = deployment.servers, deployment.names
    events = EventMaker(seed=1, users=names("u", 10)).take(300)
    first = await deployment.start(changes=_NEVER_DUE).ready()
    await produce(servers, topics.events, all_outgoing(events))
    await all_committed(servers, topics)
    first.kill()
    await check_durable(servers, topics)
    assert await read_to_end(servers, topics.lists) == []
    if local_state == "deleted":
        shutil.rmtree(deployment.state_directory())
    second = await deployment.start().ready()
    outcome = await all_served(servers, topics)
    assert second.metrics()["mtgr_events_total"] == 0
    await second.drain()
    outcome.check_order()
    outcome.check_lists(engine.reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_nothing_is_lost_by_kills_at_random_moments(deployment: Deployment, engine: Script) -> None:
    """Whatever the moment of a kill -9 under traffic, what is committed is durable; in the end every user's last event
    has its list and the states are a pure fold, with local files kept or lost."""
    servers, topics = deployment.servers, deployment.names
    chance = random.Random(7)
    maker = EventMaker(seed=7, users=names("u", 40))
    # one user at a time, so that lists are owed at every moment
    slow = {"generator.max_batch_users": 1, "generator.max_concurrent_batches": 1}
    for round_number in range(4):
        running = deployment.start(changes=slow)
        async with traffic(servers, topics.events, maker):
            await running.ready()
            await running.until_metric("mtgr_lists_total", lambda lists: lists > 0)
            await asyncio.sleep(chance.uniform(0, 0.5))
            running.kill()
        await check_durable(servers, topics)
        if round_number % 2:
            shutil.rmtree(deployment.state_directory())
    running = await deployment.start().ready()
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    await running.drain()
    outcome.check_lists(engine.reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))


async def test_restart_in_good_order_repeats_nothing(deployment: Deployment, engine: Script) -> None:
    """Stopped by SIGTERM under traffic and started again, daemons make each list once and in order."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=9, users=names("u", 20))
    async with traffic(servers, topics.events, maker):
        for _ in range(2):
            running = await deployment.start().ready()
            await running.until_metric("mtgr_lists_total", lambda lists: lists > 20)
            await running.drain()
            assert running.logged("drained")
    running = await deployment.start().ready()
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    await running.drain()
    outcome.check_order()
    outcome.check_lists(engine.reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_damaged_files_are_restored_under_traffic(
    deployment: Deployment, engine: Script, delivery: str
) -> None:
    """A daemon that comes upon a damaged block, long after it has trusted the files, restores that partition from the
    changelog and goes on: nobody's history or list is lost."""
    servers, topics = deployment.servers, deployment.names
    changes = {"stream.delivery": delivery, "state.cache_mebibytes": 1}
    maker = EventMaker(seed=5, users=names("u", 300))
    running = await deployment.start(changes=changes).ready()
    for _ in range(18):
        await produce(servers, topics.events, all_outgoing(maker.each()))
    await all_committed(servers, topics)
    await running.drain()
    for table in (deployment.state_directory() / topics.changelog / "0").glob("*.sst"):
        content = bytearray(table.read_bytes())
        content[len(content) // 4] ^= 0xFF  # among the sealed blocks, which a start does not read
        table.write_bytes(content)
    running = await deployment.start(changes=changes).ready()
    async with traffic(servers, topics.events, maker, at_once=40):
        await running.until_metric("mtgr_state_repairs_total", lambda repairs: repairs == 1)
        await running.ready()
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    assert running.logged("state_files_corrupt")
    await running.drain()
    outcome.check_lists(engine.reference)
    outcome.check_state(stored_states(deployment.state_directory(), topics))
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))
