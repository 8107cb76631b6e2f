"""Promises of stream.source: every record read is folded where it belongs, and memory is bounded by pausing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError
from dict_store import DictStore
from hypothesis import given
from hypothesis import strategies as st
from partitions import TOPIC, Record, like, likes, partition_settings, raise_corrupt, record_of, running

from stream import source as reading
from stream.dead_letters import DeadLetterGuard
from stream.errors import Fatal
from stream.hot_keys import HotKeys
from stream.observability import Metrics
from stream.partition import Partition, Phase
from stream.source import Source


@pytest.fixture(autouse=True)
def _short_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_POLL_MS", 1)


class Consumer:
    """A consumer that hands over what a test put into it, and remembers what was paused and sought."""

    def __init__(self, *assigned: TopicPartition) -> None:
        self.assigned = set(assigned)
        self.paused: set[TopicPartition] = set()
        self.sought: list[tuple[TopicPartition, int]] = []
        self.fetches: asyncio.Queue[dict[TopicPartition, list[Record]] | Exception] = asyncio.Queue()
        self.polls = 0
        self.asked: list[int] = []  # how many records at most, poll by poll
        self.polled = asyncio.Condition()

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        self.polls += 1
        self.asked.append(max_records)
        async with self.polled:
            self.polled.notify_all()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                fetched = await self.fetches.get()
        except TimeoutError:
            return {}
        if isinstance(fetched, Exception):
            raise fetched
        return fetched

    def pause(self, tp: TopicPartition) -> None:
        assert tp not in self.paused
        self.paused.add(tp)

    def resume(self, tp: TopicPartition) -> None:
        assert tp in self.paused
        self.paused.remove(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        if tp not in self.assigned:
            raise IllegalStateError(f"{tp} is not assigned")
        self.sought.append((tp, offset))

    def highwater(self, tp: TopicPartition) -> int | None:
        return 100


class World:
    """A source on a scripted consumer."""

    def __init__(self, *partitions: Partition, max_bytes: int = 1 << 30, max_owed: int = 1_000) -> None:
        self.partitions = {partition.tp: partition for partition in partitions}
        self.consumer = Consumer(*self.partitions)
        self.metrics = Metrics()
        self.wakes = 0
        self.hot_keys = HotKeys()
        self.source = Source(
            self.consumer,
            self.partitions,
            self.metrics,
            DeadLetterGuard("records", 10, 0.5),
            self._on_folded,
            self.hot_keys,
            max_poll_records=100,
            max_bytes=max_bytes,
            max_owed=max_owed,
        )

    def _on_folded(self) -> None:
        self.wakes += 1

    def fetched(self, fetched: dict[TopicPartition, list[Record]] | Exception) -> None:
        self.consumer.fetches.put_nowait(fetched)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is looked at whenever the source asks for more."""
        async with asyncio.timeout(20), self.consumer.polled:
            await self.consumer.polled.wait_for(condition)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.source.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def sample(self, name: str, **labels: str) -> float | None:
        self.metrics.refresh()
        return self.metrics.registry.get_sample_value(name, labels)


async def test_records_reach_their_partition_and_are_counted() -> None:
    """What is fetched is folded into its partition, the dispatcher is woken, and the metrics tell of it by kind."""
    first, second = running(0), running(1)
    world = World(first, second)
    world.fetched({first.tp: likes(["a", "b"]), second.tp: likes(["c"], 5)})
    world.fetched({first.tp: [record_of(like("a", "e0"), 2), Record(3, b"a", b"rubbish")]})
    async with world.reading():
        await world.until(lambda: first.next_offset == 4 and world.wakes > 0)
    assert (first.next_offset, second.next_offset) == (4, 6)
    assert world.sample("mtgr_events_total", type="like") == 4
    assert world.sample("mtgr_duplicates_total") == 1
    assert world.sample("mtgr_dead_letters_total", stage="decode") == 1
    assert world.sample("mtgr_owed_users") == 3
    assert world.sample("mtgr_consumer_lag", topic=TOPIC, partition="0") == 96
    assert world.sample("mtgr_state_users", topic=TOPIC, partition="1") == 1


async def test_what_is_there_is_read_in_one_turn_up_to_its_limit() -> None:
    """Records are asked for until there are no more or a turn has had its share; then lists are looked at."""
    partition = running()
    world = World(partition)
    turns: list[int | None] = []
    world.source._on_folded = lambda: turns.append(partition.next_offset)
    for offset in range(0, 200, 50):
        world.fetched({partition.tp: likes(["a"] * 50, offset)})
    async with world.reading():
        await world.until(lambda: len(turns) == 2)
    assert turns == [100, 200]
    assert world.consumer.asked[:4] == [100, 50, 100, 50]


