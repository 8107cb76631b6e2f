"""What is done to daemons, brokers, network, disk and engine; each fault ends with all things as they should be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import KafkaError
from cluster import BROKERS, Cluster, ClusterAdmin
from fleet import Fleet, Member, fill
from proxy import Proxy

SESSION_SECONDS = 3.0
_END_SECONDS = 60.0


@dataclass
class Field:
    """What faults act on."""

    fleet: Fleet
    cluster: Cluster
    proxy: Proxy
    admin: ClusterAdmin
    group: str
    events: str
    topics: Sequence[str]
    """Whose leaders are moved: those of the daemons and Kafka's own for offsets and transactions."""

    def member(self, chance: random.Random) -> Member:
        """A daemon that runs."""
        return chance.choice([member for member in self.fleet.members if member.is_running])


Strike = Callable[[Field, random.Random], Awaitable[str]]


async def kill_daemon(field: Field, chance: random.Random) -> str:
    """SIGKILL, and a start a moment later; of four one has lost its disk."""
    member = field.member(chance)
    member.kill()
    await asyncio.sleep(chance.uniform(0, 2))
    lost = chance.random() < 0.25
    if lost:
        member.lose_disk()
    member.start()
    return f"{member.name}{', its disk lost' if lost else ''}"


async def terminate_daemon(field: Field, chance: random.Random) -> str:
    """SIGTERM, after which it must end in good order, and a start."""
    member = field.member(chance)
    code = await member.end(_END_SECONDS)
    if code:
        field.fleet.ended_by_themselves.append(f"{member.name} ended with exit code {code} after SIGTERM")
    member.start()
    return member.name


async def freeze_daemon(field: Field, chance: random.Random) -> str:
    """SIGSTOP for longer than its session, and SIGCONT."""
    member = field.member(chance)
    seconds = SESSION_SECONDS + chance.uniform(0.5, 3)
    member.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        member.send(signal.SIGCONT)
    return f"{member.name} for {seconds:.1f} s"


async def kill_broker(field: Field, chance: random.Random) -> str:
    """SIGKILL, and a start a moment later."""
    broker = chance.choice(BROKERS)
    field.cluster.kill(broker)
    await asyncio.sleep(chance.uniform(0, 3))
    await asyncio.to_thread(field.cluster.restart, broker)
    return f"broker {broker}"


async def freeze_broker(field: Field, chance: random.Random) -> str:
    """SIGSTOP for less or more than the brokers' own session (3 s), and SIGCONT."""
    broker = chance.choice(BROKERS)
    seconds = chance.uniform(1, 6)
    field.cluster.freeze(broker)
    try:
        await asyncio.sleep(seconds)
    finally:
        field.cluster.thaw(broker)
    return f"broker {broker} for {seconds:.1f} s"


async def move_leaders(field: Field, chance: random.Random) -> str:
    """Every partition gets another leader, those of offsets and transactions too: their coordinators move."""
    topics = [topic for topic in field.topics if chance.random() < 0.7] or list(field.topics)
    moved = await field.admin.move_leaders(topics, chance.choice((1, 2)))
    return f"of {moved} partitions"


async def cut_connections(field: Field, chance: random.Random) -> str:
    """All connections of a daemon, to a broker or of all are cut; of two, one finds nobody for a while."""
    links, name = _links(field, chance)
    await field.proxy.tell(links, cut=True)
    if chance.random() < 0.5:
        return name
    seconds = chance.uniform(0.5, 4)
    await field.proxy.tell(links, cut=True, refuse=True)
    try:
        await asyncio.sleep(seconds)
    finally:
        await field.proxy.tell(links)
    return f"{name}, refused for {seconds:.1f} s"


async def delay_network(field: Field, chance: random.Random) -> str:
    """Every byte comes 20 to 400 ms late."""
    links, name = _links(field, chance)
    delay, seconds = chance.uniform(0.02, 0.4), chance.uniform(2, 4)
    await field.proxy.tell(links, delay=delay)
    try:
        await asyncio.sleep(seconds)
    finally:
        await field.proxy.tell(links)
    return f"{name}, {1000 * delay:.0f} ms for {seconds:.1f} s"


async def hold_network(field: Field, chance: random.Random) -> str:
    """No byte passes for longer than a session; then what was under way comes late, or the connections are cut."""
    member = field.member(chance)
    links = _links_of(field, member.name)
    seconds = SESSION_SECONDS + chance.uniform(0, 2)
    await field.proxy.tell(links, hold=True)
    cut = chance.random() < 0.5
    try:
        await asyncio.sleep(seconds)
    finally:
        await field.proxy.tell(links, cut=cut)
    return f"{member.name} for {seconds:.1f} s, then {'cut' if cut else 'all comes late'}"


