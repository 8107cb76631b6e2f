"""Which histories lie in the engine's KV cache, and where: the front end's side of it, which decides alone.

A session is a user whose tokens are cached. A request whose history begins with what the session has seen, which a
digest of the bytes proves, needs only its new events computed. Anything else (another profile, a cut, a corrected
past) is another history, and computed whole. Blocks are given to whom they are needed by, taken from whoever was
served longest ago. A session that is gone costs time, never a different list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from xxhash import xxh3_128, xxh3_128_digest

from mtgr.history import RECORD_BYTES
from mtgr.requests import ListRequest

NULL_BLOCK: Final = 0
"""The cache block that nobody's tokens lie in: what a block table is padded with."""


@dataclass(slots=True, eq=False)
class Session:
    """One user's tokens in the cache: the profile's and one for each event."""

    user_id: str
    profile: bytes
    events: int = 0
    video_bytes: int = 0
    """Of those events, joined."""
    digest: bytes = b""
    """Of those events' bytes."""
    _records: xxh3_128 = field(default_factory=xxh3_128)  # what the digest is made of, to go on from
    _videos: xxh3_128 = field(default_factory=xxh3_128)
    blocks: list[int] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    """Videos among them that were not in the catalog: if one joins it, their tokens are others."""

    def begins(self, request: ListRequest) -> bool:
        """Whether the request's history begins with this session's."""
        return (
            request.profile == self.profile
            and len(request.records) >= self.events * RECORD_BYTES
            and len(request.videos) >= self.video_bytes
            and _digest(request, self.events * RECORD_BYTES, self.video_bytes) == self.digest
        )

    def extend(self, request: ListRequest) -> None:
        """Go on to the end of a request that begins with this session."""
        self._records.update(memoryview(request.records)[self.events * RECORD_BYTES :])
        self._videos.update(memoryview(request.videos)[self.video_bytes :])
        self.events = len(request.records) // RECORD_BYTES
        self.video_bytes = len(request.videos)
        self.digest = self._records.digest() + self._videos.digest()


def _digest(request: ListRequest, record_bytes: int, video_bytes: int) -> bytes:
    """Of a request's first bytes, as a session has it of its own."""
    records, videos = memoryview(request.records), memoryview(request.videos)
    return xxh3_128_digest(records[:record_bytes]) + xxh3_128_digest(videos[:video_bytes])


class OutOfBlocks(Exception):
    """More blocks are wanted than there are beside those of sessions that must stay."""


class SessionTable:
    """The sessions of one engine and the cache blocks they lie in; the one used longest ago goes first."""

    def __init__(self, blocks: int, block_size: int) -> None:
        """`blocks` of the cache, the null block among them."""
        self.block_size: Final = block_size
        self.evictions = 0
        self._blocks: Final = blocks
        self._free: Final = list(range(blocks - 1, NULL_BLOCK, -1))
        self._sessions: Final[OrderedDict[str, Session]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def free_blocks(self) -> int:
        """Blocks that no session has."""
        return len(self._free)

    def find(self, request: ListRequest) -> Session | None:
        """The session that the request goes on from, None if it begins anew."""
        session = self._sessions.get(request.user_id)
        return session if session is not None and session.begins(request) else None

    def blocks_of(self, tokens: int) -> int:
        """Blocks that so many tokens lie in."""
        return -(-tokens // self.block_size)

    @property
    def capacity(self) -> int:
        """Blocks that sessions can have together."""
        return self._blocks - 1

    def begin(self, user_id: str, profile: bytes) -> Session:
        """A session without events; one that the user had is forgotten."""
        self.forget(user_id)
        session = self._sessions[user_id] = Session(user_id, profile)
        return session

    def reserve(self, session: Session, tokens: int, *, staying: Collection[Session]) -> None:
        """Give a session the blocks that so many tokens need, and mark it as used.

        Raises OutOfBlocks, and changes nothing but whom it evicted, if that needs those of sessions in `staying`.
        """
        self._sessions.move_to_end(session.user_id)
        wanted = self.blocks_of(tokens) - len(session.blocks)
        if wanted > len(self._free):
            self._evict(wanted, staying, session)
        for _ in range(wanted):
            session.blocks.append(self._free.pop())

    def trim(self, session: Session, tokens: int) -> None:
        """Free the blocks of a session beyond those of so many tokens, in which a slate was made."""
        while len(session.blocks) > self.blocks_of(tokens):
            self._free.append(session.blocks.pop())

    def forget(self, user_id: str) -> None:
        """End a session, if there is one; its blocks are free."""
        session = self._sessions.pop(user_id, None)
        if session is not None:
            self._free.extend(session.blocks)
            session.blocks = []

    def forget_watchers(self, video_ids: Iterable[str]) -> int:
        """End the sessions whose events are of these videos, unknown until now; returns how many."""
        joined = set(video_ids)
        watchers = [session for session in self._sessions.values() if not session.unknown.isdisjoint(joined)]
        for session in watchers:
            self.forget(session.user_id)
        return len(watchers)

    def _evict(self, wanted: int, staying: Collection[Session], asking: Session) -> None:
        left = len(self._free)
        going = []
        for session in self._sessions.values():
            if wanted <= left:
                break
            if session is not asking and session not in staying:
                going.append(session)
                left += len(session.blocks)
        for session in going:
            self.forget(session.user_id)
        self.evictions += len(going)
        if wanted > left:
            raise OutOfBlocks(f"{wanted} blocks are wanted, and {left} are free")