async def test_a_full_partition_is_paused_and_stalls_nobody() -> None:
    """A partition above its share of the bytes is paused alone, and goes on once half of that is committed."""
    full, free = running(0), running(1)
    nbytes = len(likes(["a"])[0].value or b"")
    world = World(full, free, max_bytes=2 * 10 * nbytes)
    async with world.reading():
        world.fetched({full.tp: likes(["a"] * 10), free.tp: likes(["b"])})
        await world.until(lambda: world.wakes == 1)
        assert world.consumer.paused == set()
        world.fetched({full.tp: likes(["a"], 10)})
        await world.until(lambda: world.consumer.paused == {full.tp})
        assert world.sample("mtgr_paused_partitions") == 1
        full.uncommitted_bytes = 5 * nbytes + 1
        polls = world.consumer.polls
        await world.until(lambda: world.consumer.polls > polls + 2)
        assert world.consumer.paused == {full.tp}
        full.uncommitted_bytes = 5 * nbytes
        await world.until(lambda: not world.consumer.paused)


async def test_too_many_owed_lists_pause_as_well() -> None:
    """A partition whose users wait for more lists than its share is not read further until half are made."""
    partition = running()
    world = World(partition, max_owed=4)
    async with world.reading():
        world.fetched({partition.tp: likes(["a", "b", "c", "d", "e"])})
        await world.until(lambda: world.consumer.paused == {partition.tp})
        for left in (4, 3, 2):
            pending = partition.take_due(1e9)
            assert pending is not None
            partition.settle(pending)
            assert partition.owed == left
        await world.until(lambda: not world.consumer.paused)


@given(st.integers(1, 5), st.integers(0, 7))
def test_no_share_is_so_small_that_nothing_is_read(partitions: int, max_owed: int) -> None:
    """Even limits below the number of partitions let every partition make progress."""

    async def scenario() -> None:
        parts = [running(number) for number in range(partitions)]
        world = World(*parts, max_bytes=1, max_owed=max_owed)
        for part in parts:
            part.fold(likes(["a"]), 0.0)
        world.source._balance()
        for part in parts:
            while (pending := part.take_due(1e9)) is not None:
                part.settle(pending)
            work = part.take_work()
            assert work is not None
            part.committed(work)
        world.source._balance()
        assert world.consumer.paused == set()

    asyncio.run(scenario())


async def test_a_partition_that_was_lost_while_full_comes_back_unpaused() -> None:
    """What was paused before a rebalance is no burden to the partition's next life, here or elsewhere."""
    before = running()
    world = World(before, max_owed=1)
    async with world.reading():
        world.fetched({before.tp: likes(["a", "b", "c"])})
        await world.until(lambda: before.tp in world.consumer.paused)
        before.close()
        world.consumer.paused.clear()  # as a new assignment is
        polls = world.consumer.polls
        await world.until(lambda: world.consumer.polls > polls + 1)
        assert world.sample("mtgr_paused_partitions") == 0
        after = world.partitions[before.tp] = running()
        world.fetched({after.tp: likes(["a", "b", "c"])})
        await world.until(lambda: after.tp in world.consumer.paused)
        while (pending := after.take_due(1e9)) is not None:
            after.settle(pending)
        await world.until(lambda: not world.consumer.paused)


@pytest.mark.parametrize("created", [True, False])
async def test_records_of_an_unrestored_partition_are_read_again(created: bool) -> None:
    """What slips through before the state is restored is not folded into nothing, but read once it is there."""
    tp = TopicPartition(TOPIC, 0)
    restoring = Partition(tp, DictStore(), partition_settings(), raise_corrupt)
    world = World()
    world.consumer.assigned = {tp}
    if created:
        world.partitions[tp] = restoring
    async with world.reading():
        world.fetched({tp: likes(["a", "b"], 7)})
        await world.until(lambda: world.wakes == 1)
    assert world.consumer.sought == [(tp, 7)]
    assert restoring.next_offset is None


@pytest.mark.parametrize("phase", [None, Phase.LEAVING, Phase.CLOSED])
async def test_records_of_a_lost_partition_are_left_to_its_next_owner(phase: Phase | None) -> None:
    """Records fetched for a partition that is being given up change nothing here."""
    partition = running()
    world = World(*([partition] if phase else []))
    world.consumer.assigned = set()
    if phase:
        partition.phase = phase
    async with world.reading() as task:
        world.fetched({partition.tp: likes(["a"])})
        await world.until(lambda: world.wakes == 1)
        assert not task.done()
    assert partition.next_offset is None


@pytest.mark.parametrize("error", [KafkaConnectionError(), OSError("no route to the broker")])
async def test_an_outage_is_waited_for(error: Exception) -> None:
    """Reading goes on after a connection failed."""
    partition = running()
    world = World(partition)
    world.fetched(error)
    world.fetched({partition.tp: likes(["a"])})
    async with world.reading():
        await world.until(lambda: partition.next_offset == 1)


@pytest.mark.parametrize(
    ("fetched", "message"),
    [
        (KafkaError("not authorized"), "events cannot be read: .*not authorized"),
        (
            {TopicPartition(TOPIC, 0): [Record(n, b"a", b"rubbish") for n in range(6)]},
            "6 records|records are dead",
        ),
    ],
)
async def test_what_cannot_heal_stops_the_daemon(fetched: Any, message: str) -> None:
    """A topic that may not be read, or holds no events, ends the daemon with the reason."""
    world = World(running())
    world.fetched(fetched)
    with pytest.raises(Fatal, match=message):
        await asyncio.wait_for(world.source.run(), 20)
