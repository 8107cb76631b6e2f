"""Histories of single users, as regular or as wild as a test wants them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
from events import EventMaker

from schemas.bounds import MAX_TIMESTAMP_MS
from schemas.events import Interaction

_YEAR_MS = 365 * 24 * 3_600_000


def interactions(seed: int, count: int, user_id: str = "u") -> list[Interaction]:
    """What one user did, a second apart."""
    return [event for event in EventMaker(seed, [user_id]).take(count) if isinstance(event, Interaction)]


def scattered(events: Sequence[Interaction], chance: random.Random) -> list[Interaction]:
    """The events at other times: late ones, several at once, and with gaps of up to a century."""
    now = events[0].timestamp_ms if events else 0
    moved = []
    for event in events:
        step = chance.choice((0, 1, 999, 1_000, 60_000, -1_000, -86_400_000, 86_400_000, _YEAR_MS))
        now = min(max(now + step * chance.randint(0, 3), 0), MAX_TIMESTAMP_MS)
        at = chance.choice((0, MAX_TIMESTAMP_MS)) if chance.random() < 0.02 else now
        moved.append(msgspec.structs.replace(event, timestamp_ms=at))
    return moved
