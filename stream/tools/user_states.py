"""What is kept of users, read from the changelog topic, written to it, and asked to be forgotten.

The changelog is the truth that every daemon's files are a copy of: it can be read while daemons run, from any machine.
"""

from __future__ import annotations

import asyncio
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition
from msgspec import Struct

from mtgr.attributes import unpack_attributes
from mtgr.errors import InputError
from mtgr.history import FAVORITE, LIKE, SHARE, WATCH, History
from schemas.codecs import encode_event
from schemas.events import Forget
from stream import changelog
from stream.kafka import connected, producer_options
from stream.sequences import UserState
from stream.settings import Settings
from stream.source import lone_consumer
from stream.stored import Change, CorruptState, read_tail, stored_keys, tail_key, user_of_tail_key
from stream.tools.partitioning import partition_of
from stream.topics import committed_offsets, group_members, partition_count

_POLL_SECONDS: Final = 0.2
_IMPORTED_AT_ONCE: Final = 10_000
_TYPES: Final = {WATCH: "watch", LIKE: "like", FAVORITE: "favorite", SHARE: "share"}
_WATCHED: Final = ("watch_seconds", "watch_ratio", "video_seconds")


class ExportedUser(Struct, frozen=True):
    """One user in an exported file: what is stored, key by key, and the same for people to read."""

    user_id: str
    stored: dict[str, str]
    """Base64 of each key and its value: this is what an import writes."""
    events: list[dict[str, Any]] = []
    attributes: dict[str, Any] = {}
    unserved: int = 0
    last_heard_of: str = ""


class _Collected:
    """What a restore writes to, in a plain dict: of one partition, or of one user of it."""

    def __init__(self, user_id: str | None) -> None:
        self.values: dict[bytes, bytes] = {}
        self.checkpoint = 0
        self._user = None if user_id is None else user_id.encode()

    def apply(self, changes: Iterable[Change], checkpoint: int) -> None:
        user = self._user
        for key, value in changes:
            # a block's key has four bytes more; another user's may look alike, and is told by the tail record
            if user is not None and user not in (key[1:], key[1:-4]):
                continue
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self.checkpoint = checkpoint

    def states(self) -> Iterator[tuple[UserState, dict[bytes, bytes]]]:
        """Each user's state and what is stored of it; raises CorruptState."""
        for key in sorted(self.values):
            user_id = user_of_tail_key(key)
            if user_id is None or (self._user is not None and user_id.encode() != self._user):
                continue
            tail = read_tail(self.values[key])
            keys = stored_keys(user_id, tail)
            state = UserState.from_store(user_id, tail, [self.values.get(one) for one in keys])
            yield state, {one: self.values[one] for one in (key, *keys)}


async def read_users(settings: Settings, user_id: str | None = None) -> AsyncIterator[ExportedUser]:
    """Every user in the changelog, or the one of that id, partition by partition.

    Raises InputError where there is no changelog topic or a state in it does not read back, KafkaUnreachable.
    """
    topic = settings.changelog_topic
    for number in range(await partition_count(settings.kafka, topic)):
        collected = _Collected(user_id)
        async with connected(lone_consumer(settings), settings.kafka) as consumer:
            await changelog.restore(consumer, TopicPartition(topic, number), collected, lambda records: None)
        try:
            for state, stored in collected.states():
                yield _exported(state, stored)
        except CorruptState as error:
            raise InputError(f"topic {topic}: partition {number}: {error}") from None


