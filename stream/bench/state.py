"""State at size: what a user takes, how fast it is built, and how long a restore takes with and without its files."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from msgspec import Struct

from mtgr.config import BLOCK_EVENTS
from stream.bench.environment import Bench, cpu_seconds
from stream.bench.page import markdown_table
from stream.bench.session_log import SessionLog, send
from stream.demo.daemon import DaemonProcess
from stream.kafka import client_options
from stream.settings import Settings
from stream.state import RocksStore
from stream.tools.partitioning import partition_of
from stream.topics import ensure_topics

_PARTITIONS: Final = 6
_READY_SECONDS: Final = 1_800.0
_QUIET_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.25
_AHEAD: Final = 2_000_000  # events sent that are not folded yet
_CHECKED_USERS: Final = 200
_FREE_BYTES: Final = 8 << 30  # of the disk, for whatever else it is used for
# what was read is not needed again: the disk holds a few minutes of events, not all of them
_SMALL: Final = {"segment.bytes": str(64 << 20), "retention.bytes": str(1 << 30)}


class Phase(Struct, frozen=True):
    """Events that were folded, and the rate of it: in all, and of processor time."""

    events: int
    per_second: float
    per_cpu_second: float


class StateResult(Struct, frozen=True):
    """Sizes in bytes, times in seconds from the assignment to the last partition's restore."""

    users: int
    user_events: int
    in_sessions: Phase
    scattered: Phase
    resident: int
    on_disk: int
    most_disk: int
    """At any time, Kafka's files included."""
    changelog_records: int
    changelog_bytes: int
    warm_seconds: float
    warm_records: int
    empty_seconds: float
    users_checked: int


def run(bench: Bench, checkpoint: Path, *, users: int, user_events: int) -> StateResult:
    """Let a daemon fold so many events of each user, in sessions, and one more of each in random order.

    Then restart it with its files and without, and compare what it holds of some users with what was sent. Raises
    RuntimeError where that differs, where the daemon comes no further, or where the disk is nearly full.
    """
    settings, values = bench.settings_to_fold(
        checkpoint,
        topics__partitions=_PARTITIONS,
        # no list is due before a restart; after it all are, and must not take the processor from the restore
        generator__max_batch_users=1,
        generator__max_concurrent_batches=1,
        stream__drain_deadline_seconds=0,
        log__format="json",
    )
    sessions = SessionLog(users, user_events)
    scattered = SessionLog(users, 1, session_events=1, at_once=users, seed=1)
    disk = _Disk(bench.directory)
    try:
        asyncio.run(_make_topics(settings))
        with bench.daemon(values) as daemon:
            daemon.wait_ready(_READY_SECONDS)
            feed = _Feed(settings, daemon, disk)
            first = asyncio.run(feed.fold(sessions))
            second = asyncio.run(feed.fold(scattered))
            metrics = daemon.metrics()
        on_disk = _bytes(settings.state.directory)
        with bench.daemon(values) as daemon:
            daemon.wait_ready(_READY_SECONDS)
            warm = _restore(daemon)
        checked = _check(settings, (sessions, scattered))
        shutil.rmtree(settings.state.directory)
        with bench.daemon(values) as daemon:
            daemon.wait_ready(_READY_SECONDS)
            empty = _restore(daemon)
        disk.look()
    finally:
        shutil.rmtree(settings.state.directory, ignore_errors=True)
    if not users == metrics["mtgr_state_users"] == warm.users == empty.users:
        raise RuntimeError(
            f"{warm.users} and {empty.users} users were restored of {metrics['mtgr_state_users']:.0f}"
        )
    return StateResult(
        users=users,
        user_events=user_events,
        in_sessions=first,
        scattered=second,
        resident=int(metrics["process_resident_memory_bytes"]),
        on_disk=on_disk,
        most_disk=disk.most,
        changelog_records=empty.records,
        changelog_bytes=empty.nbytes,
        warm_seconds=warm.seconds,
        warm_records=warm.records,
        empty_seconds=empty.seconds,
        users_checked=checked,
    )


def facts(result: StateResult) -> Sequence[tuple[str, str]]:
    """The result for people: what was measured, and what came out."""
    records = result.changelog_records
    return (
        ("users x events", f"{result.users:,} x {result.user_events:,}"),
        ("events/s, a user's in sessions of 20", _rates(result.in_sessions)),
        ("events/s, one more of every user, in random order", _rates(result.scattered)),
        ("memory of the daemon", f"{result.resident / 2**20:,.0f} MiB"),
        ("bytes a user, local files", f"{result.on_disk / result.users:,.0f}"),
        (
            "bytes a user, changelog as it was read",
            f"{result.changelog_bytes / result.users:,.0f} in {records / result.users:.1f} records",
        ),
        ("restart, files there", f"{result.warm_seconds:.1f} s"),
        (
            "restart, files gone",
            f"{result.empty_seconds:.1f} s, {records / result.empty_seconds:,.0f} records/s",
        ),
        ("disk at most, Kafka's included", f"{result.most_disk / 2**30:.1f} GiB"),
    )


