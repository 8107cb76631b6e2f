"""The videos topic as a table that every daemon has whole: read to its end, then followed, into the generator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from mtgr.attributes import pack_attributes
from mtgr.requests import AddedVideos, NewVideo
from schemas.codecs import CONTENT_TYPE_HEADER, decode_video
from schemas.errors import UndecodableVideo
from stream.errors import Fatal
from stream.kafka import is_connection_error
from stream.observability import Health, Metrics

log = structlog.get_logger(__name__)

COMPONENT: Final = "videos"
_POLL_MS: Final = 500
_RETRY_SECONDS: Final = 1.0
_BATCH_VIDEOS: Final = 1_000
_BATCH_BYTES: Final = 4 << 20  # of attributes: a batch may go to another process, or another machine


class VideoTable:
    """Videos from the topic, handed to `add` in batches; the newest of an id counts.

    A daemon reads the whole topic at every start, by a consumer of no group that commits nothing. What is no video is
    logged, counted and passed over, not dead-lettered: nothing waits for it to be committed, and every daemon at every
    start would bury it again. A tombstone changes nothing, because a model cannot unlearn.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        partitions: Sequence[TopicPartition],
        add: Callable[[Sequence[NewVideo]], Awaitable[AddedVideos]],
        metrics: Metrics,
        health: Health,
        *,
        patience_seconds: float,
    ) -> None:
        """`consumer` is started, belongs to no group and is used for this alone."""
        self._consumer = consumer
        self._partitions = list(partitions)
        self._add = add
        self._metrics = metrics
        self._health = health
        self._patience = patience_seconds

    async def catch_up(self) -> None:
        """Read the topic up to its present end; raises Fatal, also where no broker answers for too long."""
        self._health.not_ready(COMPONENT, "the videos topic is being read")
        started = time.monotonic()
        self._consumer.assign(self._partitions)
        ends: dict[TopicPartition, int] | None = None
        videos = 0
        deadline = started + self._patience
        while ends is None or any([await self._consumer.position(tp) < end for tp, end in ends.items()]):
            try:
                if ends is None:
                    await self._consumer.seek_to_beginning(*self._partitions)
                    ends = await self._consumer.end_offsets(self._partitions)
                    continue
                read = await self._read()
            except (KafkaError, OSError) as error:
                await self._not_read(error)
                read = 0
            if read:
                videos += read
                deadline = time.monotonic() + self._patience
            elif time.monotonic() > deadline:
                raise Fatal(f"topic {self._partitions[0].topic} could not be read to its end")
        log.info("videos_read", videos=videos, seconds=round(time.monotonic() - started, 2))
        self._health.ready(COMPONENT)

    async def run(self) -> None:
        """Follow the topic until cancelled; raises Fatal."""
        while True:
            try:
                await self._read()
            except (KafkaError, OSError) as error:
                await self._not_read(error)

    async def _read(self) -> int:
        """Take what has come, or wait a moment for something; returns the number of records."""
        fetched = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_BATCH_VIDEOS)
        records = [record for records in fetched.values() for record in records]
        for batch in _batches(self._decode(records)):
            outcome = await self._add(batch)
            counts = self._metrics.videos
            counts["added"].inc(outcome.added)
            counts["known"].inc(outcome.known)
            counts["refused"].inc(len(outcome.refused))
            if outcome.refused:
                log.warning(
                    "videos_refused",
                    videos=len(outcome.refused),
                    first=outcome.refused[0],
                    reason="the model's catalog has no spare place left: train it anew, or with more spare items",
                )
            log.debug("videos_added", added=outcome.added, known=outcome.known)
        return len(records)

    def _decode(self, records: Sequence[Any]) -> list[NewVideo]:
        videos: dict[str, NewVideo] = {}
        invalid = 0
        for record in records:
            if record.value is None:
                continue
            try:
                video = decode_video(record.value, dict(record.headers).get(CONTENT_TYPE_HEADER))
                if record.key != video.video_id.encode():
                    raise UndecodableVideo(_mismatch(record.key, video.video_id))
            except UndecodableVideo as error:
                if not invalid:
                    log.warning(
                        "video_invalid", partition=record.partition, offset=record.offset, error=str(error)
                    )
                invalid += 1
                continue
            videos[video.video_id] = NewVideo(video.video_id, pack_attributes(video.attributes))
        if invalid:
            self._metrics.videos["invalid"].inc(invalid)
            log.warning("videos_invalid", videos=invalid, of=len(records))
        return list(videos.values())

    async def _not_read(self, error: KafkaError | OSError) -> None:
        """Wait a while after a failure that may pass; raises Fatal for one that does not."""
        reason = str(error) or type(error).__name__
        if not is_connection_error(error):
            raise Fatal(f"videos cannot be read: {reason}") from error
        log.warning("videos_not_read", error=reason)
        await asyncio.sleep(_RETRY_SECONDS)


def _batches(videos: Sequence[NewVideo]) -> Iterator[list[NewVideo]]:
    batch: list[NewVideo] = []
    nbytes = 0
    for video in videos:
        if nbytes + len(video.attributes) > _BATCH_BYTES and batch:
            yield batch
            batch, nbytes = [], 0
        batch.append(video)
        nbytes += len(video.attributes)
    if batch:
        yield batch


def _mismatch(key: bytes | None, video_id: str) -> str:
    shown = "no key" if key is None else f"the key {key[:128]!r}"
    return f"the record has {shown}: expected its video_id {video_id!r}, by which the topic is compacted"
