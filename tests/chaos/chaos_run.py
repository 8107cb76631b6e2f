"""One chaos run: a cluster, three daemons, events that go on, faults one after another, and the checker at the end."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import faults
from batches import check_fencing, read_batches
from checker import Checker, Delivery, OffsetSample, Verdict
from cluster import BROKERS, Cluster, ClusterAdmin
from faults import SESSION_SECONDS, Field
from fleet import Disk, Fleet, Member, Owners, until
from msgspec import Struct, msgpack
from observing import Feeder, Sampler, Watcher, end_offsets, read_topic
from proxy import Proxy
from rocksdict import AccessType, Options, Rdict
from workload import Workload

from stream.settings import load_settings
from stream.topics import ensure_topics

MEMBERS = ("one", "two", "three")
PARTITIONS = 6
RECOVERY_SECONDS = 120.0
_KAFKAS_OWN = ("__consumer_offsets", "__transaction_state")
_CATCH_UP_RATE = 20_000.0

Say = Callable[[str], None]


class Plan(Struct, frozen=True, kw_only=True):
    """How a run is made; the same seed makes the same faults in the same order, and the same events."""

    delivery: Delivery
    seed: int
    faults: int
    events: int
    rate: float
    """Events a second while faults are made; those still missing at the end come as fast as they can."""
    users: int = 3_000
    strikes: tuple[tuple[str, ...], ...] = ()
    """Which faults, those at once together, in place of `faults` by chance."""


class Strike(Struct, frozen=True):
    """One fault, or two at once."""

    kinds: tuple[str, ...]
    what: str
    seconds: float
    """From the strike until all is as it should be: daemons ready, replicas in sync, lists in every partition."""
    silence_seconds: float
    """The longest time that a partition went without a new list."""


class Outcome(Struct, kw_only=True):
    """What a run came to."""

    plan: Plan
    strikes: list[Strike]
    seconds: float
    verdict: Any
    ended_by_themselves: list[str]
    skipped: list[str]

    @property
    def faults(self) -> int:
        """Faults, those at once counted one by one."""
        return sum(len(strike.kinds) for strike in self.strikes)

    @property
    def problems(self) -> list[str]:
        """Whatever must not be, none for a run that proves what was promised."""
        verdict: Verdict = self.verdict
        found = [f"{kind.value}: {text}" for kind, shown in verdict.failures.items() for text in shown]
        return found + self.ended_by_themselves


class Rig:
    """A cluster with proxies before it and disks for the daemons, which several runs may use one after another."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cluster = Cluster(directory / "kafka", [member.upper() for member in MEMBERS])
        self.disks: dict[str, Disk | None] = {}
        self.keeps = False

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Rig]:
        """Up during the block; nothing of it is left on disk where the block ends well and no run had a problem."""
        cluster = self.cluster
        links = {
            f"{member}-{broker}": (
                cluster.advertised[member.upper(), broker],
                cluster.ports[member.upper(), broker],
            )
            for member in MEMBERS
            for broker in BROKERS
        }
        async with AsyncExitStack() as stack:
            stack.callback(cluster.close)
            await asyncio.to_thread(cluster.start)
            self.proxy = await stack.enter_async_context(Proxy(links))
            self.admin = await stack.enter_async_context(ClusterAdmin(cluster.servers()))
            for member in MEMBERS:
                disk = self.disks[member] = Disk.make(self.directory / f"disk-{member}")
                if disk is not None:
                    stack.callback(disk.close)
            yield self
        if not self.keeps:
            shutil.rmtree(self.directory)


async def run(rig: Rig, plan: Plan, say: Say) -> Outcome:
    """Make the run and judge it; raises AssertionError where daemons do not recover from a fault in time."""
    started = time.monotonic()
    name = f"chaos-{plan.delivery.replace('_', '-')}"
    settings = _settings(name, plan)
    servers = rig.cluster.servers()
    direct = {**settings, "kafka.bootstrap_servers": servers}
    await ensure_topics(load_settings(None, {}, [f"{key}={value}" for key, value in direct.items()]))
    directory = rig.directory / name
    directory.mkdir()
    members = [
        Member(
            member,
            directory,
            {
                **settings,
                "kafka.bootstrap_servers": rig.cluster.servers(member.upper()),
                "kafka.client_id": member,
            },
            disk.path if (disk := rig.disks[member]) is not None else None,
        )
        for member in MEMBERS
    ]
    fleet = Fleet(members)
    topics = (f"{name}-events", f"{name}-lists", f"{name}-dead", f"{name}-changelog")
    with_disks = all(disk is not None for disk in rig.disks.values())
    chance = random.Random(f"{plan.seed} {plan.delivery}")
    field = Field(fleet, rig.cluster, rig.proxy, rig.admin, name, topics[0], (*topics, *_KAFKAS_OWN))
    feeder = Feeder(servers, topics[0], Workload(plan.seed, plan.users), plan.rate)
    watcher = Watcher(servers, topics[1], PARTITIONS)
    sampler = Sampler(rig.admin, servers, name, topics[0], topics[3])
    try:
        await fleet.start()
        async with sampler.sampling(PARTITIONS):
            async with feeder.feeding(), watcher.watching():
                await until(lambda: watcher.has_seen_all_since(started), "lists in every partition", 60)
                strikes = [
                    await _strike(field, watcher, chance, kinds, say)
                    for kinds in plan.strikes or faults.plan(chance, plan.faults, with_disks=with_disks)
                ]
                say(f"{feeder.acknowledged} events so far")
                if feeder.acknowledged < plan.events:
                    await feeder.until(plan.events, _CATCH_UP_RATE, 300)
            await _settle(rig, fleet, name, topics[0])
        await fleet.end()
        assert not feeder.failed, f"{feeder.failed} events were refused by Kafka"
        committed = await rig.admin.committed(name, topics[0])
        verdict = await asyncio.to_thread(
            _judge, rig, fleet, plan, topics, sampler.samples, committed, feeder.acknowledged
        )
    finally:
        fleet.close()
    for member in members:
        member.lose_disk()
    skipped = [] if with_disks else ["disk full: no file system can be mounted here"]
    seconds = time.monotonic() - started
    outcome = Outcome(
        plan=plan,
        strikes=strikes,
        seconds=seconds,
        verdict=verdict,
        ended_by_themselves=fleet.ended_by_themselves,
        skipped=skipped,
    )
    rig.keeps = rig.keeps or bool(outcome.problems)
    return outcome


