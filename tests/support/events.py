"""Events for tests: plausible, seeded, and as records of a topic."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from checkpoints import ITEMS
from records import Outgoing

from schemas.codecs import CONTENT_TYPE_HEADER, JSON, ContentType, encode_event
from schemas.events import Event, Favorite, Like, Share, Watch

_EPOCH_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC


def watch(user_id: str, event_id: str, video_id: str = "v1", **fields: Any) -> Watch:
    """One valid event, with whatever fields the test is about."""
    defaults = {"timestamp_ms": _EPOCH_MS, "watch_seconds": 7.5, "watch_ratio": 0.5}
    return Watch(event_id=event_id, user_id=user_id, video_id=video_id, **(defaults | fields))


@dataclass
class EventMaker:
    """Goes on making events, all of different ids; the same seed makes the same events."""

    seed: int
    users: Sequence[str]
    prefix: str = "e"
    made: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def take(self, count: int) -> list[Event]:
        """The next events, of users in turn by chance, in order of time."""
        events = [self._one(len(self.made) + number) for number in range(count)]
        self.made += events
        return events

    def each(self) -> list[Event]:
        """One more event of every user."""
        events = [self._one(len(self.made) + number, user) for number, user in enumerate(self.users)]
        self.made += events
        return events

    def _one(self, number: int, user_id: str | None = None) -> Event:
        chance = self._random
        fields: dict[str, Any] = {
            "event_id": f"{self.prefix}-{number}",
            "user_id": user_id or chance.choice(self.users),
            # one video in twenty is not in the catalog
            "video_id": f"v{chance.randrange(ITEMS)}" if chance.random() < 0.95 else f"new{number}",
            "timestamp_ms": _EPOCH_MS + 1_000 * number,
            "session_id": f"s{number // 50}" if chance.random() < 0.5 else None,
        }
        kind = chance.choices((Watch, Like, Favorite, Share), (7, 1, 1, 1))[0]
        if kind is Watch:
            return Watch(watch_seconds=chance.uniform(0, 60), watch_ratio=chance.uniform(0, 2), **fields)
        if kind is Share:
            return Share(channel=chance.choice((None, "chat", "mail")), **fields)
        return kind(**fields)


def names(prefix: str, count: int) -> list[str]:
    """User ids: prefix0, prefix1, ..."""
    return [f"{prefix}{number}" for number in range(count)]


def outgoing(event: Event, content_type: ContentType | None = None, *headers: tuple[str, bytes]) -> Outgoing:
    """The event as its producer sends it: keyed by user, JSON where no content type is named."""
    named = [(CONTENT_TYPE_HEADER, content_type.encode())] if content_type else []
    return Outgoing(event.user_id.encode(), encode_event(event, content_type or JSON), [*named, *headers])


def all_outgoing(events: Iterable[Event]) -> list[Outgoing]:
    """Events as their producer sends them."""
    return [outgoing(event) for event in events]