async def fill_disk(field: Field, chance: random.Random) -> str:
    """Not a byte is left for a daemon's state while its partitions move; it may go on or stop, and has room again."""
    member = field.member(chance)
    assert member.disk is not None
    member.expected_to_end = True
    ballast = await asyncio.to_thread(fill, member.disk)
    try:
        await _visit(field, 1.0)
        await asyncio.sleep(chance.uniform(1, 3))
    finally:
        ballast.unlink()
    stopped = (
        not member.is_running
    )  # it may do so later too, by what it could not write: until the next fault
    if stopped:
        member.start()
    return f"{member.name}, which {'stopped' if stopped else 'went on'}"


async def crash_engine(field: Field, chance: random.Random) -> str:
    """The process of an engine is killed, one to three times; of four one is frozen, and killed by its daemon."""
    member = field.member(chance)
    times = chance.choice((1, 1, 2, 3))
    frozen = chance.random() < 0.25
    for _ in range(1 if frozen else times):
        if (pid := member.engine_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGKILL)
        await asyncio.sleep(chance.uniform(0.2, 0.6))
    return f"{member.name}, {'frozen' if frozen else f'killed {times} times'}"


async def storm_group(field: Field, chance: random.Random) -> str:
    """Members that do nothing join the group and leave it, one after another."""
    visits = chance.randrange(3, 6)
    for _ in range(visits):
        await _visit(field, chance.uniform(0.1, 0.6))
    return f"{visits} members came and went"


KINDS: dict[str, Strike] = {
    "daemon killed": kill_daemon,
    "daemon frozen": freeze_daemon,
    "daemon terminated": terminate_daemon,
    "broker killed": kill_broker,
    "broker frozen": freeze_broker,
    "leaders moved": move_leaders,
    "connections cut": cut_connections,
    "network slow": delay_network,
    "network held": hold_network,
    "disk full": fill_disk,
    "engine crashed": crash_engine,
    "rebalance storm": storm_group,
}
"""Every kind of fault by the name that reports give it."""

_ON_BROKERS = {"broker killed", "broker frozen"}
_ON_MEMBERS = {
    "daemon killed",
    "daemon frozen",
    "daemon terminated",
    "disk full",
    "engine crashed",
    "network held",
}


def plan(chance: random.Random, count: int, *, with_disks: bool) -> list[tuple[str, ...]]:
    """So many faults in an order by chance, all kinds about as often; of five strikes one is two faults at once.

    Two brokers are never away at once, nor are two of the daemons struck: with two of three brokers no topic can be
    written, and that takes time and proves little.
    """
    kinds = [kind for kind in KINDS if with_disks or kind != "disk full"]
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += chance.sample(kinds, len(kinds))
    drawn = drawn[:count]
    strikes: list[tuple[str, ...]] = []
    while drawn:
        first = drawn.pop(0)
        second = next((kind for kind in drawn if _go_together(first, kind)), None)
        if second is not None and chance.random() < 0.2:
            drawn.remove(second)
            strikes.append((first, second))
        else:
            strikes.append((first,))
    return strikes


def _go_together(first: str, second: str) -> bool:
    both = {first, second}
    return (
        len(both) == 2 and not both <= _ON_BROKERS and not both <= _ON_MEMBERS and "leaders moved" not in both
    )


def _links(field: Field, chance: random.Random) -> tuple[list[str], str]:
    names = [f"links of {member.name}" for member in field.fleet.members]
    names += [f"links to broker {broker}" for broker in BROKERS]
    chosen = chance.choice([*names, "all links"])
    if chosen == "all links":
        return list(field.proxy.links), chosen
    if chosen.startswith("links of"):
        return _links_of(field, chosen.rpartition(" ")[2]), chosen
    return [link for link in field.proxy.links if link.endswith(f"-{chosen[-1]}")], chosen


def _links_of(field: Field, member: str) -> list[str]:
    return [link for link in field.proxy.links if link.startswith(f"{member}-")]


async def _visit(field: Field, seconds: float) -> None:
    """Join the group with a member that reads nothing, and leave it."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=field.cluster.servers(),
        group_id=field.group,
        enable_auto_commit=False,
        session_timeout_ms=int(SESSION_SECONDS * 1000),
        heartbeat_interval_ms=int(SESSION_SECONDS * 1000 / 3),
        rebalance_timeout_ms=10_000,
        partition_assignment_strategy=(StickyPartitionAssignor,),
    )
    consumer.subscribe([field.events])
    try:
        with contextlib.suppress(TimeoutError, KafkaError):
            async with asyncio.timeout(15):
                await consumer.start()
                await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(TimeoutError, KafkaError, asyncio.CancelledError):
            async with asyncio.timeout(10):
                await consumer.stop()
