"""Memory of the daemon with so many users in state."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from msgspec import Struct

from stream.bench.environment import Bench
from stream.bench.load import produce, watches
from stream.settings import Settings
from stream.tools.pacing import Unpaced
from stream.topics import ensure_topics


class MemoryResult(Struct, frozen=True):
    """Resident memory when ready, and with the users in state; what lies on disk; in bytes."""

    users: int
    events: int
    cache_ceiling: int
    at_start: int
    with_users: int
    cached: int
    on_disk: int


def run(bench: Bench, checkpoint: Path, *, users: int, events: int) -> MemoryResult:
    """Let a daemon fold events of this many users, in random order, with the default ceiling of its cache."""
    settings, values = bench.settings_to_fold(checkpoint, topics__partitions=6)
    asyncio.run(ensure_topics(settings))
    with bench.daemon(values) as daemon:
        daemon.wait_ready(120)
        at_start = daemon.resident_bytes()
        asyncio.run(_fill(settings, users, events))
        deadline = time.monotonic() + 600
        while (metrics := daemon.metrics()).get("mtgr_events_total", 0) < events or metrics[
            "mtgr_in_flight_bytes"
        ]:
            if time.monotonic() > deadline:
                raise RuntimeError("the daemon has not folded the events within 600 seconds")
            time.sleep(0.5)
        return MemoryResult(
            users=int(metrics["mtgr_state_users"]),
            events=events,
            cache_ceiling=settings.state.cache_mebibytes << 20,
            at_start=at_start,
            with_users=int(metrics["process_resident_memory_bytes"]),
            cached=int(metrics["mtgr_state_cache_bytes"]),
            on_disk=sum(
                path.stat().st_size for path in settings.state.directory.rglob("*") if path.is_file()
            ),
        )


async def _fill(settings: Settings, users: int, events: int) -> None:
    await produce(settings, watches(events, users, 10_000), Unpaced())
