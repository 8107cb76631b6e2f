"""Sends a log's events to Kafka: in order for each user, in batches, at a pace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from threading import Thread
from time import monotonic
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.codecs import CONTENT_TYPE_HEADER, ContentType, encode_event
from schemas.events import Event
from stream.kafka import producer_options, start
from stream.settings import KafkaSettings
from stream.tools.pacing import Pace
from stream.tools.partitioning import partition_of
from stream.topics import partition_count

BATCH_BYTES: Final = 256 * 1024
# Events are sent in bunches of at least this much time: one request for each would be far slower.
_TICK_SECONDS: Final = 0.01
_SAVE_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 5.0
_KNOWN_USERS: Final = 200_000

T = TypeVar("T")


class SendFailed(Exception):
    """Kafka refused events, or could not be reached for too long."""


@dataclass(slots=True)
class Sent:
    """How far a producer has come."""

    events: int = 0
    acknowledged: int = 0
    """Events before the first that Kafka has not acknowledged."""
    timestamp_ms: int = 0
    """Time of the last event sent."""


class EventProducer:
    """One run through a log.

    Every batch of a partition waits for the one before, so that events of a user arrive in the log's order,
    and the producer is idempotent, so that a retried batch is not there twice.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        pace: Pace,
        content_type: ContentType,
        on_progress: Callable[[Sent], None],
    ) -> None:
        """`on_progress` is called about once a second, and at the end."""
        self.sent = Sent()
        self._kafka = kafka
        self._topic = topic
        self._pace = pace
        self._content_type = content_type
        self._headers = [(CONTENT_TYPE_HEADER, content_type.encode())]
        self._on_progress = on_progress
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._filling: dict[int, _Batch] = {}  # by partition
        self._in_flight: set[_Batch] = set()

    def stop(self) -> None:
        """Let `run` send what it has taken from the log, and return."""
        self._stop.set()

    async def run(self, bunches: Iterator[Sequence[Event]]) -> None:
        """Send the events of all bunches, or those until `stop`, and wait until Kafka has acknowledged them.

        Reading goes on in a thread of its own, where it may block. Raises SendFailed, KafkaUnreachable and
        whatever the reading raises; `sent` says in any case what was acknowledged.
        """
        partitions = await partition_count(self._kafka, self._topic)
        options = {**producer_options(self._kafka), "max_batch_size": BATCH_BYTES}
        producer = AIOKafkaProducer(**options)
        await start(producer, self._kafka)
        reporting = asyncio.create_task(self._report())
        try:
            try:
                await self._send_all(producer, partitions, bunches)
            finally:
                await self._flush(producer)
        except TimeoutError:
            seconds = self._kafka.connect_timeout_seconds
            raise SendFailed(f"topic {self._topic}: Kafka took no events for {seconds:g} seconds") from None
        except KafkaError as error:
            raise SendFailed(f"topic {self._topic}: {type(error).__name__}: {error}") from error
        finally:
            reporting.cancel()
            # a producer whose broker is gone would wait for it without end
            with suppress(TimeoutError):
                await asyncio.wait_for(producer.stop(), _STOP_SECONDS)
            with suppress(asyncio.CancelledError):
                await reporting
            self._acknowledge()
            self._on_progress(self.sent)

    async def _send_all(
        self, producer: AIOKafkaProducer, partitions: int, bunches: Iterator[Sequence[Event]]
    ) -> None:
        route = lru_cache(_KNOWN_USERS)(lambda user_id: _route(user_id, partitions))
        stopped = asyncio.create_task(self._stop.wait())
        sent, headers, content_type = self.sent, self._headers, self._content_type
        delay = self._pace.delay
        try:
            while bunch := await self._next_bunch(producer, bunches, stopped):
                for event in bunch:
                    if (wait := delay(monotonic(), event.timestamp_ms)) > 0.0:
                        await self._flush_begun(producer)
                        await asyncio.wait([stopped], timeout=max(wait, _TICK_SECONDS))
                    if self._stop.is_set():
                        return
                    partition, key = route(event.user_id)
                    value = encode_event(event, content_type)
                    batch = self._filling.get(partition)
                    if batch is None or not batch.add(key, value, headers):
                        if batch is not None:
                            await self._submit(producer, partition)
                        batch = self._filling[partition] = _Batch(producer.create_batch(), sent.events)
                        batch.add(key, value, headers)
                    sent.events += 1
                    sent.timestamp_ms = event.timestamp_ms
                if self._failure is not None:
                    raise self._failure
        finally:
            stopped.cancel()

    async def _next_bunch(
        self,
        producer: AIOKafkaProducer,
        bunches: Iterator[Sequence[Event]],
        stopped: asyncio.Task[Any],
    ) -> Sequence[Event]:
        """What is read next, or nothing at the end or if `stopped` is first; a slow input holds nothing back."""
        reading = _in_thread(lambda: next(bunches, ()))
        await asyncio.wait([reading, stopped], timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await self._flush_begun(producer)
            await asyncio.wait([reading, stopped], return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        reading.cancel()
        return ()

    async def _submit(self, producer: AIOKafkaProducer, partition: int) -> None:
        """Hand a batch to Kafka, as soon as the one before it is on its way."""
        batch = self._filling.pop(partition)
        self._in_flight.add(batch)
        async with asyncio.timeout(self._kafka.connect_timeout_seconds):
            future = await producer.send_batch(batch.builder, self._topic, partition=partition)
        future.add_done_callback(lambda done: self._done(batch, done))

    def _done(self, batch: _Batch, future: asyncio.Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._failure = self._failure or error
        elif not future.cancelled():
            self._in_flight.discard(batch)

    async def _flush_begun(self, producer: AIOKafkaProducer) -> None:
        for partition in list(self._filling):
            await self._submit(producer, partition)

    async def _flush(self, producer: AIOKafkaProducer) -> None:
        if self._failure is None:
            await self._flush_begun(producer)
        async with asyncio.timeout(self._kafka.connect_timeout_seconds):
            await producer.flush()
        await asyncio.sleep(0)  # the callbacks of what was flushed
        if self._failure is not None:
            raise self._failure

    def _acknowledge(self) -> None:
        open_ = [batch.first for batch in (*self._in_flight, *self._filling.values())]
        self.sent.acknowledged = min(open_, default=self.sent.events)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            self._acknowledge()
            self._on_progress(self.sent)


class _Batch:
    """Events of one partition on their way; `first` is the number of the first of them in the log."""

    def __init__(self, builder: Any, first: int) -> None:
        self.builder = builder
        self.first = first

    def add(self, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> bool:
        """Whether there was room."""
        return self.builder.append(timestamp=None, key=key, value=value, headers=headers) is not None


def _route(user_id: str, partitions: int) -> tuple[int, bytes]:
    key = user_id.encode()
    return partition_of(key, partitions), key


def _in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function that may block in a thread which, unlike those of asyncio, does not keep the process
    alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (function(), None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
            outcome = (None, error)
        with suppress(RuntimeError):  # nobody waits any more, and the loop is closed
            loop.call_soon_threadsafe(settle, *outcome)

    Thread(target=work, daemon=True).start()
    return future
