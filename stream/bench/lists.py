"""Lists per second at saturation, and the time from event to list at half of that, as a consumer sees it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from msgspec import Struct

from schemas.codecs import CONTENT_TYPE_HEADER, decode_list, encode_event
from schemas.events import Watch
from stream.bench.environment import Bench
from stream.bench.load import produce, watches
from stream.demo.daemon import DaemonProcess
from stream.kafka import client_options, connected, producer_options
from stream.settings import Settings
from stream.tools.pacing import Unpaced
from stream.topics import ensure_topics

_HISTORY_EVENTS = 64
_TICK_SECONDS = 0.005
_SETTLE_SECONDS = 3.0


class ListsResult(Struct, frozen=True):
    """One generator: its saturated rate, and its latencies in milliseconds at half of it."""

    kind: str
    users: int
    lists_per_second: float
    half_rate: float
    p50_ms: float
    p99_ms: float
    mean_batch: float
    cached_share: float


def run(
    bench: Bench, checkpoint: Path, kind: str, *, users: int, videos: int, feed_rate: float, seconds: float
) -> ListsResult:
    """Give users a history, keep every one of them owed a list for `seconds`, then feed half of what was sustained.

    `feed_rate` is the events per second that must be above what the generator can do.
    """
    settings, values = bench.settings(
        topics__partitions=6,
        model__checkpoint=str(checkpoint.absolute()),
        generator__kind=kind,
    )
    return asyncio.run(_run(bench, settings, values, kind, users, videos, feed_rate, seconds))


async def _run(
    bench: Bench,
    settings: Settings,
    values: dict[str, object],
    kind: str,
    users: int,
    videos: int,
    feed_rate: float,
    seconds: float,
) -> ListsResult:
    await ensure_topics(settings)
    await produce(settings, watches(users * _HISTORY_EVENTS, users, videos), Unpaced())
    with bench.daemon(values) as daemon:
        await asyncio.to_thread(daemon.wait_ready, 180)
        await _until_idle(daemon, users)
        async with _feeding(settings, users, videos, feed_rate, seed=1):
            await asyncio.sleep(_SETTLE_SECONDS)
            before, started = daemon.metrics(), time.monotonic()
            await asyncio.sleep(seconds)
            after, ended = daemon.metrics(), time.monotonic()
        rate = (after["mtgr_lists_total"] - before["mtgr_lists_total"]) / (ended - started)
        await _until_idle(daemon, users)
        before = daemon.metrics()
        latencies = await _latencies(settings, users, videos, rate / 2, seconds)
        after = daemon.metrics()
    batches = after["mtgr_list_batch_users_count"] - before["mtgr_list_batch_users_count"]
    in_batches = after["mtgr_list_batch_users_sum"] - before["mtgr_list_batch_users_sum"]
    tokens = after["mtgr_prompt_tokens_total"] - before["mtgr_prompt_tokens_total"]
    cached = after["mtgr_cached_tokens_total"] - before["mtgr_cached_tokens_total"]
    return ListsResult(
        kind=kind,
        users=users,
        lists_per_second=rate,
        half_rate=rate / 2,
        p50_ms=float(np.percentile(latencies, 50)),
        p99_ms=float(np.percentile(latencies, 99)),
        mean_batch=in_batches / max(batches, 1),
        cached_share=cached / max(tokens, 1),
    )


async def _until_idle(daemon: DaemonProcess, users: int) -> None:
    """Wait until every user was served at least once and nobody is owed a list."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        metrics = await asyncio.to_thread(daemon.metrics)
        lag, owed = metrics.get("mtgr_consumer_lag", 1), metrics.get("mtgr_owed_users", 1)
        if metrics.get("mtgr_lists_total", 0) >= users and lag == 0 and owed == 0:
            return
        await asyncio.sleep(0.2)
    raise RuntimeError("the daemon has not served the lists it owes within 300 seconds")


async def _latencies(settings: Settings, users: int, videos: int, rate: float, seconds: float) -> list[float]:
    """Milliseconds from the sending of an event to the arrival of the list made after it, for every list."""
    consumer = AIOKafkaConsumer(
        settings.topics.lists,
        **client_options(settings.kafka),
        auto_offset_reset="latest",
        isolation_level="read_committed",
        fetch_max_wait_ms=5,
    )
    async with connected(consumer, settings.kafka):
        await consumer.seek_to_end()
        latencies: list[float] = []
        began_ms = time.time() * 1000
        async with _feeding(settings, users, videos, rate, seed=2):
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                fetched = await consumer.getmany(timeout_ms=20)
                now_ms = time.time() * 1000
                for records in fetched.values():
                    lists = [decode_list(record.value) for record in records]
                    latencies += [
                        now_ms - made.trigger.timestamp_ms
                        for made in lists
                        if made.trigger.timestamp_ms >= began_ms
                    ]
    if not latencies:
        raise RuntimeError(f"no list came within {seconds:g} seconds")
    return latencies


@contextlib.asynccontextmanager
async def _feeding(
    settings: Settings, users: int, videos: int, rate: float, seed: int
) -> AsyncIterator[None]:
    """Send watch events at a rate while the block runs, users in turn, each stamped when it is sent."""
    options = producer_options(settings.kafka)
    async with connected(AIOKafkaProducer(**options), settings.kafka) as producer:
        feeding = asyncio.create_task(_feed(producer, settings.topics.events, users, videos, rate, seed))
        try:
            yield
        finally:
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding
            await producer.flush()


async def _feed(
    producer: AIOKafkaProducer, topic: str, users: int, videos: int, rate: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    started = time.monotonic()
    sent = 0
    while True:
        due = int((time.monotonic() - started) * rate)
        for number in range(sent, due):
            user_id = f"user-{number % users}"
            event = Watch(
                event_id=f"live-{seed}-{number}",
                user_id=user_id,
                video_id=f"video-{random.integers(videos)}",
                timestamp_ms=time.time_ns() // 1_000_000,
                watch_seconds=12.5,
                watch_ratio=0.5,
                video_seconds=25.0,
            )
            headers = [(CONTENT_TYPE_HEADER, b"application/json")]
            await producer.send(topic, encode_event(event), key=user_id.encode(), headers=headers)
        sent = max(sent, due)
        await asyncio.sleep(_TICK_SECONDS)