async def _strike(
    field: Field, watcher: Watcher, chance: random.Random, kinds: tuple[str, ...], say: Say
) -> Strike:
    """Carry out a fault, or two at once, and wait until all is as it should be."""
    begun = time.monotonic()
    watcher.forget_before(begun - 1)
    for member in field.fleet.members:
        member.expected_to_end = False
    # each has a chance of its own, so that what one draws does not depend on how fast the other is
    done = await asyncio.gather(
        *(faults.KINDS[kind](field, random.Random(chance.random())) for kind in kinds)
    )
    lifted = time.monotonic()

    async def recovered() -> bool:
        await field.fleet.revive()
        if not watcher.has_seen_all_since(lifted):
            return False
        return await field.fleet.are_ready() and not await field.admin.out_of_sync()

    await until(recovered, f"recovery from {' and '.join(kinds)}: {'; '.join(done)}", RECOVERY_SECONDS)
    ended = time.monotonic()
    strike = Strike(kinds, "; ".join(done), ended - begun, watcher.longest_silence(begun, ended))
    say(
        f"{' and '.join(kinds)} ({strike.what}): {strike.seconds:.1f} s, no list for {strike.silence_seconds:.1f} s"
    )
    await asyncio.sleep(chance.uniform(0.1, 0.5))
    return strike


async def _settle(rig: Rig, fleet: Fleet, group: str, events: str) -> None:
    """Wait until all that was sent is committed and nobody is owed a list."""
    admin = rig.admin

    async def settled() -> bool:
        await fleet.revive()
        if not await fleet.are_ready() or await fleet.owed():
            return False
        committed = await admin.committed(group, events)
        return committed == await end_offsets(rig.cluster.servers(), events, PARTITIONS)

    await until(settled, "the end of all work", 180)


def _judge(
    rig: Rig,
    fleet: Fleet,
    plan: Plan,
    topics: tuple[str, ...],
    samples: Sequence[OffsetSample],
    committed: Mapping[int, int],
    sent: int,
) -> Verdict:
    servers = rig.cluster.servers()
    events, lists, dead, changelog = topics
    checker = Checker(plan.delivery, events, Owners(fleet))
    checker.read_events(read_topic(servers, events, PARTITIONS), sent)
    checker.read_dead_letters(read_topic(servers, dead, PARTITIONS))
    checker.read_lists(read_topic(servers, lists, PARTITIONS))
    checker.read_changelog(read_topic(servers, changelog, PARTITIONS), samples)
    checker.read_offsets(committed)
    for partition, values in _files(fleet, changelog).items():
        checker.read_files(partition, values)
    if plan.delivery == "exactly_once":
        check_fencing(read_batches(rig.cluster.data(BROKERS[0]), lists), checker.verdict)
    return checker.verdict


def _files(fleet: Fleet, changelog: str) -> Mapping[int, dict[bytes, bytes]]:
    """What lies in the local files of each partition's last owner: whose files go furthest."""
    furthest: dict[int, tuple[int, Path]] = {}
    for member in fleet.members:
        for path in (member.state_directory / changelog).glob("[0-9]*"):
            store = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only())
            written = store.get(b"m")
            store.close()
            if written is None:
                continue  # begun anew, and nothing came of it
            meta = msgpack.decode(written)
            partition = int(path.name)
            if meta["checkpoint"] > furthest.get(partition, (-1, path))[0]:
                furthest[partition] = (meta["checkpoint"], path)
    found = {}
    for partition, (_, path) in furthest.items():
        store = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.read_only())
        found[partition] = {key: value for key, value in store.items() if key != b"m"}
        store.close()
    return found


def _settings(name: str, plan: Plan) -> dict[str, object]:
    return {
        "kafka.group_id": name,
        "kafka.session_timeout_ms": int(SESSION_SECONDS * 1000),
        "kafka.rebalance_timeout_ms": 10_000,
        "topics.events": f"{name}-events",
        "topics.lists": f"{name}-lists",
        "topics.dead_letters": f"{name}-dead",
        "topics.changelog": f"{name}-changelog",
        "topics.partitions": PARTITIONS,
        "topics.replication_factor": len(BROKERS),
        "generator.kind": "server",
        "generator.url": "http://127.0.0.1:9",  # never asked: daemon_under_test.py brings its own engine
        "generator.list_length": 3,
        "generator.request_timeout_seconds": 3,
        "trigger.quiet_period_ms": 50,
        "trigger.max_wait_ms": 300,
        "state.store_mebibytes": 8,
        "stream.delivery": plan.delivery,
        "stream.drain_deadline_seconds": 5,
        "stream.transaction_timeout_ms": 20_000,
        "log.format": "json",
    }
