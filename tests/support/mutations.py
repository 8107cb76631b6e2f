"""Records as a broken or hostile producer sends them: valid ones changed byte by byte, and values made to do harm."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from partitions import Record, record_of

from schemas.codecs import CONTENT_TYPE_HEADER, MESSAGEPACK, encode_event
from schemas.events import Event, Favorite, Like, Profile, Share, Watch

_MSGPACK = ((CONTENT_TYPE_HEADER, MESSAGEPACK.encode()),)
_JSON_HEAD = b'{"type":"like","event_id":"e","user_id":"u0","video_id":"v","timestamp_ms":'
_PACKED_HEAD = b"\x85\xa4type\xa4like\xa7user_id\xa2u0\xa8event_id"
_INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x80",
    b'"',
    b"\\",
    b"{",
    b"[",
    b"\xdd\xff\xff\xff\xff",
    b"1e999",
    b"null",
    b"\xc1",
)

BOMBS: dict[str, tuple[bytes, bool]] = {
    "json arrays": (b"[" * 60_000, False),
    "json objects": (b'{"a":' * 12_000, False),
    "json arrays in an unknown field": (_JSON_HEAD + b'1,"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", False),
    "json arrays in a known field": (
        b'{"event_id":' + b"[" * 30_000 + b"]" * 30_000 + b',"type":"like"}',
        False,
    ),
    "json arrays to the limit": (b'{"type":"like","event_id":' + b"[" * 990 + b"]" * 990 + b"}", False),
    "json number of 60 thousand digits": (_JSON_HEAD + b"9" * 60_000 + b"}", False),
    "json exponent of 60 thousand digits": (_JSON_HEAD + b"1e" + b"9" * 60_000 + b"}", False),
    "json string of escapes": (_JSON_HEAD + b'"' + b"\\u0000" * 10_000 + b'"}', False),
    "json keys": (b"{" + b",".join(b'"k%d":1' % number for number in range(5_000)) + b"}", False),
    "json attributes": (
        b'{"type":"profile","event_id":"e","user_id":"u0","timestamp_ms":1,"attributes":{'
        + b",".join(b'"k%d":1' % number for number in range(5_000))
        + b"}}",
        False,
    ),
    "messagepack arrays": (_PACKED_HEAD + b"\x91" * 60_000, True),
    "messagepack maps": (b"\x81" * 60_000, True),
    "messagepack array of 4 G": (b"\xdd\xff\xff\xff\xff", True),
    "messagepack array of 4 G in a field": (_PACKED_HEAD + b"\xdd\xff\xff\xff\xff", True),
    "messagepack arrays of 268 M in each other": (_PACKED_HEAD + b"\xdd\x0f\xff\xff\xff" * 900, True),
    "messagepack map of 4 G in a field": (_PACKED_HEAD + b"\xdf\xff\xff\xff\xff", True),
    "messagepack string of 4 G": (_PACKED_HEAD + b"\xdb\xff\xff\xff\xff", True),
    "messagepack bytes of 4 G": (_PACKED_HEAD + b"\xc6\xff\xff\xff\xff", True),
    "messagepack extension of 4 G": (_PACKED_HEAD + b"\xc9\xff\xff\xff\xff\x01", True),
    "messagepack time that is none": (_PACKED_HEAD + b"\xd7\xff" + b"\xff" * 8, True),
}
"""Values that ask a decoder for more time, memory or depth than they have bytes: each, and whether MessagePack."""


class Mutator:
    """Makes records, the same for the same seed: some valid, most spoilt in one way or several."""

    def __init__(self, seed: int, users: int = 20) -> None:
        self._random = random.Random(seed)
        self._users = users
        self._made = 0
        self._bombs = [(value, _MSGPACK if packed else ()) for value, packed in BOMBS.values()]

    def take(self, count: int, first_offset: int) -> list[Record]:
        """The next records of a partition, their offsets from `first_offset` on."""
        return [self._record(first_offset + number) for number in range(count)]

    def _record(self, offset: int) -> Record:
        chance = self._random
        self._made += 1
        event = self._event()
        packed = chance.random() < 0.5
        record = record_of(event, offset)
        if packed:
            record = replace(record, value=encode_event(event, MESSAGEPACK), headers=_MSGPACK)
        kind = chance.random()
        if kind < 0.15:
            return record
        if kind < 0.16:
            value, headers = chance.choice(self._bombs)
            return replace(record, value=value, headers=headers)
        if kind < 0.18:
            return replace(record, value=chance.choice((None, b"", b"\x00" * 3, b"x" * 70_000)))
        if kind < 0.20:
            return replace(record, key=chance.choice((None, b"", b"\xff", b"u-other")))
        if kind < 0.24:
            return replace(record, headers=self._headers())
        assert record.value is not None
        value = record.value
        for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
            value = self._spoilt(value)
        return replace(record, value=value)

    def _event(self) -> Event:
        chance = self._random
        fields: dict[str, object] = {
            "event_id": f"e{self._made if chance.random() < 0.9 else chance.randrange(1 + self._made)}",
            "user_id": f"u{chance.randrange(self._users)}" if chance.random() < 0.95 else "ünï-çødé-𝄞",
            "timestamp_ms": chance.randrange(2_000_000_000_000),
        }
        kind = chance.choice((Watch, Like, Favorite, Share, Profile))
        if kind is Profile:
            attributes = {
                f"a{number}": chance.choice(("x", 1.5, ["p", "q"])) for number in range(chance.randrange(5))
            }
            return Profile(attributes=attributes, **fields)  # type: ignore[arg-type]
        fields |= {"video_id": f"v{chance.randrange(500)}"}
        if kind is Watch:
            fields |= {"watch_seconds": chance.uniform(0, 60), "watch_ratio": chance.uniform(0, 2)}
        return kind(**fields)  # type: ignore[arg-type]

    def _headers(self) -> Sequence[tuple[str, bytes | None]]:
        value = self._random.choice(
            (None, b"", b"text/plain", b"APPLICATION/JSON", MESSAGEPACK.encode(), b"\xff" * 40)
        )
        return ((CONTENT_TYPE_HEADER, value), ("traceparent", self._random.randbytes(8)), ("", None))

    def _spoilt(self, value: bytes) -> bytes:
        chance = self._random
        at = chance.randrange(len(value) + 1)
        end = min(at + 1 + chance.randrange(8), len(value))
        match chance.randrange(7):
            case 0 if at < len(value):
                return value[:at] + bytes([value[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :]
            case 1:
                return value[:at] + chance.randbytes(1 + chance.randrange(3)) + value[at:]
            case 2:
                return value[:at] + value[end:]
            case 3:
                return value[:at]
            case 4:
                return value[:at] + value[at:end] * (1 + chance.randrange(40)) + value[end:]
            case 5:
                return value[:at] + chance.choice(_INTERESTING) + value[end:]
            case _:
                other = (
                    encode_event(self._event(), MESSAGEPACK)
                    if chance.random() < 0.5
                    else encode_event(self._event())
                )
                return value[:at] + other[chance.randrange(len(other)) :]
