"""A user's sequence in the daemon: fold an event in, cut, serialise. Pure.

A sequence is a run of packed records (mtgr.history) in blocks of BLOCK_EVENTS. A full block is sealed: it never
changes again and is stored under a key of its own. What still grows (the tail block) is stored with the facts about
the whole sequence under the user's key. One event therefore rewrites one block at most, however long the history.

What is known of the user besides (the profile) changes seldom and is stored under a third key, only when it does.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from xxhash import xxh3_64_digest, xxh3_128_hexdigest

from mtgr.attributes import pack_attributes
from mtgr.config import BLOCK_EVENTS, capacity
from mtgr.history import RECORD_BYTES, RECORD_DTYPE, pack_event
from schemas.events import Interaction, Profile
from stream.stored import (
    VERSION,
    Change,
    CorruptState,
    StoredProfile,
    Tail,
    block_key,
    encode,
    profile_key,
    read_profile,
    tail_key,
)

_BLOCK_BYTES: Final = BLOCK_EVENTS * RECORD_BYTES
_KEY_BYTES: Final = 4  # that a block's key is longer than a tail record's
_NUMBERS_BYTES: Final = 45  # of a tail record, roughly


def list_id(user_id: str, event_id: str) -> str:
    """The id of the list made after this event: the same user and event always give the same id."""
    return xxh3_128_hexdigest(f"{len(user_id)}:{user_id}{event_id}".encode())


class UserState:
    """One user's sequence, what is known of the user besides, and what the user is owed.

    `unserved` counts the events folded in since the last published list: the user is owed a list while it is above
    zero. `asked` of them are in the list being made. `offset` is the source offset of the last event folded in.
    `profile` holds packed attributes, empty for a user of whom nothing is known.
    """

    __slots__ = (
        "_dropped",
        "_firsts",
        "_profile_changed",
        "_sealed",
        "_tail_videos",
        "asked",
        "dirty",
        "event_id",
        "first_block",
        "last_ms",
        "offset",
        "profile",
        "profile_ms",
        "records",
        "session_id",
        "since_asked_ms",
        "timestamp_ms",
        "traceparent",
        "unserved",
        "unserved_since_ms",
        "user_id",
        "videos",
        "writing",
    )

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.records = bytearray()
        self.videos = bytearray()
        self.first_block = 0
        self.offset = -1
        self.unserved = 0
        self.unserved_since_ms = 0
        self.asked = 0
        self.since_asked_ms = 0
        self.event_id = ""
        self.timestamp_ms = 0
        self.session_id: str | None = None
        self.traceparent: bytes | None = None
        self.profile = b""
        self.last_ms = 0  # the newest time told, none later than its arrival
        self.profile_ms = -1  # of the event that told the profile; none has yet
        self.dirty = False  # changed since the last call of changes()
        self.writing = 0  # calls of changes() whose result is not yet in the store
        # The first byte of each record, which is that of its event's digest: one byte an event says nearly always that
        # an event is new, where looking through the records was a fifth of the fold.
        self._firsts = bytearray()
        self._tail_videos = 0  # where the tail block's video ids begin in videos
        self._sealed: list[tuple[int, bytes]] = []
        self._dropped: list[int] = []
        self._profile_changed = False

    def __len__(self) -> int:
        return len(self.records) // RECORD_BYTES

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept of the user: one never seen, or forgotten."""
        return not self.records and self.profile_ms < 0

    @property
    def pinned(self) -> bool:
        """Whether the store cannot give this state back yet, or a list is being made: it must stay in memory."""
        return self.dirty or self.writing > 0 or self.asked > 0

    @property
    def nbytes(self) -> int:
        """Roughly the memory this state takes."""
        return 760 + len(self.records) + len(self.videos) + len(self._firsts) + len(self.profile)

    def fold(
        self, event: Interaction, offset: int, arrived_ms: int, traceparent: bytes | None, max_events: int
    ) -> bool:
        """Append one event; False, and nothing appended, if the sequence already holds its event_id.

        The caller has checked that `offset` is above `self.offset`. Events are kept in the order they arrive in;
        one with an older timestamp is appended like any other, since nothing already in a sequence is rewritten.
        """
        event_id = event.event_id
        digest = xxh3_64_digest(event_id.encode())
        records, firsts, first = self.records, self._firsts, digest[0]
        if first in firsts and self._holds(digest):
            return False
        firsts.append(first)
        self.dirty = True
        self.offset = offset
        video = event.video_id.encode()
        records += pack_event(event, digest, video)
        self.videos += video
        self.event_id = event_id
        told_ms = self.timestamp_ms = event.timestamp_ms
        if told_ms > arrived_ms:
            told_ms = arrived_ms
        if told_ms > self.last_ms:
            self.last_ms = told_ms
        session_id = event.session_id
        if session_id is not None:
            self.session_id = session_id
        self.traceparent = traceparent
        if not self.unserved:
            self.unserved_since_ms = arrived_ms
        elif self.unserved == self.asked:
            self.since_asked_ms = arrived_ms
        self.unserved += 1
        unsealed = len(records) % _BLOCK_BYTES
        if unsealed == 0:
            self._seal()
        # capacity is in whole blocks: it is passed by the first event of a block alone
        elif unsealed == RECORD_BYTES and len(records) > capacity(max_events) * RECORD_BYTES:
            self.cut(max_events)
        return True

    def fold_profile(self, event: Profile, arrived_ms: int) -> bool:
        """Take what is known of the user now; False if it is older than what is held, or no other.

        No list is owed for it: the next one is made with it.
        """
        if event.timestamp_ms < self.profile_ms:
            return False
        profile = pack_attributes(event.attributes)
        if profile == self.profile and event.timestamp_ms == self.profile_ms:
            return False
        self.profile = profile
        self.profile_ms = event.timestamp_ms
        self.last_ms = max(self.last_ms, min(event.timestamp_ms, arrived_ms))
        self.dirty = self._profile_changed = True
        return True

    def owe_again(self, event_id: str, offset: int, arrived_ms: int) -> bool:
        """Owe the list after this event once more, if it is the last one and nothing is owed; else False.

        For an event that came back from the dead letters, where it went because its list could not be made.
        """
        if self.unserved or event_id != self.event_id:
            return False  # a list that is owed or has been made since serves it too
        self.dirty = True
        self.offset = offset
        self.unserved = 1
        self.unserved_since_ms = arrived_ms
        return True

    def forget(self, offset: int) -> bool:
        """Drop all that is kept of the user, and what is owed; False if there was nothing.

        A list that is being made serves nobody any more. Blocks that come later have numbers of their own, so that
        the deletion of these never meets them.
        """
        if self.is_empty:
            return False
        sealed = len(self.records) // _BLOCK_BYTES
        self._dropped.extend(range(self.first_block, self.first_block + sealed))
        self.first_block += sealed
        self._sealed.clear()
        self._tail_videos = 0
        self.records, self.videos, self._firsts = bytearray(), bytearray(), bytearray()
        self.unserved = self.asked = self.unserved_since_ms = self.timestamp_ms = self.last_ms = 0
        self.event_id, self.session_id, self.traceparent = "", None, None
        if self.profile_ms >= 0:
            self.profile, self.profile_ms = b"", -1
            self._profile_changed = True
        self.offset = offset
        self.dirty = True
        return True

    def _holds(self, digest: bytes) -> bool:
        """Whether a record begins with the digest; looks at those alone that begin with its first byte."""
        records, firsts, first = self.records, self._firsts, digest[0]
        at = firsts.find(first)
        while at >= 0:
            if records.startswith(digest, at * RECORD_BYTES):
                return True
            at = firsts.find(first, at + 1)
        return False

    def _seal(self) -> None:
        number = self.first_block + len(self.records) // _BLOCK_BYTES - 1
        block = bytes(self.records[-_BLOCK_BYTES:]) + bytes(self.videos[self._tail_videos :])
        self._sealed.append((number, block))
        self._tail_videos = len(self.videos)

    def cut(self, max_events: int) -> None:
        """Drop the oldest whole blocks, as few as bring the sequence down to less than a block above max_events."""
        surplus = (len(self) - max_events) // BLOCK_EVENTS
        if surplus <= 0:
            return
        end = surplus * _BLOCK_BYTES
        video_bytes = _video_bytes(bytes(self.records[:end]))
        # fresh buffers give the memory of the dropped blocks back
        self.records = bytearray(self.records[end:])
        self.videos = bytearray(self.videos[video_bytes:])
        self._firsts = self.records[::RECORD_BYTES]
        self._tail_videos -= video_bytes
        self._dropped.extend(range(self.first_block, self.first_block + surplus))
        self.first_block += surplus
        self.dirty = True

    def ask(self) -> int:
        """Begin making a list of everything folded in so far; returns how many events it will serve."""
        self.asked = self.unserved
        return self.asked

    def withdraw(self) -> None:
        """The list asked for was not made: what it would have served stays owed."""
        self.asked = 0

    def served(self) -> None:
        """The list asked for is published: only what came after it stays owed."""
        if not self.asked:
            return  # the user was forgotten meanwhile
        self.unserved -= self.asked
        self.unserved_since_ms = self.since_asked_ms if self.unserved else 0
        self.asked = 0
        self.dirty = True

    def changes(self) -> list[Change]:
        """What must be written so that the store holds this state; marks it clean, and as being written.

        The order matters: the changelog takes the changes one after another, and a crash may cut them anywhere. A tail
        record never stands before what it names, nor a block's deletion before the tail that names it no more.
        """
        user = self.user_id
        key = tail_key(user)
        self.dirty = False
        self.writing += 1
        if self.records and not (self._sealed or self._dropped or self._profile_changed):  # as nearly always
            return [(key, self._tail(len(key)))]
        sealed, self._sealed = self._sealed, []
        dropped, self._dropped = self._dropped, []
        profile_changed, self._profile_changed = self._profile_changed, False
        changes: list[Change] = [
            (block_key(user, number), block) for number, block in sealed if number >= self.first_block
        ]
        if profile_changed and self.profile_ms >= 0:
            stored = StoredProfile(VERSION, self.profile_ms, self.profile)
            changes.append((profile_key(user), encode(stored)))
        changes.append((key, None if self.is_empty else self._tail(len(key))))
        if profile_changed and self.profile_ms < 0:
            changes.append((profile_key(user), None))
        changes.extend((block_key(user, number), None) for number in dropped)
        return changes

    def _tail(self, key_bytes: int) -> bytes:
        """The tail record; `key_bytes` is the length of its key."""
        records, videos, event_id = self.records, self.videos, self.event_id
        session_id, traceparent = self.session_id, self.traceparent
        sealed_blocks = len(records) // _BLOCK_BYTES
        # what is stored of the user, keys included and headers of records not
        texts = len(event_id) + len(session_id or "") + len(traceparent or b"")
        keys = (2 + sealed_blocks) * (key_bytes + _KEY_BYTES)
        nbytes = len(records) + len(videos) + len(self.profile) + texts + keys + _NUMBERS_BYTES
        return encode(
            Tail(
                VERSION,
                self.first_block,
                sealed_blocks,
                self.offset,
                self.unserved,
                self.unserved_since_ms,
                event_id,
                self.timestamp_ms,
                session_id,
                traceparent,
                records[sealed_blocks * _BLOCK_BYTES :],
                videos[self._tail_videos :],
                self.profile_ms >= 0,
                self.last_ms,
                nbytes,
            )
        )

    @classmethod
    def from_store(cls, user_id: str, tail: Tail, values: list[bytes | None]) -> UserState:
        """Rebuild a state from its tail record and what is stored under its `stored_keys`, in their order.

        Raises CorruptState if one of them is missing or is not what the tail record says.
        """
        state = cls(user_id)
        if len(values) != tail.sealed_blocks + tail.has_profile:
            raise CorruptState(
                f"user {user_id!r}: {len(values)} values beside the tail record, which tells of "
                f"{tail.sealed_blocks} blocks and {'a' if tail.has_profile else 'no'} profile"
            )
        for number, block in enumerate(values[: tail.sealed_blocks], tail.first_block):
            if block is None or len(block) < _BLOCK_BYTES:
                raise CorruptState(f"user {user_id!r}: block {number} is missing or torn")
            state.records += block[:_BLOCK_BYTES]
            state.videos += block[_BLOCK_BYTES:]
        state._tail_videos = len(state.videos)
        state.records += tail.records
        state.videos += tail.videos
        state._firsts = state.records[::RECORD_BYTES]
        if len(tail.records) % RECORD_BYTES or _video_bytes(bytes(state.records)) != len(state.videos):
            raise CorruptState(f"user {user_id!r}: records and video ids do not belong together")
        if tail.has_profile:
            profile = read_profile(values[-1], user_id)
            state.profile, state.profile_ms = profile.attributes, profile.timestamp_ms
        state.first_block = tail.first_block
        state.offset = tail.offset
        state.unserved = tail.unserved
        state.unserved_since_ms = tail.unserved_since_ms
        state.event_id = tail.event_id
        state.timestamp_ms = tail.timestamp_ms
        state.last_ms = tail.last_ms
        state.session_id = tail.session_id
        state.traceparent = tail.traceparent
        return state


def _video_bytes(records: bytes) -> int:
    """How long the video ids of these records are in all."""
    return int(np.frombuffer(records, dtype=RECORD_DTYPE)["video_id_bytes"].sum(dtype=np.int64))
