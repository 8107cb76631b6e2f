"""A daemon with a name of its own in the group keeps its partitions over a restart, and disturbs nobody."""

from __future__ import annotations

from daemons import Deployment, Running
from events import EventMaker, names
from expectations import all_committed, all_served, changelog_states
from generators import Script
from records import read_to_end
from traffic import traffic


async def test_a_named_daemon_gets_its_own_partitions_back(deployment: Deployment, engine: Script) -> None:
    """Restarted within its session, it takes up the same partitions from its files, and the others never stop."""
    servers, topics = deployment.servers, deployment.names
    maker = EventMaker(seed=7, users=names("u", 20))

    def start(name: str) -> Running:
        # a name is what makes it a static member; the session outlasts the restart on a busy machine
        changes = {"kafka.group_instance_id": name, "kafka.session_timeout_ms": 60_000}
        return deployment.start(name, {**changes, "kafka.rebalance_timeout_ms": 60_000})

    one, two = await start("one").ready(), await start("two").ready()
    for running in (one, two):
        await running.until_metric("mtgr_assigned_partitions", lambda partitions: partitions == 1)
        await running.ready()
    async with traffic(servers, topics.events, maker):
        for running in (one, two):
            await running.until_metric("mtgr_lists_total", lambda lists: lists > 10)
        before = one.logged("partitions_assigned"), two.logged("partitions_assigned")[-1]["partitions"]
        await two.drain()
        two = await start("two").ready()
        await two.until_metric("mtgr_lists_total", lambda lists: lists > 10)
    assert one.logged("partitions_assigned") == before[0]
    assert two.logged("partitions_assigned")[-1]["partitions"] == before[1]
    outcome = await all_served(servers, topics)
    await all_committed(servers, topics)
    await one.drain()
    await two.drain()
    outcome.check_order()
    outcome.check_lists(engine.reference)
    outcome.check_state(changelog_states(await read_to_end(servers, topics.changelog)))
