"""A large log of sessions: every user comes back a few times, and does so many things in a row each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from msgspec import Struct
from numpy.typing import NDArray

from schemas.codecs import encode_event
from schemas.events import Watch
from stream.kafka import connected, producer_options
from stream.settings import Settings
from stream.tools.partitioning import partition_of

_VIDEOS: Final = 10_000
_START_MS: Final = 1_750_000_000_000  # fixed, so that the same call gives the same events
_BATCH_BYTES: Final = 512 << 10
_SENT_AT_ONCE: Final = 24  # batches not yet acknowledged


class SessionLog(Struct, frozen=True):
    """So many events of each of so many users, `session_events` of them in a row.

    `at_once` sessions run at a time, their events in random order; every user has one before any has the next. A log of
    single events of all users in random order is one with `session_events` of 1 and `at_once` of all users.
    """

    users: int
    user_events: int
    session_events: int = 20
    at_once: int = 2_000
    seed: int = 0

    @property
    def events(self) -> int:
        """How many there are in all."""
        return self.users * self.user_events

    def waves(self) -> Iterator[NDArray[np.int64]]:
        """The log as numbers of users, one for each event, `at_once` whole sessions at a time."""
        random = np.random.default_rng(self.seed)
        for first in range(0, self.user_events, self.session_events):
            length = min(self.session_events, self.user_events - first)
            users = random.permutation(self.users)
            for begin in range(0, self.users, self.at_once):
                wave = np.repeat(users[begin : begin + self.at_once], length)
                random.shuffle(wave)
                yield wave


async def send(settings: Settings, log: SessionLog) -> AsyncIterator[int]:
    """Put a log into the events topic, wave by wave; yields the events sent so far, all of them acknowledged.

    Events are packed into whole batches here, a third of the work of giving them to the producer one by one.
    """
    partitions = settings.topics.partitions
    options = producer_options(settings.kafka)
    sent = 0
    random = np.random.default_rng(log.seed + 1)
    async with connected(
        AIOKafkaProducer(**options, max_batch_size=_BATCH_BYTES, max_request_size=8 * _BATCH_BYTES),
        settings.kafka,
    ) as producer:
        places = [partition_of(b"user-%d" % user, partitions) for user in range(log.users)]
        packer = _Packer(producer, settings.topics.events, partitions)
        for wave in log.waves():
            videos = random.integers(_VIDEOS, size=len(wave)).tolist()
            for user, video in zip(wave.tolist(), videos, strict=True):
                await packer.add(places[user], f"user-{user}", f"video-{video}", sent, log.seed)
                sent += 1
            await packer.flush()
            yield sent


class _Packer:
    """The batches being filled, one for each partition."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int) -> None:
        self._producer = producer
        self._topic = topic
        self._batches: list[Any] = [producer.create_batch() for _ in range(partitions)]
        self._under_way: set[asyncio.Future[Any]] = set()

    async def add(self, partition: int, user_id: str, video_id: str, number: int, seed: int) -> None:
        event = Watch(
            event_id=f"{seed:04x}-{number:012x}",
            user_id=user_id,
            video_id=video_id,
            timestamp_ms=_START_MS + number,
            watch_seconds=12.5,
            watch_ratio=0.208,
            video_seconds=60.0,
            session_id=f"session-{user_id}",
        )
        key, value = user_id.encode(), encode_event(event)
        if self._batches[partition].append(timestamp=None, key=key, value=value) is None:
            await self._send(partition)
            self._batches[partition].append(timestamp=None, key=key, value=value)

    async def flush(self) -> None:
        """Wait until everything is acknowledged."""
        for partition, batch in enumerate(self._batches):
            if batch.record_count():
                await self._send(partition)
        await asyncio.gather(*self._under_way)
        self._under_way.clear()

    async def _send(self, partition: int) -> None:
        if len(self._under_way) >= _SENT_AT_ONCE:
            done, self._under_way = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
        tp = TopicPartition(self._topic, partition)
        sent = await self._producer.send_batch(self._batches[partition], tp.topic, partition=tp.partition)
        self._under_way.add(sent)
        self._batches[partition] = self._producer.create_batch()
