"""What is sent in a chaos run: seeded events of many users in short visits, some of which are not as they should be."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, NamedTuple

import msgspec

from schemas.codecs import CONTENT_TYPE_HEADER, MESSAGEPACK, encode_event
from schemas.events import Favorite, Forget, Interaction, Like, Profile, Share, Watch

_EPOCH_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
_VISITORS = 200  # users who do something at the same time
_VISIT = 0.8  # that a visitor stays after an event
_MESSAGEPACK = ((CONTENT_TYPE_HEADER, MESSAGEPACK.encode()),)


class Sent(NamedTuple):
    """A record for the events topic."""

    key: bytes
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class Workload:
    """Goes on making records; the same seed makes the same ones.

    Of a hundred records about two tell a profile, one and a half repeat an event of a moment ago, one is no event or
    has another user's key, and of ten thousand five forget a user.
    """

    def __init__(self, seed: int, users: int) -> None:
        self._random = random.Random(seed)
        self._users = users
        self._visitors = [self._someone() for _ in range(_VISITORS)]
        self._recent: deque[tuple[str, Sent]] = deque(maxlen=500)
        self._made = 0

    def take(self, count: int) -> list[Sent]:
        """The next records."""
        return [self._one() for _ in range(count)]

    def _someone(self) -> str:
        return f"user-{self._random.randrange(self._users)}"

    def _one(self) -> Sent:
        chance = self._random
        self._made += 1
        number = self._made
        kind = chance.random()
        if kind < 0.015 and self._recent:
            return chance.choice(self._recent)[1]
        visitor = chance.randrange(_VISITORS)
        user = self._visitors[visitor]
        if chance.random() > _VISIT:
            self._visitors[visitor] = self._someone()
        moment = _EPOCH_MS + 10 * number
        if kind < 0.020:
            return Sent(user.encode(), b'{"type": "watch", "event_id"')
        if kind < 0.025:
            return Sent(b"not-" + user.encode(), encode_event(self._interaction(user, number, moment)))
        if kind < 0.0255:
            # what is repeated must not come from before it: that would count as new, and its list as made twice
            self._recent = deque((one for one in self._recent if one[0] != user), maxlen=500)
            return _sent(Forget(event_id=f"forget-{number}", user_id=user, timestamp_ms=moment))
        if kind < 0.045:
            told: dict[str, Any] = {
                "country": chance.choice(("de", "fr", "jp")),
                "age": chance.randrange(16, 90),
            }
            return _sent(
                Profile(event_id=f"profile-{number}", user_id=user, timestamp_ms=moment, attributes=told)
            )
        sent = _sent(self._interaction(user, number, moment), in_messagepack=chance.random() < 0.1)
        self._recent.append((user, sent))
        return sent

    def _interaction(self, user: str, number: int, moment: int) -> Interaction:
        chance = self._random
        video = f"video-{chance.randrange(10_000)}"
        session = f"session-{number // 1_000}" if chance.random() < 0.5 else None
        about = {
            "event_id": f"{number:08x}",
            "user_id": user,
            "video_id": video,
            # one in fifty comes late
            "timestamp_ms": moment - (600_000 if chance.random() < 0.02 else 0),
            "session_id": session,
        }
        kinds: list[type[Watch | Like | Favorite | Share]] = [Watch, Like, Favorite, Share]
        kind = chance.choices(kinds, (7, 1, 1, 1))[0]
        if kind is Watch:
            seconds = round(chance.uniform(0, 60), 2)
            about |= {"watch_seconds": seconds, "watch_ratio": round(seconds / 60, 3), "video_seconds": 60.0}
        elif kind is Share:
            about["channel"] = chance.choice((None, "chat", "mail"))
        return msgspec.convert(about, kind)


def _sent(event: Interaction | Profile | Forget, *, in_messagepack: bool = False) -> Sent:
    if in_messagepack:
        return Sent(event.user_id.encode(), encode_event(event, MESSAGEPACK), _MESSAGEPACK)
    return Sent(event.user_id.encode(), encode_event(event))
