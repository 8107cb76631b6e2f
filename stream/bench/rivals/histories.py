"""The job as it is given to other stream processors: decode an event, drop a duplicate, append to the last 128. Pure.

Kept in two ways: plainly, as their documentation has it (a list, encoded whole by the framework), and packed, as this
project keeps it (32 bytes an event, and the video ids), which is the fastest that was found for them.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final

import msgspec
from xxhash import xxh3_64_digest

MAX_EVENTS: Final = 128

Identifier = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Row = tuple[str, str, int, float, float, float]
"""An event that is kept: digest of its id, video, timestamp, seconds, ratio, length of the video."""

_RECORD: Final = struct.Struct("<8sqHBBfff")
_COUNT: Final = struct.Struct("<H")
_SIZE: Final = _RECORD.size


class Watch(msgspec.Struct, gc=False, tag_field="type", tag="watch"):
    """The event, checked as far as its types go."""

    event_id: Identifier
    user_id: Identifier
    video_id: Identifier
    timestamp_ms: int
    watch_seconds: float
    watch_ratio: float
    video_seconds: float | None = None
    session_id: str | None = None


decode: Final = msgspec.json.Decoder(Watch).decode


def append_plain(history: list[list[Any]], event: dict[str, Any]) -> bool:
    """Append an event in place; False, and nothing appended, if it is there already."""
    event_id = event["event_id"]
    if any(row[0] == event_id for row in history):
        return False
    history.append(
        [
            event_id,
            event["video_id"],
            event["timestamp_ms"],
            event["watch_seconds"],
            event["watch_ratio"],
            event.get("video_seconds") or 0.0,
        ]
    )
    del history[:-MAX_EVENTS]
    return True


def append_packed(history: bytes | None, event: Watch) -> bytes | None:
    """The history with the event appended; None if it is there already."""
    digest = xxh3_64_digest(event.event_id.encode())
    video = event.video_id.encode()
    record = _RECORD.pack(
        digest,
        event.timestamp_ms,
        len(video),
        1,
        0,
        event.watch_seconds,
        event.watch_ratio,
        event.video_seconds or 0.0,
    )
    if not history:
        return _COUNT.pack(1) + record + video
    (count,) = _COUNT.unpack_from(history)
    begin, end = 2, 2 + count * _SIZE
    at = history.find(digest, begin, end)
    while at >= 0:
        if (at - begin) % _SIZE == 0:
            return None
        at = history.find(digest, at + 1, end)
    videos = end
    if count == MAX_EVENTS:
        videos += _RECORD.unpack_from(history, begin)[2]
        begin += _SIZE
        count -= 1
    return b"".join((_COUNT.pack(count + 1), history[begin:end], record, history[videos:], video))


def rows_of_plain(history: list[list[Any]]) -> list[Row]:
    """What is kept, in a form that both ways can be compared in."""
    return [
        (_digest(event_id), video, when, _narrow(seconds), _narrow(ratio), _narrow(length))
        for event_id, video, when, seconds, ratio, length in history
    ]


def rows_of_packed(history: bytes) -> list[Row]:
    """What is kept, in a form that both ways can be compared in."""
    (count,) = _COUNT.unpack_from(history)
    rows: list[Row] = []
    at = 2 + count * _SIZE
    for digest, when, length, _, _, seconds, ratio, video_seconds in _RECORD.iter_unpack(history[2:at]):
        video = history[at : at + length].decode()
        at += length
        rows.append((digest.hex(), video, when, seconds, ratio, video_seconds))
    return rows


def narrowed(event: Any) -> Row:
    """The row that an event becomes."""
    return (
        _digest(event.event_id),
        event.video_id,
        event.timestamp_ms,
        _narrow(event.watch_seconds),
        _narrow(event.watch_ratio),
        _narrow(event.video_seconds or 0.0),
    )


def _digest(event_id: str) -> str:
    return xxh3_64_digest(event_id.encode()).hex()


def _narrow(number: float) -> float:
    """The number as 32 bits hold it."""
    narrowed: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return narrowed
