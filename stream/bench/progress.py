"""How fast a group works through a topic, by the offsets it commits and the processor time it takes."""

from __future__ import annotations

import asyncio
import time

from msgspec import Struct

from stream.bench.environment import cpu_seconds
from stream.bench.event_topic import EventTopic, offsets_reader
from stream.settings import Settings

_POLL_SECONDS = 0.05
_WARM_SHARE = 0.1
_WARM_SECONDS = 2.0
_STUCK_SECONDS = 60.0


class Rate(Struct, frozen=True):
    """Events a second from one commit to another, and a second of processor time of all threads of the process."""

    per_second: float
    per_cpu_second: float


class _Sample(Struct, frozen=True):
    at: float
    cpu: float
    committed: int


async def follow(settings: Settings, topic: EventTopic, pid: int, seconds: float) -> Rate:
    """Return once the topic is committed whole, or so many seconds after the first tenth of it (or two seconds).

    The commit that finds the topic at its end counts only where there is no other: it may have waited for its time with
    nothing left to do. Raises RuntimeError where nothing is committed for a minute, or all of it at once.
    """
    first: _Sample | None = None
    begun: _Sample | None = None
    last = before = _Sample(time.monotonic(), 0.0, 0)
    async with offsets_reader(settings.kafka) as read:
        while True:
            committed = sum((await read()).values())
            now = time.monotonic()
            if committed > last.committed:
                before, last = last, _Sample(now, cpu_seconds(pid), committed)
                first = first or last
                if begun is None and (
                    committed >= topic.events * _WARM_SHARE or now - first.at > _WARM_SECONDS
                ):
                    begun = last
                if begun is last and committed >= topic.events:
                    raise RuntimeError(
                        f"{settings.kafka.group_id} committed {committed} events at once: give it more"
                    )
            elif now - last.at > _STUCK_SECONDS:
                raise RuntimeError(
                    f"{settings.kafka.group_id} committed {last.committed} of {topic.events} events and no more "
                    f"for {_STUCK_SECONDS:.0f} seconds"
                )
            over = begun is not None and now - begun.at > seconds
            if begun is not None and last is not begun and (over or committed >= topic.events):
                end = before if committed >= topic.events and before.at > begun.at else last
                done = end.committed - begun.committed
                return Rate(done / (end.at - begun.at), done / (end.cpu - begun.cpu))
            await asyncio.sleep(_POLL_SECONDS)
