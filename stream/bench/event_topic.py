"""A topic filled once with the same events, which every system that is compared reads as a group of its own."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient
from msgspec import Struct

from schemas.events import Watch
from stream.bench.environment import Bench
from stream.bench.load import produce, watches
from stream.kafka import client_options
from stream.settings import KafkaSettings, Settings
from stream.tools.pacing import Unpaced
from stream.tools.partitioning import partition_of
from stream.topics import ensure_topics

_VIDEOS = 10_000


class EventTopic(Struct, frozen=True):
    """So many events of so many users, users in random order."""

    name: str
    partitions: int
    events: int
    users: int

    def histories(self, sample: int) -> dict[str, list[tuple[int, Watch]]]:
        """What some users did, in order, each event with its offset in the user's partition."""
        wanted = {f"user-{user}" for user in range(0, self.users, max(self.users // sample, 1))}
        found: dict[str, list[tuple[int, Watch]]] = defaultdict(list)
        partitions = {
            f"user-{user}": partition_of(f"user-{user}".encode(), self.partitions)
            for user in range(self.users)
        }
        offsets = [0] * self.partitions
        for event in watches(self.events, self.users, _VIDEOS):
            partition = partitions[event.user_id]
            if event.user_id in wanted:
                found[event.user_id].append((offsets[partition], event))
            offsets[partition] += 1
        return found


def filled(bench: Bench, *, partitions: int, events: int, users: int) -> EventTopic:
    """Make a topic and fill it."""
    settings, _ = bench.settings(topics__partitions=partitions)
    asyncio.run(_fill(settings, events, users))
    return EventTopic(settings.topics.events, partitions, events, users)


async def _fill(settings: Settings, events: int, users: int) -> None:
    await ensure_topics(settings)
    await produce(settings, watches(events, users, _VIDEOS), Unpaced())


@asynccontextmanager
async def offsets_reader(kafka: KafkaSettings) -> AsyncIterator[Callable[[], Awaitable[dict[int, int]]]]:
    """What the group of these settings has committed, by partition, each time it is asked."""
    admin = AIOKafkaAdminClient(**client_options(kafka))
    await admin.start()

    async def read() -> dict[int, int]:
        offsets = await admin.list_consumer_group_offsets(kafka.group_id)
        return {tp.partition: found.offset for tp, found in offsets.items() if found.offset > 0}

    try:
        yield read
    finally:
        await admin.close()
