"""State at size: what a user takes, how fast it is built, and how long a restore takes with and without its files."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct
from rich.table import Table

from stream.bench.environment import Bench
from stream.bench.load import produce, watches
from stream.demo.daemon import DaemonProcess
from stream.settings import Settings
from stream.tools.pacing import Unpaced
from stream.topics import ensure_topics

_PARTITIONS = 6
_READY_SECONDS = 3_600.0
_QUIET_SECONDS = 120.0


class StateResult(Struct, frozen=True):
    """Sizes in bytes, times in seconds from the assignment to the last partition's restore."""

    users: int
    events: int
    events_per_second: float
    resident: int
    on_disk: int
    changelog_records: int
    warm_seconds: float
    warm_records: int
    empty_seconds: float


def run(bench: Bench, checkpoint: Path, *, users: int, events: int) -> StateResult:
    """Let a daemon fold so many events of so many users, and restart it with its files and without them."""
    settings, values = bench.settings(
        topics__partitions=_PARTITIONS,
        model__checkpoint=str(checkpoint.absolute()),
        generator__kind="torch",
        trigger__min_events=1_000_000,
        trigger__quiet_period_ms=0,
        trigger__max_wait_ms=86_400_000,
        stream__max_owed_requests=1_000_000_000,
        log__format="json",
    )
    asyncio.run(_fill(settings, users, events))
    with bench.daemon(values) as daemon:
        daemon.wait_ready(_READY_SECONDS)
        rate = _folded(daemon, events)
        metrics = daemon.metrics()
    on_disk = _bytes(settings.state.directory)
    with bench.daemon(values) as daemon:
        daemon.wait_ready(_READY_SECONDS)
        warm, warm_records, _ = _restore(daemon)
    shutil.rmtree(settings.state.directory)
    with bench.daemon(values) as daemon:
        daemon.wait_ready(_READY_SECONDS)
        empty, records, restored_users = _restore(daemon)
    if restored_users != metrics["mtgr_state_users"]:
        raise RuntimeError(f"{restored_users} users were restored of {metrics['mtgr_state_users']:.0f}")
    return StateResult(
        users=restored_users,
        events=events,
        events_per_second=rate,
        resident=int(metrics["process_resident_memory_bytes"]),
        on_disk=on_disk,
        changelog_records=records,
        warm_seconds=warm,
        warm_records=warm_records,
        empty_seconds=empty,
    )


def table(result: StateResult) -> Table:
    """The result for people."""
    shown = Table(
        title=f"State of {result.users:,} users, {result.events:,} events, {_PARTITIONS} partitions"
    )
    for column in (
        "events/s",
        "memory",
        "on disk",
        "bytes a user",
        "changelog records",
        "restart, files there",
        "restart, files gone",
        "records/s",
    ):
        shown.add_column(column, justify="right")
    shown.add_row(
        f"{result.events_per_second:,.0f}",
        f"{result.resident / 2**20:,.0f} MiB",
        f"{result.on_disk / 2**20:,.0f} MiB",
        f"{result.on_disk / result.users:,.0f}",
        f"{result.changelog_records:,}",
        f"{result.warm_seconds:.1f} s",
        f"{result.empty_seconds:.1f} s",
        f"{result.changelog_records / result.empty_seconds:,.0f}",
    )
    return shown


async def _fill(settings: Settings, users: int, events: int) -> None:
    await ensure_topics(settings)
    await produce(settings, watches(events, users, 10_000), Unpaced())


def _folded(daemon: DaemonProcess, events: int) -> float:
    """Events a second once all are folded and durable; RuntimeError where they come no further."""
    started = moved = time.monotonic()
    seen = 0.0
    while True:
        metrics = daemon.metrics()
        folded = metrics.get("mtgr_events_total", 0.0)
        now = time.monotonic()
        if folded >= events and not metrics["mtgr_in_flight_bytes"]:
            return events / (now - started)
        if folded > seen:
            seen, moved = folded, now
        elif now - moved > _QUIET_SECONDS:
            raise RuntimeError(f"the daemon folded {folded:.0f} of {events} events and no more")
        time.sleep(0.25)


def _restore(daemon: DaemonProcess) -> tuple[float, int, int]:
    """Seconds from the assignment to the last restored partition, the changelog records read, and the users found."""
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
    return (
        (max(ends) - begun).total_seconds(),
        sum(entry["changelog_records"] for entry in restored),
        sum(entry["users"] for entry in restored),
    )


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
