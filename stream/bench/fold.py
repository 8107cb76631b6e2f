"""Events per second through fold, state, changelog and commit, on one core."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from msgspec import Struct

from mtgr.checkpoint import open_checkpoint
from schemas.events import Watch
from stream.bench.environment import Bench, cpu_seconds
from stream.bench.load import produce, watches
from stream.kafka import client_options
from stream.sequences import UserState
from stream.settings import Settings
from stream.state import RocksStore
from stream.tools.pacing import Unpaced
from stream.topics import ensure_topics

DELIVERIES = ("at_least_once", "exactly_once")

_POLL_SECONDS = 0.05
_WARM_SHARE = 0.1
_CHECKED_USERS = 200


class FoldResult(Struct, frozen=True):
    """One run: what it was given, how fast it was, and that its state is right."""

    partitions: int
    events: int
    users: int
    commit_interval_ms: int
    delivery: str
    events_per_second: float
    events_per_cpu_second: float
    users_checked: int


def run(
    bench: Bench,
    checkpoint: Path,
    *,
    partitions: int,
    events: int,
    users: int,
    commit_interval_ms: int,
    delivery: str,
) -> FoldResult:
    """Fill a topic, let a daemon on one core fold it all, and compare the state of some users with a pure fold.

    No list becomes due. The rate is that of committed offsets, from a tenth of the events to the last; the one by CPU
    second, of all the daemon's threads, says what it would be on a machine that does nothing else.
    """
    settings, values = bench.settings(
        topics__partitions=partitions,
        model__checkpoint=str(checkpoint.absolute()),
        generator__kind="torch",
        trigger__min_events=1_000_000,
        trigger__quiet_period_ms=0,
        trigger__max_wait_ms=86_400_000,
        stream__commit_interval_ms=commit_interval_ms,
        stream__delivery=delivery,
        stream__max_owed_requests=1_000_000_000,
    )
    asyncio.run(_fill(settings, events, users))
    with bench.daemon(values, cores="0") as daemon:
        daemon.wait_ready(120)
        rate, cpu_rate = asyncio.run(_watch_commits(settings, events, daemon.child.pid))
    checked = _check(settings, checkpoint, events, users)
    return FoldResult(partitions, events, users, commit_interval_ms, delivery, rate, cpu_rate, checked)


async def _fill(settings: Settings, events: int, users: int) -> None:
    await ensure_topics(settings)
    await produce(settings, watches(events, users, 10_000), Unpaced())


async def _watch_commits(settings: Settings, events: int, pid: int) -> tuple[float, float]:
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    await admin.start()
    try:
        begun: tuple[float, float, int] | None = None
        last_progress = time.monotonic()
        seen = 0
        while True:
            offsets = await admin.list_consumer_group_offsets(settings.kafka.group_id)
            committed = sum(found.offset for found in offsets.values() if found.offset > 0)
            now = time.monotonic()
            if committed > seen:
                seen, last_progress = committed, now
            elif now - last_progress > 60:
                raise RuntimeError(f"the daemon committed {seen} of {events} events and no more for a minute")
            if begun is None and committed >= events * _WARM_SHARE:
                begun = (now, cpu_seconds(pid), committed)
            if committed >= events:
                assert begun is not None
                done = committed - begun[2]
                return done / (now - begun[0]), done / (cpu_seconds(pid) - begun[1])
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        await admin.close()


def _check(settings: Settings, checkpoint: Path, events: int, users: int) -> int:
    """Compare what the daemon stored for some users with a fold of the same events here; returns how many."""
    max_events = open_checkpoint(checkpoint).config.max_events
    wanted = {f"user-{user}" for user in range(0, users, max(users // _CHECKED_USERS, 1))}
    expected: dict[str, list[Watch]] = defaultdict(list)
    for event in watches(events, users, 10_000):
        if event.user_id in wanted:
            expected[event.user_id].append(event)
    root = settings.state.directory / settings.changelog_topic
    stores = [
        RocksStore(root / str(number), f"{settings.kafka.group_id}/{settings.topics.events}/{number}")
        for number in range(settings.topics.partitions)
    ]
    try:
        for user_id, theirs in expected.items():
            pure = UserState(user_id)
            for number, event in enumerate(theirs):
                pure.fold(event, number, 0, None, max_events)
            found = [state for store in stores if (state := store.load(user_id)) is not None]
            if len(found) != 1 or (found[0].records, found[0].videos) != (pure.records, pure.videos):
                raise RuntimeError(f"the state of {user_id} is not the fold of its events")
    finally:
        for store in stores:
            store.close()
    return len(expected)
