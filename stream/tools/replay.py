"""Sends dead letters back to the topic they came from, once they are valid."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from msgspec import Struct, field

from schemas.codecs import CONTENT_TYPE_HEADER, JSON, decode_event, encode_event
from schemas.dead_letters import REPLAYED_HEADER, DeadLetter, Header, original_headers
from schemas.errors import Stage, UndecodableEvent
from stream.kafka import client_options, connected, producer_options
from stream.settings import Settings
from stream.tools.repairs import LetterRecord, Repair
from stream.tools.settled_offsets import SettledOffsets
from stream.topics import committed_offsets, partition_count

log = structlog.get_logger(__name__)

_BATCH_LETTERS: Final = 500
_POLL_MS: Final = 500
_REPLAYED: Final[Header] = (REPLAYED_HEADER, b"true")
_CONTENT_TYPE: Final[Header] = (CONTENT_TYPE_HEADER, JSON.encode())


class Verdict(Struct, frozen=True):
    """What becomes of one letter. `reason` says why it is left where it is; it is None where it is replayed."""

    letter: LetterRecord
    reason: str | None


class ReplaySummary(Struct):
    """Letters by what became of them; those that were replayed before count nowhere."""

    replayed: int = 0
    left: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By stage and error."""
    passed_over: int = 0
    """Of another stage than the one asked for."""


class _Outgoing(Struct, frozen=True):
    topic: str
    key: bytes
    value: bytes
    headers: list[Header]


class Replayer:
    """One pass over the dead letters that are there when it begins.

    The consumer group `<group_id>-replay` remembers which letters are settled, so that none is replayed
    twice: offsets are committed when Kafka has acknowledged the replayed records, and what is left can be
    replayed another time. After a crash between the two, or with more gaps than a commit can hold, letters
    are replayed again; a daemon knows their event ids.
    """

    def __init__(
        self,
        settings: Settings,
        repair: Repair,
        *,
        stage: Stage | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        on_verdict: Callable[[Verdict], None] = lambda verdict: None,
    ) -> None:
        """`limit` counts the letters that are looked at; a dry run sends and commits nothing."""
        self.summary = ReplaySummary()
        self._settings = settings
        self._repair = repair
        self._stage = stage
        self._left_to_look_at = limit
        self._dry_run = dry_run
        self._on_verdict = on_verdict
        self._topic = settings.topics.dead_letters
        self._group = f"{settings.kafka.group_id}-replay"

    async def run(self) -> ReplaySummary:
        """Replay; raises InputError where there is no such topic or the repair fails, KafkaUnreachable."""
        kafka = self._settings.kafka
        partitions = await partition_count(kafka, self._topic)
        if not self._dry_run:
            await partition_count(kafka, self._settings.topics.events)  # sending would create it
        commits = await committed_offsets(kafka, self._group)
        consumer = AIOKafkaConsumer(
            **client_options(kafka),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=4 << 20,
            fetch_max_wait_ms=100,
        )
        tps = [TopicPartition(self._topic, number) for number in range(partitions)]
        consumer.assign(tps)
        producer = AIOKafkaProducer(**producer_options(kafka), max_request_size=4 << 20)
        async with connected(consumer, kafka), connected(producer, kafka):
            beginnings, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
            for tp in tps:
                settled = SettledOffsets.from_commit(*commits.get(tp, (0, "")))
                settled.add(0, beginnings[tp])
                consumer.pause(*(other for other in tps if other != tp))
                consumer.resume(tp)
                consumer.seek(tp, settled.next_offset)
                position = settled.next_offset
                async for records in _until(consumer, tp, ends[tp]):
                    await self._settle(producer, position, records, settled)
                    position = records[-1].offset + 1
                    if not self._dry_run:
                        commit = (settled.next_offset, settled.to_metadata())
                        await consumer.commit({tp: commit})
                    if self._left_to_look_at == 0:
                        return self.summary
        return self.summary

    async def _settle(
        self, producer: AIOKafkaProducer, position: int, records: Sequence[Any], settled: SettledOffsets
    ) -> None:
        """Replay what can be of the records from a position on; note in `settled` what needs no second look."""
        looked_at = []
        for record in records:
            # between two records that follow each other there are only markers of transactions
            settled.add(position, record.offset)
            position = record.offset + 1
            if record.offset in settled:
                continue
            try:
                letter = DeadLetter.from_headers(record.headers)
            except ValueError as error:
                log.warning(
                    "no_dead_letter", partition=record.partition, offset=record.offset, error=str(error)
                )
                self.summary.left["none", "not a dead letter"] += 1
                continue
            if self._stage is not None and letter.stage != self._stage:
                self.summary.passed_over += 1
                continue
            if self._left_to_look_at == 0:
                break
            if self._left_to_look_at is not None:
                self._left_to_look_at -= 1
            looked_at.append((record, letter, LetterRecord.of(letter, record)))
        if not looked_at:
            return
        repaired = await self._repair([shown for _, _, shown in looked_at])
        futures, replayed = [], []
        for (record, letter, shown), value in zip(looked_at, repaired, strict=True):
            outcome = self._judge(record, letter, value)
            if isinstance(outcome, str):
                self.summary.left[letter.stage, letter.exception_class] += 1
                self._on_verdict(Verdict(shown, outcome))
                continue
            self.summary.replayed += 1
            self._on_verdict(Verdict(shown, None))
            if not self._dry_run:
                replayed.append(record.offset)
                futures.append(
                    await producer.send(
                        outcome.topic, outcome.value, key=outcome.key, headers=outcome.headers
                    )
                )
        for future in futures:
            await future
        for offset in replayed:
            settled.add(offset, offset + 1)

    def _judge(self, record: Any, letter: DeadLetter, repaired: bytes | None) -> _Outgoing | str:
        """The record that goes back, or why none does."""
        events = self._settings.topics.events
        if letter.topic != events:
            return f"it came from topic {letter.topic}, not from topics.events = {events}"
        headers = original_headers(record.headers)
        value = record.value
        content_type = dict(headers).get(CONTENT_TYPE_HEADER)
        try:
            if repaired is not None:
                event = decode_event(repaired)
                value = encode_event(event)
                headers = [*(header for header in headers if header[0] != CONTENT_TYPE_HEADER), _CONTENT_TYPE]
            else:
                event = decode_event(value, content_type)
        except UndecodableEvent as error:
            return str(error)
        most = self._settings.stream.max_event_bytes
        if len(value) > most:
            return f"the value has {len(value)} bytes, more than stream.max_event_bytes = {most}"
        key = event.user_id.encode()
        if repaired is None and record.key is not None and record.key != key:
            shown = record.key.decode(errors="backslashreplace")
            return f"key {shown!r} is not user_id {event.user_id!r}: repair the value to say which is right"
        headers = [*(header for header in headers if header[0] != REPLAYED_HEADER), _REPLAYED]
        return _Outgoing(letter.topic, key, value, headers)


async def _until(consumer: AIOKafkaConsumer, tp: TopicPartition, end: int) -> AsyncIterator[Sequence[Any]]:
    """The records of a partition up to an offset, in batches."""
    while await consumer.position(tp) < end:
        fetched = await consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=_BATCH_LETTERS)
        records = [record for record in fetched.get(tp, ()) if record.offset < end]
        if records:
            yield records
