"""Sends videos to their topic, keyed by video id, so that compaction keeps the newest of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.codecs import CONTENT_TYPE_HEADER, ContentType, encode_video
from schemas.videos import Video
from stream.kafka import connected, producer_options
from stream.settings import KafkaSettings
from stream.tools.producer import BATCH_BYTES, SendFailed
from stream.topics import partition_count

_BUNCH_VIDEOS: Final = 5_000


async def send_videos(
    kafka: KafkaSettings, topic: str, videos: Iterable[Video], content_type: ContentType
) -> int:
    """Send videos, wait until Kafka has acknowledged all of them, and return how many they were.

    Raises InputError where there is no such topic, KafkaUnreachable, and SendFailed.
    """
    await partition_count(kafka, topic)  # or sending would create it, and not compacted
    headers = [(CONTENT_TYPE_HEADER, content_type.encode())]
    producer = AIOKafkaProducer(**producer_options(kafka), max_batch_size=BATCH_BYTES, linger_ms=5)
    left = iter(videos)
    sent = 0
    async with connected(producer, kafka):
        while bunch := list(islice(left, _BUNCH_VIDEOS)):
            try:
                async with asyncio.timeout(kafka.connect_timeout_seconds):
                    acknowledged: list[asyncio.Future[Any]] = [
                        await producer.send(
                            topic,
                            encode_video(video, content_type),
                            key=video.video_id.encode(),
                            headers=headers,
                        )
                        for video in bunch
                    ]
                    await asyncio.gather(*acknowledged)
            except TimeoutError:
                seconds = kafka.connect_timeout_seconds
                raise SendFailed(f"topic {topic}: Kafka took no videos for {seconds:g} seconds") from None
            except KafkaError as error:
                raise SendFailed(f"topic {topic}: {type(error).__name__}: {error}") from error
            sent += len(bunch)
    return sent
