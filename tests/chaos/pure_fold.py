"""What every user's history must be: a fold of the events topic in the simplest words, apart from the daemon's."""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Any, Protocol

from answers import MAX_EVENTS, history_digest
from xxhash import xxh3_64_digest

from schemas.codecs import CONTENT_TYPE_HEADER, decode_instruction
from schemas.errors import UndecodableEvent
from schemas.events import Forget, Instruction, Interaction, Like, Profile, Share, Watch

BLOCK = 16
RECORD_BYTES = 32

_record = Struct("<8sqHBBfff").pack


class Record(Protocol):
    """A record of a topic, as a consumer hands it over."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class User:
    """One user: what is kept now, and of every event that ever counted where it stands and what was kept then."""

    __slots__ = (
        "begins",
        "digests",
        "event_ids",
        "forgotten",
        "kept",
        "last_ms",
        "lengths",
        "offsets",
        "partition",
        "profile",
        "profile_ms",
        "records",
        "session_id",
        "timestamp_ms",
        "videos",
    )

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.offsets = array("q")  # of the events that counted, duplicates are not among them
        self.event_ids: list[str] = []
        self.lengths = array("I")  # of the sequence after each
        self.digests = array("Q")  # of the sequence after each
        self.forgotten = array("q")  # offsets of the records that asked for it
        self.begins = array("I")  # how many events had counted when that was
        self._empty()

    def _empty(self) -> None:
        self.kept: list[str] = []
        self.records = bytearray()
        self.videos = bytearray()
        self.session_id: str | None = None
        self.timestamp_ms = 0
        self.last_ms = 0
        self.profile: dict[str, Any] = {}
        self.profile_ms = -1

    @property
    def is_empty(self) -> bool:
        """Whether nothing must be kept."""
        return not self.kept and self.profile_ms < 0

    def place(self, offset: int) -> int | None:
        """The number of the event at an offset among those that counted; None if none stands there."""
        place = bisect_right(self.offsets, offset) - 1
        return place if place >= 0 and self.offsets[place] == offset else None

    def begin(self, place: int) -> int:
        """The number of the first event of the sequence that the event of this number belongs to."""
        since = bisect_right(self.begins, place) - 1
        return self.begins[since] if since >= 0 else 0

    @property
    def owed(self) -> int | None:
        """The number of the event after which a list must stand in the end; None where none is owed."""
        return len(self.offsets) - 1 if self.kept else None

    def add(self, event: Interaction, offset: int, arrived_ms: int) -> bool:
        """Append an event, False if the sequence holds its id already."""
        if event.event_id in self.kept:
            return False
        video = event.video_id.encode()
        self.kept.append(event.event_id)
        self.records += _packed(event, video)
        self.videos += video
        capacity = -(-MAX_EVENTS * 5 // (4 * BLOCK)) * BLOCK
        if len(self.kept) > capacity:
            self._cut((len(self.kept) - MAX_EVENTS) // BLOCK * BLOCK)
        self.session_id = event.session_id if event.session_id is not None else self.session_id
        self.timestamp_ms = event.timestamp_ms
        self.last_ms = max(self.last_ms, min(event.timestamp_ms, arrived_ms))
        self.offsets.append(offset)
        self.event_ids.append(event.event_id)
        self.lengths.append(len(self.kept))
        self.digests.append(history_digest(self.records, self.videos))
        return True

    def tell(self, profile: Profile, arrived_ms: int) -> bool:
        """Replace what is known of the user, False if it is older than that or the same."""
        if profile.timestamp_ms < self.profile_ms:
            return False
        if (profile.attributes, profile.timestamp_ms) == (self.profile, self.profile_ms):
            return False
        self.profile, self.profile_ms = dict(profile.attributes), profile.timestamp_ms
        self.last_ms = max(self.last_ms, min(profile.timestamp_ms, arrived_ms))
        return True

    def forget(self, offset: int) -> bool:
        """Keep nothing of the user, False if nothing was."""
        if self.is_empty:
            return False
        self.forgotten.append(offset)
        self.begins.append(len(self.offsets))
        self._empty()
        return True

    def _cut(self, events: int) -> None:
        dropped = self.records[: events * RECORD_BYTES]
        video_bytes = sum(
            int.from_bytes(dropped[at + 16 : at + 18], "little")
            for at in range(0, len(dropped), RECORD_BYTES)
        )
        del self.kept[:events], self.records[: len(dropped)], self.videos[:video_bytes]


class Histories:
    """All users, and what of the events topic is no event."""

    def __init__(self, max_event_bytes: int = 65_536) -> None:
        self.users: dict[str, User] = {}
        self.dead: set[tuple[int, int]] = set()  # partition and offset
        self.ends: dict[int, int] = {}
        self.counted: dict[int, list[tuple[int, str]]] = {}  # by partition: offset and user
        self.records = self.duplicates = self.forgotten = 0
        self._max_event_bytes = max_event_bytes

    @property
    def events(self) -> int:
        """Events that counted."""
        return sum(len(counted) for counted in self.counted.values())

    def fold(self, records: Iterable[Record]) -> None:
        """Fold records of the events topic, those of a partition in order."""
        for record in records:
            self.records += 1
            self.ends[record.partition] = record.offset + 1
            event = self._decode(record)
            if event is None:
                self.dead.add((record.partition, record.offset))
                continue
            user = self.users.get(event.user_id)
            if user is None:
                user = self.users[event.user_id] = User(record.partition)
            if isinstance(event, Forget):
                self.forgotten += user.forget(record.offset)
            elif isinstance(event, Profile):
                self.duplicates += not user.tell(event, record.timestamp)
            elif user.add(event, record.offset, record.timestamp):
                self.counted.setdefault(record.partition, []).append((record.offset, event.user_id))
            else:
                self.duplicates += 1

    def _decode(self, record: Record) -> Instruction | None:
        content_type = dict(record.headers).get(CONTENT_TYPE_HEADER)
        if record.value is not None and len(record.value) > self._max_event_bytes:
            return None
        try:
            event = decode_instruction(record.value, content_type)
        except UndecodableEvent:
            return None
        return event if record.key == event.user_id.encode() else None


def _packed(event: Interaction, video: bytes) -> bytes:
    """The record of one event as docs/architecture.md and the stored format have it."""
    facts = (xxh3_64_digest(event.event_id.encode()), event.timestamp_ms, len(video))
    if isinstance(event, Watch):
        return _record(*facts, 1, 0, event.watch_seconds, event.watch_ratio, event.video_seconds or 0.0)
    if isinstance(event, Share):
        detail = 0 if event.channel is None else 1 + zlib.crc32(event.channel.encode()) % 255
        return _record(*facts, 4, detail, 0.0, 0.0, 0.0)
    return _record(*facts, 2 if isinstance(event, Like) else 3, 0, 0.0, 0.0, 0.0)
