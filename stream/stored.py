"""What is stored of a user, in RocksDB and in the changelog alike: keys, records, and reading them back. Pure."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from stream.errors import Fatal

_TAIL_PREFIX: Final = b"t"
_BLOCK_PREFIX: Final = b"b"
_PROFILE_PREFIX: Final = b"p"
_pack_number: Final = struct.Struct(">I").pack

Change = tuple[bytes, bytes | None]
"""A key and its new value, None where it is deleted: one record of the changelog, one write to the store."""


def tail_key(user_id: str) -> bytes:
    """The key of a user's tail record."""
    return _TAIL_PREFIX + user_id.encode()


def block_key(user_id: str, number: int) -> bytes:
    """The key of a sealed block; its fixed-length suffix keeps keys of different users apart."""
    return _BLOCK_PREFIX + user_id.encode() + _pack_number(number)


def profile_key(user_id: str) -> bytes:
    """The key of a user's profile."""
    return _PROFILE_PREFIX + user_id.encode()


def user_of_tail_key(key: bytes) -> str | None:
    """The user whose tail record has this key, None for the key of anything else."""
    return key[1:].decode() if key[:1] == _TAIL_PREFIX else None


class Tail(Struct, frozen=True, array_like=True):
    """What is stored under a user's key: facts about the whole sequence, and its unsealed block."""

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
    records: bytearray
    videos: bytearray
    has_profile: bool
    last_ms: int = 0
    """The newest time that an event or a profile of the user told, none later than its arrival."""
    nbytes: int = 0
    """What is stored of the user, keys included."""


class StoredProfile(Struct, frozen=True, array_like=True):
    """What is stored of a profile: attributes as `mtgr.attributes.pack_attributes` packs them, and since when."""

    version: int
    timestamp_ms: int
    attributes: bytes


class _Versioned(Struct, frozen=True, array_like=True):
    version: int


_Stored = TypeVar("_Stored")

VERSION: Final = 3
"""Of the records kept here. Those of OLDEST_VERSION are read too, and written as this one when they change."""

OLDEST_VERSION: Final = 2
_BLOCK_ESTIMATE: Final = 700  # bytes of a block and its key, which records of version 2 do not tell

encode: Final = msgspec.msgpack.Encoder().encode
_decode_version = msgspec.msgpack.Decoder(_Versioned).decode
_decode_tail = msgspec.msgpack.Decoder(Tail).decode
_decode_profile = msgspec.msgpack.Decoder(StoredProfile).decode


class CorruptState(Fatal):
    """A stored sequence does not read back: the store it came from cannot be trusted."""


def read_tail(value: bytes) -> Tail:
    """Decode a tail record; raises CorruptState if it is none or of a version that is not read here."""
    tail = _read(value, _decode_tail, "tail record")
    if tail.version >= VERSION:
        return tail
    nbytes = len(value) + tail.sealed_blocks * _BLOCK_ESTIMATE
    return replace(tail, version=VERSION, last_ms=tail.timestamp_ms, nbytes=nbytes)


def owed_since(tail: Tail) -> int:
    """Since when a list is owed to the user, in milliseconds; 0 where none is."""
    return max(tail.unserved_since_ms, 1) if tail.unserved else 0


def read_profile(value: bytes | None, user_id: str) -> StoredProfile:
    """Decode a user's profile; raises CorruptState if it is missing, none, or of another version."""
    if value is None:
        raise CorruptState(f"user {user_id!r}: the profile is missing")
    return _read(value, _decode_profile, f"user {user_id!r}: profile")


def _read(value: bytes, decode: Callable[[bytes], _Stored], noun: str) -> _Stored:
    try:
        version = _decode_version(value).version  # first: another version may have other fields
        if not OLDEST_VERSION <= version <= VERSION:
            other = "a newer program wrote it" if version > VERSION else "an older program wrote it"
            raise CorruptState(
                f"{noun} has version {version}, this program reads {OLDEST_VERSION} to {VERSION}: {other}"
            )
        return decode(value)
    except msgspec.MsgspecError as error:
        raise CorruptState(f"{noun} of {len(value)} bytes: {error}") from error


def stored_keys(user_id: str, tail: Tail) -> list[bytes]:
    """The keys of what is stored of a user beside the tail record, for `UserState.from_store`."""
    keys = [block_key(user_id, tail.first_block + number) for number in range(tail.sealed_blocks)]
    return [*keys, profile_key(user_id)] if tail.has_profile else keys