def _rates(phase: Phase) -> str:
    return f"{phase.per_second:,.0f} ({phase.per_cpu_second:,.0f} a second of CPU)"


def section(result: StateResult, circumstances: str) -> str:
    """The result for a page."""
    return (
        f"{markdown_table(('what', 'measured'), facts(result))}\n"
        f"{circumstances}. {result.users_checked} users hold what was sent of them; "
        f"{result.changelog_records:,} records were restored without the files, {result.warm_records:,} with them."
    )


class _Disk:
    """What a directory takes, and the most it took when it was looked at."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.most = 0

    def look(self) -> None:
        self.most = max(self.most, _bytes(self._directory))
        if shutil.disk_usage(self._directory).free < _FREE_BYTES:
            raise RuntimeError(
                f"{self._directory}: less than {_FREE_BYTES >> 30} GiB are free: take fewer users or events"
            )


class _Feed:
    """Gives a daemon events no faster than it folds them, and takes the time."""

    def __init__(self, settings: Settings, daemon: DaemonProcess, disk: _Disk) -> None:
        self._settings = settings
        self._daemon = daemon
        self._disk = disk
        self._before = 0

    async def fold(self, log: SessionLog) -> Phase:
        """Send a log and wait until all of it is folded and durable; the rate from the first event to the last."""
        pid = self._daemon.child.pid
        started, cpu = time.monotonic(), cpu_seconds(pid)
        async for sent in send(self._settings, log):
            await self._until(sent - _AHEAD)
        await self._until(log.events)
        seconds, cpu = time.monotonic() - started, cpu_seconds(pid) - cpu
        self._before += log.events
        return Phase(log.events, log.events / seconds, log.events / cpu)

    async def _until(self, events: int) -> None:
        if events <= 0:
            return
        seen, moved = 0.0, time.monotonic()
        while True:
            metrics = await asyncio.to_thread(self._daemon.metrics)
            folded = metrics.get("mtgr_events_total", 0.0) - self._before
            await asyncio.to_thread(self._disk.look)
            if folded >= events and (folded > events or not metrics["mtgr_in_flight_bytes"]):
                return
            if folded > seen:
                seen, moved = folded, time.monotonic()
            elif time.monotonic() - moved > _QUIET_SECONDS:
                raise RuntimeError(f"the daemon folded {folded:.0f} of {events} events and no more")
            await asyncio.sleep(_POLL_SECONDS)


class _Restored(Struct, frozen=True):
    seconds: float
    records: int
    nbytes: int
    users: int


async def _make_topics(settings: Settings) -> None:
    await ensure_topics(settings)
    admin = AIOKafkaAdminClient(**client_options(settings.kafka))
    await admin.start()
    try:
        topic = ConfigResource(ConfigResourceType.TOPIC, settings.topics.events, _SMALL)
        await admin.alter_configs([topic])
    finally:
        await admin.close()


def _restore(daemon: DaemonProcess) -> _Restored:
    """From the assignment to the last restored partition, what was read and who was found, by the daemon's log."""
    assigned: list[dict[str, Any]] = []
    restored: list[dict[str, Any]] = []
    for line in daemon.child.output().splitlines():
        if line.startswith("{"):
            entry = json.loads(line)
            if entry["event"] == "partitions_assigned":
                assigned.append(entry)
            elif entry["event"] == "partition_restored":
                restored.append(entry)
    begun, *ends = (datetime.fromisoformat(entry["timestamp"]) for entry in (assigned[-1], *restored))
    return _Restored(
        (max(ends) - begun).total_seconds(),
        sum(entry["changelog_records"] for entry in restored),
        sum(entry["changelog_bytes"] for entry in restored),
        sum(entry["users"] for entry in restored),
    )


def _check(settings: Settings, logs: Sequence[SessionLog]) -> int:
    """See that the files hold as many events of some users as were sent of them; returns how many users."""
    users = logs[0].users
    events = sum(log.user_events for log in logs)
    some = range(0, users, max(users // _CHECKED_USERS, 1))
    root = settings.state.directory / settings.changelog_topic
    stores = [
        RocksStore(root / str(number), f"{settings.kafka.group_id}/{settings.topics.events}/{number}")
        for number in range(_PARTITIONS)
    ]
    try:
        for user in some:
            user_id = f"user-{user}"
            state = stores[partition_of(user_id.encode(), _PARTITIONS)].load(user_id)
            held = 0 if state is None else state.first_block * BLOCK_EVENTS + len(state)
            if held != events:
                raise RuntimeError(f"{events} events of {user_id} were sent, and {held} are in the state")
    finally:
        for store in stores:
            store.close()
    return len(some)


def _bytes(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # compacted away meanwhile
            continue
    return total
