"""An event log as the daemon would hold it: one history for each user, duplicates left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mtgr.evaluation.profiles import ProfileTimeline
from mtgr.history import History, event_digest, pack_event
from schemas.events import Event


class EventLog:
    """What a log tells of each user: `histories` as the daemon would hold them, and `profiles` over time."""

    def __init__(self, histories: dict[str, History], profiles: ProfileTimeline | None = None) -> None:
        self.histories: Final = histories
        self.profiles: Final = ProfileTimeline() if profiles is None else profiles

    @classmethod
    def collect(cls, events: Iterable[Event]) -> EventLog:
        """Group events by user; an event_id a user already has is left out, as the daemon leaves it out."""
        users: dict[str, tuple[bytearray, bytearray, set[bytes]]] = {}
        profiles = ProfileTimeline()
        for event in profiles.taken_from(events):
            records, videos, known = users.setdefault(event.user_id, (bytearray(), bytearray(), set()))
            digest = event_digest(event.event_id)
            if digest in known:
                continue
            known.add(digest)
            video = event.video_id.encode()
            records += pack_event(event, digest, video)
            videos += video
        return cls(
            {
                user: History.from_bytes(bytes(records), bytes(videos))
                for user, (records, videos, _) in users.items()
            },
            profiles,
        )

    def __len__(self) -> int:
        return sum(len(history) for history in self.histories.values())
