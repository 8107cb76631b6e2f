"""Sessions of users: behaviours come in, and what a generator is asked goes out. Pure.

A session is a run of packed records, as the daemon's sequences are (`mtgr.history`): a behaviour becomes its events, an
event that the session has had before is passed over, and what is too long is cut in whole blocks. So it makes no
difference whether an application sends all that happened each time, or only what is new.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta

from mtgr.arguments import check_argument
from mtgr.behaviors import Behavior, Kind, event_id_of, event_of, kinds_of, parse_behaviors
from mtgr.config import dropped_events
from mtgr.history import RECORD_BYTES, RECORD_DTYPE, event_digest, pack_event
from mtgr.new_videos import pack_profile
from mtgr.requests import ListRequest, Strategy
from schemas.bounds import MAX_TIMESTAMP_MS, SessionId, UserId

_Count = Annotated[int, Meta(ge=1)]

_REMEMBERED: Final = 65_536
"""Events of a session that are known when they come again, also after they were cut: all of the longest call."""


class BehaviorSessions:
    """The sessions in use, each known by its user and its id; any thread may use them.

    Beyond `max_sessions`, the session that was used longest ago is forgotten.
    """

    def __init__(self, max_events: int, *, max_sessions: int, clock: Callable[[], int]) -> None:
        """`max_events`: the length a sequence is cut back to, as the model's config has it; `clock`: milliseconds
        since 1970, which the first behaviour of a session gets that comes without a time."""
        self._max_events: Final = max_events
        self._max_sessions: Final[int] = check_argument("max_sessions", max_sessions, _Count)
        self._clock: Final = clock
        self._sessions: Final[dict[tuple[str, str], _Session]] = {}  # in the order they were used last
        self._lock: Final = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def request(
        self,
        user_id: str,
        session_id: str,
        behaviors: Iterable[Behavior | Mapping[str, Any]],
        num_recommendations: int,
        *,
        profile: Mapping[str, Any] | None = None,
        strategy: Strategy = "topk",
    ) -> ListRequest:
        """Append behaviours, oldest first, to a session, and ask for so many videos after all that it has.

        profile: what is known of the user, in place of what was known in this session; None for what was known.
        Raises InputError, with nothing appended, naming the argument, its value and what would be right.
        """
        key = _key(user_id, session_id)
        count: int = check_argument("num_recommendations", num_recommendations, _Count)
        made: Strategy = check_argument("strategy", strategy, Strategy)
        packed = None if profile is None else pack_profile(profile)
        parsed = parse_behaviors(behaviors)
        with self._lock:
            session = self._sessions.pop(key, None) or _Session()
            self._sessions[key] = session
            for behavior in parsed:
                session.append(behavior, *key, self._clock)
            session.cut(self._max_events)
            if packed is not None:
                session.profile = packed
            if len(self._sessions) > self._max_sessions:
                del self._sessions[next(iter(self._sessions))]
            # an engine keeps one history of each user: sessions side by side are users of their own to it
            name = f"{len(key[0])}:{key[0]}{key[1]}"
            return ListRequest(
                name, bytes(session.records), bytes(session.videos), count, made, session.profile
            )

    def forget(self, user_id: str, session_id: str) -> bool:
        """Forget a session; whether there was one."""
        key = _key(user_id, session_id)
        with self._lock:
            return self._sessions.pop(key, None) is not None


def _key(user_id: str, session_id: str) -> tuple[str, str]:
    return check_argument("user_id", user_id, UserId), check_argument("session_id", session_id, SessionId)


class _Session:
    """One session's history, as a request has it."""

    __slots__ = ("_appended", "_dropped", "_known", "_last_ms", "profile", "records", "videos")

    def __init__(self) -> None:
        self.records = bytearray()
        self.videos = bytearray()
        self.profile = b""
        self._appended = 0  # events, those that were dropped since among them
        self._dropped = 0
        self._last_ms = 0  # of the event appended last
        self._known: dict[bytes, None] = {}  # digests of events, oldest first

    def append(self, behavior: Behavior, user_id: str, session_id: str, clock: Callable[[], int]) -> None:
        """Append what is new of a behaviour's events."""
        for kind in kinds_of(behavior):
            event_id = event_id_of(kind, session_id, behavior)
            digest = event_digest(event_id)
            if digest in self._known:
                continue
            self._last_ms = self._time_of(kind, behavior, clock)
            event = event_of(kind, event_id, user_id, session_id, behavior, self._last_ms)
            video = event.video_id.encode()
            self.records += pack_event(event, digest, video)
            self.videos += video
            self._appended += 1
            self._known[digest] = None
            if len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]

    def cut(self, max_events: int) -> None:
        """Drop what a sequence of so many events has lost, in whole blocks, had they come one by one."""
        dropped = dropped_events(self._appended, max_events)
        surplus = dropped - self._dropped
        if not surplus:
            return
        self._dropped = dropped
        end = surplus * RECORD_BYTES
        table = np.frombuffer(bytes(self.records[:end]), RECORD_DTYPE)
        self.videos = self.videos[int(table["video_id_bytes"].sum(dtype=np.int64)) :]
        self.records = self.records[end:]

    def _time_of(self, kind: Kind, behavior: Behavior, clock: Callable[[], int]) -> int:
        if behavior.timestamp_ms is not None:
            return behavior.timestamp_ms
        if not self._appended:
            return clock()
        watched = round(1_000 * behavior.watch_duration) if kind == "watch" else 0
        return min(self._last_ms + watched, MAX_TIMESTAMP_MS)
