"""An event log as the daemon would hold it: one history for each user, duplicates left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mtgr.attributes import pack_attributes
from mtgr.catalog import Catalog
from mtgr.errors import InputError
from mtgr.history import History, event_digest, pack_event
from schemas.events import Event, Profile


class EventLog:
    """What a log tells of each user, as the daemon would hold it.

    histories: events in the order they came; profiles: packed attributes, the newest by time, of the users of
    whom the log holds some.
    """

    def __init__(self, histories: dict[str, History], profiles: dict[str, bytes] | None = None) -> None:
        self.histories = histories
        self.profiles = profiles or {}

    @classmethod
    def collect(cls, events: Iterable[Event]) -> EventLog:
        """Group events by user; an event_id a user already has is left out, as the daemon leaves it out.

        A profile is no part of a history: the newest replaces the ones before it, of equally new ones the last.
        """
        users: dict[str, tuple[bytearray, bytearray, set[bytes]]] = {}
        profiles: dict[str, tuple[int, bytes]] = {}
        for event in events:
            if isinstance(event, Profile):
                if event.timestamp_ms >= profiles.get(event.user_id, (0, b""))[0]:
                    packed = pack_attributes(event.attributes)
                    profiles[event.user_id] = (event.timestamp_ms, packed)
                continue
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
            {user: packed for user, (_, packed) in profiles.items()},
        )

    def __len__(self) -> int:
        return sum(len(history) for history in self.histories.values())

    def catalog(self, unknown_buckets: int, spare_items: int = 0) -> Catalog:
        """All videos of the log, the most frequent first; InputError if there are fewer than two."""
        counts = Counter(video for history in self.histories.values() for video in history.video_ids)
        if len(counts) < 2:
            raise InputError(f"the event log has {len(counts)} videos, where training needs at least 2")
        return Catalog(
            sorted(counts, key=lambda video: (-counts[video], video)), unknown_buckets, spare_items
        )
