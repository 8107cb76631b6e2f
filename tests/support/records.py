"""Records in and out of Kafka, for tests: every wait has a deadline and says what it was waiting for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError

DEADLINE_SECONDS = 30.0


class Outgoing(NamedTuple):
    """A record to produce; the partition is the key's unless one is given."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None
    timestamp_ms: int | None = None


@dataclass(frozen=True)
class TopicNames:
    """Names that no other test uses, as the settings call them."""

    group: str
    events: str
    lists: str
    dead_letters: str
    changelog: str


async def create_topic(
    bootstrap_servers: str, name: str, *, partitions: int = 1, config: Mapping[str, str] | None = None
) -> None:
    """Create one topic and return once every partition of it has a leader that clients can see."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=dict(config or {}))])

        async def led() -> bool:
            (topic,) = await admin.describe_topics([name])
            return [one["leader"] for one in topic["partitions"]].count(1) == partitions

        await eventually(led, f"a leader for each partition of {name}")
    finally:
        await admin.close()


async def produce(bootstrap_servers: str, topic: str, records: Iterable[Outgoing]) -> None:
    """Send records, in order within a partition, and return once all are acknowledged."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", linger_ms=5) as producer:
        sent = [
            await producer.send(
                topic,
                record.value,
                key=record.key,
                headers=list(record.headers),
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )
            for record in records
        ]
        await asyncio.wait_for(asyncio.gather(*sent), DEADLINE_SECONDS)


async def consume(
    bootstrap_servers: str,
    topic: str,
    enough: int | Callable[[list[ConsumerRecord]], bool],
    *,
    within: float = DEADLINE_SECONDS,
) -> list[ConsumerRecord]:
    """Every committed record of a topic from its start, as soon as there are enough of them.

    `enough` is a count or a condition on what came so far. Fails when it is not met in time.
    """
    condition = enough if callable(enough) else (lambda records: len(records) >= enough)
    records: list[ConsumerRecord] = []
    deadline = time.monotonic() + within
    async with _reader(bootstrap_servers, topic) as reader:
        while not condition(records):
            left = deadline - time.monotonic()
            if left <= 0:
                wanted = "enough" if callable(enough) else enough
                raise AssertionError(f"{topic}: wanted {wanted} records, got {len(records)} in {within:g} s")
            batches = await reader.getmany(timeout_ms=int(min(left, 0.5) * 1000))
            records += [record for batch in batches.values() for record in batch]
    return records


async def read_to_end(bootstrap_servers: str, topic: str) -> list[ConsumerRecord]:
    """Every committed record that is in a topic now."""
    records: list[ConsumerRecord] = []
    async with _reader(bootstrap_servers, topic) as reader:
        ends = await reader.end_offsets(reader.assignment())
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any([await reader.position(partition) < end for partition, end in ends.items()]):
            if time.monotonic() > deadline:
                raise AssertionError(f"{topic}: its end was not reached in {DEADLINE_SECONDS:g} s")
            batches = await reader.getmany(timeout_ms=500)
            records += [record for batch in batches.values() for record in batch]
    return records


async def committed_offsets(bootstrap_servers: str, group: str, topic: str) -> dict[int, int]:
    """The offsets a consumer group has committed, by partition; none for a partition without a commit."""
    offsets = {}

    async def told() -> bool:
        with contextlib.suppress(GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError):
            offsets.update(await admin.list_consumer_group_offsets(group))
            return True
        return False

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await eventually(told, f"a coordinator of group {group}")
    finally:
        await admin.close()
    return {place.partition: given.offset for place, given in offsets.items() if place.topic == topic}


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], what: str, *, within: float = DEADLINE_SECONDS
) -> None:
    """Return once the condition, a plain or async function, is true; fail with `what` when time runs out."""
    deadline = time.monotonic() + within
    while True:
        met = condition()
        if met if isinstance(met, bool) else await met:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within:g} s for {what}")
        await asyncio.sleep(0.05)


def _reader(bootstrap_servers: str, topic: str) -> AIOKafkaConsumer:
    # without a group it is given every partition, and reading never moves anybody's offsets
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap_servers,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
