"""What the daemon keeps of users, read from raw keys and values without any code of the daemon's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

TAIL, BLOCK, PROFILE = b"t", b"b", b"p"
_BLOCK_RECORDS_BYTES = 16 * 32


class Broken(Exception):
    """What is kept of a user does not belong together."""


class KeptTail(Struct, frozen=True, array_like=True):
    """The value under a user's tail key, field by field in its order."""

    version: int
    first_block: int
    sealed_blocks: int
    offset: int
    unserved: int
    unserved_since_ms: int
    event_id: str
    timestamp_ms: int
    session_id: str | None
    traceparent: bytes | None
    records: bytes
    videos: bytes
    has_profile: bool
    last_ms: int
    nbytes: int

    @property
    def length(self) -> int:
        """Events of the sequence."""
        return self.sealed_blocks * 16 + len(self.records) // 32


class KeptUser(Struct, frozen=True):
    """A user put together from all keys."""

    tail: KeptTail
    records: bytes
    videos: bytes
    profile: dict[str, Any]
    profile_ms: int


_decode_tail = msgspec.msgpack.Decoder(KeptTail).decode
_decode_profile = msgspec.msgpack.Decoder(tuple[int, int, bytes]).decode


def user_of(key: bytes) -> str | None:
    """The user of a tail key, None for any other key."""
    return key[1:].decode() if key[:1] == TAIL else None


def read_tail(value: bytes) -> KeptTail:
    """Decode a tail; raises Broken."""
    try:
        return _decode_tail(value)
    except msgspec.MsgspecError as error:
        raise Broken(f"a tail of {len(value)} bytes does not decode: {error}") from None


def kept_users(values: Mapping[bytes, bytes]) -> Iterator[tuple[str, KeptUser | Broken]]:
    """Every user with a tail, put together or with what is wrong; then every key that no tail names, as Broken."""
    named: set[bytes] = set()
    for key, value in values.items():
        user_id = user_of(key)
        if user_id is None:
            continue
        named.add(key)
        try:
            yield user_id, _together(user_id, read_tail(value), values, named)
        except Broken as broken:
            yield user_id, broken
    for key in values.keys() - named:
        yield key[1:].decode(errors="replace"), Broken(f"key {key!r} belongs to no tail")


def _together(user_id: str, tail: KeptTail, values: Mapping[bytes, bytes], named: set[bytes]) -> KeptUser:
    records, videos = b"", b""
    for number in range(tail.first_block, tail.first_block + tail.sealed_blocks):
        key = BLOCK + user_id.encode() + number.to_bytes(4, "big")
        named.add(key)
        block = values.get(key)
        if block is None:
            raise Broken(f"block {number} is missing")
        records += block[:_BLOCK_RECORDS_BYTES]
        videos += block[_BLOCK_RECORDS_BYTES:]
    profile: dict[str, Any] = {}
    profile_ms = -1
    if tail.has_profile:
        key = PROFILE + user_id.encode()
        named.add(key)
        if key not in values:
            raise Broken("the profile is missing")
        _, profile_ms, packed = _decode_profile(values[key])
        profile = msgspec.msgpack.decode(packed) if packed else {}
    return KeptUser(tail, records + tail.records, videos + tail.videos, profile, profile_ms)
