"""Synthetic load: events of so many users, put into a topic before or while a daemon reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from schemas.codecs import JSON
from schemas.events import Event, Watch
from stream.settings import Settings
from stream.tools.pacing import Pace
from stream.tools.producer import EventProducer

_BUNCH = 2_000
_START_MS = 1_750_000_000_000  # fixed, so that the same call gives the same events


def watches(events: int, users: int, videos: int, seed: int = 0) -> Iterator[Watch]:
    """Watch events of about 200 bytes of JSON, users in random order, every user about as often."""
    random = np.random.default_rng(seed)
    for first in range(0, events, _BUNCH):
        count = min(_BUNCH, events - first)
        user = random.integers(0, users, count).tolist()
        video = random.integers(0, videos, count).tolist()
        seconds = random.uniform(0, 60, count).round(2).tolist()
        for i in range(count):
            yield Watch(
                event_id=f"{seed:04x}-{first + i:012x}",
                user_id=f"user-{user[i]}",
                video_id=f"video-{video[i]}",
                timestamp_ms=_START_MS + first + i,
                watch_seconds=seconds[i],
                watch_ratio=round(seconds[i] / 60, 3),
                video_seconds=60.0,
                session_id=f"session-{user[i]}",
            )


async def produce(settings: Settings, events: Iterator[Event], pace: Pace) -> None:
    """Send events as `mtgr-stream produce` does, and wait for their acknowledgement."""
    producer = EventProducer(settings.kafka, settings.topics.events, pace, JSON, lambda _: None)
    await producer.run(_bunches(events))


def _bunches(events: Iterator[Event]) -> Iterator[Sequence[Event]]:
    while bunch := list(islice(events, _BUNCH)):
        yield bunch
