"""A user's history as packed records: the model-independent facts of events, appended and never rewritten."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_digest

from schemas.events import Favorite, Interaction, Like, Watch

WATCH: Final = 1
LIKE: Final = 2
FAVORITE: Final = 3
SHARE: Final = 4

# event digest, timestamp_ms, bytes of the video id, event type, detail (hashed share channel, 0 for none),
# watch_seconds, watch_ratio, video_seconds (0 for unknown)
_RECORD: Final = struct.Struct("<8sqHBBfff")
RECORD_BYTES: Final = _RECORD.size
RECORD_DTYPE: Final = np.dtype(
    [
        ("event_digest", "<u8"),
        ("timestamp_ms", "<i8"),
        ("video_id_bytes", "<u2"),
        ("event_type", "u1"),
        ("detail", "u1"),
        ("watch_seconds", "<f4"),
        ("watch_ratio", "<f4"),
        ("video_seconds", "<f4"),
    ]
)
assert RECORD_DTYPE.itemsize == RECORD_BYTES

_pack = _RECORD.pack


def event_digest(event_id: str) -> bytes:
    """Eight bytes that stand for an event id inside one user's history."""
    return xxh3_64_digest(event_id.encode())


def pack_event(event: Interaction, digest: bytes, video: bytes) -> bytes:
    """The record of one event, RECORD_BYTES long; its digest and UTF-8 video id are handed in, computed once."""
    kind = type(event)
    if kind is Watch:
        return _pack(
            digest,
            event.timestamp_ms,
            len(video),
            WATCH,
            0,
            event.watch_seconds,  # type: ignore[union-attr]
            event.watch_ratio,  # type: ignore[union-attr]
            event.video_seconds or 0.0,  # type: ignore[union-attr]
        )
    detail = 0
    if kind is Like:
        code = LIKE
    elif kind is Favorite:
        code = FAVORITE
    else:
        code = SHARE
        channel = event.channel  # type: ignore[union-attr]
        if channel is not None:
            detail = 1 + zlib.crc32(channel.encode()) % 255
    return _pack(digest, event.timestamp_ms, len(video), code, detail, 0.0, 0.0, 0.0)


def split_ids(videos: bytes | bytearray | memoryview, ends: Sequence[int]) -> list[str]:
    """The ids whose UTF-8 is joined in `videos`, of which each ends at the byte named; UnicodeDecodeError for none."""
    starts = itertools.chain((0,), ends)
    if (joined := bytes(videos)).isascii():  # as nearly all are, and then one decoding does
        text = joined.decode()
        return [text[start:end] for start, end in zip(starts, ends, strict=False)]
    return [joined[start:end].decode() for start, end in zip(starts, ends, strict=False)]


@dataclass(frozen=True, slots=True)
class History:
    """Events of one user in the order they were folded in.

    records: (n,) of RECORD_DTYPE; video_ids: n external ids, one for each record.
    """

    records: npt.NDArray[np.void]
    video_ids: list[str]

    def __len__(self) -> int:
        return len(self.video_ids)

    @classmethod
    def from_bytes(cls, records: bytes | bytearray, videos: bytes | bytearray) -> History:
        """Read records as `pack_event` made them and the video ids' UTF-8, both simply joined.

        Raises ValueError if the two do not belong together.
        """
        if len(records) % RECORD_BYTES:
            raise ValueError(f"records: {len(records)} bytes is not a multiple of {RECORD_BYTES}")
        table = np.frombuffer(records, dtype=RECORD_DTYPE)
        ends = np.cumsum(table["video_id_bytes"], dtype=np.int64).tolist()
        if (ends[-1] if ends else 0) != len(videos):
            raise ValueError(f"videos: {len(videos)} bytes, where the records want {ends[-1] if ends else 0}")
        return cls(table, split_ids(videos, ends))

    @classmethod
    def from_events(cls, events: list[Interaction]) -> History:
        """Pack events as the daemon would."""
        records = bytearray()
        videos = bytearray()
        for event in events:
            video = event.video_id.encode()
            records += pack_event(event, event_digest(event.event_id), video)
            videos += video
        return cls.from_bytes(bytes(records), bytes(videos))