async def write_users(settings: Settings, users: Iterable[ExportedUser]) -> int:
    """Write exported users to the changelog, where daemons find them at their next start; returns how many.

    Raises InputError where a daemon of the group runs, a user is there already, or an export does not read back.
    """
    kafka, topic = settings.kafka, settings.changelog_topic
    partitions = await partition_count(kafka, topic)
    await _require_idle(settings)
    known = {user.user_id async for user in read_users(settings)}
    changes: dict[int, list[Change]] = {}
    written = 0
    async with connected(AIOKafkaProducer(**producer_options(kafka)), kafka) as producer:

        async def flush() -> None:
            now_ms = time.time_ns() // 1_000_000
            for number, part in changes.items():
                await changelog.append(producer, TopicPartition(topic, number), part, now_ms)
            changes.clear()

        for user in users:
            if user.user_id in known:
                raise InputError(f"user {user.user_id!r} is in topic {topic} already: forget the user first")
            number = partition_of(user.user_id.encode(), partitions)
            changes.setdefault(number, []).extend(_changes(user))
            written += 1
            if written % _IMPORTED_AT_ONCE == 0:
                await flush()
        await flush()
    return written


async def forget_user(settings: Settings, user_id: str, wait_seconds: float) -> bool:
    """Ask the daemons to forget a user, by a record in the events topic; whether they have within so many seconds.

    What was forgotten then has left the state and has a tombstone in the changelog. Raises KafkaUnreachable.
    """
    kafka, topic = settings.kafka, settings.topics.events
    partitions = await partition_count(kafka, topic)
    asked = Forget(event_id=f"forget-{uuid4()}", user_id=user_id, timestamp_ms=time.time_ns() // 1_000_000)
    tp = TopicPartition(topic, partition_of(user_id.encode(), partitions))
    async with connected(AIOKafkaProducer(**producer_options(kafka)), kafka) as producer:
        sent = await producer.send_and_wait(
            topic, encode_event(asked), key=user_id.encode(), partition=tp.partition
        )
    deadline = time.monotonic() + wait_seconds
    while time.monotonic() < deadline:
        offset, _ = (await committed_offsets(kafka, kafka.group_id)).get(tp, (-1, ""))
        if offset > sent.offset:
            return True
        await asyncio.sleep(_POLL_SECONDS)
    return False


async def _require_idle(settings: Settings) -> None:
    members = await group_members(settings.kafka, settings.kafka.group_id)
    if members:
        raise InputError(
            f"kafka.group_id = {settings.kafka.group_id}: {members} daemons of this group run, and would not see what "
            f"is imported: stop them first"
        )


def _exported(state: UserState, stored: dict[bytes, bytes]) -> ExportedUser:
    history = History.from_bytes(state.records, state.videos)
    return ExportedUser(
        state.user_id,
        {b64encode(key).decode(): b64encode(value).decode() for key, value in stored.items()},
        list(_readable(history)),
        unpack_attributes(state.profile) if state.profile else {},
        state.unserved,
        _moment(state.last_ms),
    )


def _readable(history: History) -> Iterator[dict[str, Any]]:
    for record, video_id in zip(history.records, history.video_ids, strict=True):
        event: dict[str, Any] = {"type": _TYPES[int(record["event_type"])], "video_id": video_id}
        moment = int(record["timestamp_ms"])
        event |= {"timestamp_ms": moment, "at": _moment(moment)}
        if event["type"] == "watch":
            event |= {name: round(float(record[name]), 4) for name in _WATCHED}
        yield event


def _moment(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _changes(user: ExportedUser) -> list[Change]:
    """What an import writes, the tail record last, and without the source offset, which was another topic's."""
    try:
        values = {
            b64decode(key, validate=True): b64decode(value, validate=True)
            for key, value in user.stored.items()
        }
        own = tail_key(user.user_id)
        tail = read_tail(values.pop(own))
        keys = stored_keys(user.user_id, tail)
        UserState.from_store(user.user_id, tail, [values.get(key) for key in keys])
        if set(keys) != set(values):
            raise CorruptState("it holds other keys than its tail record names")
    except (ValueError, KeyError, CorruptState) as error:
        raise InputError(f"user {user.user_id!r}: what was exported does not read back: {error}") from None
    tail = msgspec.structs.replace(tail, offset=-1)
    return [*values.items(), (own, msgspec.msgpack.encode(tail))]
