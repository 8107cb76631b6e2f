"""Promises of stream.commits: at least once, nothing is committed before it is durable, no successor is set back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError
from changelogs import Changelog, ChangelogConsumer, ChangelogProducer
from dict_store import DictStore
from partitions import TOPIC, likes, running

from stream import changelog, commits
from stream.commits import AtLeastOnce, PartitionsLost
from stream.partition import CommitWork, Partition
from stream.settings import load_settings
from stream.stored import Change, tail_key

TP = TopicPartition(TOPIC, 0)


class Group:
    """A member's consumer that says what it was asked to commit, and refuses when told to."""

    def __init__(self) -> None:
        self.commits: list[dict[TopicPartition, int]] = []
        self.refuses = False

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        if self.refuses:
            raise CommitFailedError("the group has already rebalanced")
        self.commits.append(offsets)

    async def committed(self, tp: TopicPartition) -> int | None:
        return self.commits[-1].get(tp) if self.commits else None


class World:
    """The cycle between a group and a changelog in memory, on a clock of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.group = Group()
        self.log = Changelog()
        self.now = 1_000.0
        settings = load_settings(None, {}, ["kafka.session_timeout_ms=10000"])
        self.cycle = AtLeastOnce(settings, self.group, 1 << 20)
        self.cycle._producer = ChangelogProducer(self.log, 100)
        self.cycle._connected.set()
        self.reads = 0
        monkeypatch.setattr(commits, "lone_consumer", self._consumer)
        monkeypatch.setattr(commits, "_now", lambda: self.now)

    def _consumer(self, settings: object) -> ChangelogConsumer:
        self.reads += 1
        return ChangelogConsumer(self.log)

    async def commit(self, partition: Partition) -> None:
        """One cycle of what the partition has done since the last."""
        work = partition.take_work()
        assert work is not None
        assert await self.cycle.commit([work]) == ()
        partition.committed(work)

    def restored(self) -> dict[bytes, bytes | None]:
        """What a restore from the changelog would give."""
        return {entry.key: entry.value for entry in self.log.entries}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def stored(partition: Partition) -> dict[bytes, bytes]:
    store = partition.store
    assert isinstance(store, DictStore)
    return store.values


async def test_offsets_follow_the_state(world: World) -> None:
    """Changelog, files, offset, in this order; the files know how much of the changelog they hold."""
    partition = running()
    partition.fold(likes(["a", "b"]), 0.0)
    await world.commit(partition)
    assert world.restored() == stored(partition)
    assert partition.store.checkpoint == world.log.end
    assert world.group.commits[-1] == {TP: 2}


async def test_a_daemon_that_slept_writes_nothing_before_the_group_agrees(world: World) -> None:
    """After half a session without word of the group it is asked, and where it refuses the changelog is left alone."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    await world.commit(partition)
    written = world.log.end
    partition.fold(likes(["a"], 1), 0.0)
    work = partition.take_work()
    assert work is not None
    world.now += 5.1
    world.group.refuses = True
    with pytest.raises(PartitionsLost, match="rebalanced"):
        await world.cycle.commit([work])
    assert world.log.end == written
    assert len(stored(partition)) == 1


async def test_a_busy_daemon_asks_nothing_more(world: World) -> None:
    """Within half a session of a commit that the group took, the offset's own commit is the only one."""
    partition = running()
    for number in range(3):
        partition.fold(likes(["a"], number), 0.0)
        await world.commit(partition)
        world.now += 1.0
    assert world.group.commits == [{TP: 0}, {TP: 1}, {TP: 2}, {TP: 3}]
    assert world.reads == 0


def changes_of(users: list[str]) -> list[Change]:
    """What a daemon that folded no more than this would write."""
    zombie = running()
    zombie.fold(likes(users), 0.0)
    work = zombie.take_work()
    assert work is not None
    return work.changes


async def test_what_another_wrote_over_is_written_again(world: World) -> None:
    """A late write of a daemon that has lost the partition is seen by the owner's next commit and set right, once."""
    partition = running()
    partition.fold(likes(["a", "b", "a"]), 0.0)
    await world.commit(partition)
    world.log.append([*changes_of(["a"]), (tail_key("stranger"), b"?")])
    partition.fold(likes(["b"], 3), 0.0)
    await world.commit(partition)
    restored = {key: value for key, value in world.restored().items() if value is not None}
    assert restored == stored(partition)
    assert partition.store.checkpoint == world.log.end
    partition.fold(likes(["b"], 4), 0.0)
    await world.commit(partition)
    assert world.reads == 1


async def test_only_the_owner_mends(world: World) -> None:
    """A daemon that has lost the partition finds its successor's records in the changelog and touches none of them."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    await world.commit(partition)
    world.log.append(changes_of(["a", "a", "a"]))
    partition.fold(likes(["b"], 1), 0.0)
    work = partition.take_work()
    assert work is not None
    world.group.refuses = True
    before = world.restored()[tail_key("a")]
    with pytest.raises(PartitionsLost):
        await world.cycle.commit([work])
    assert world.restored()[tail_key("a")] == before


async def test_records_of_its_own_are_no_strangers(world: World) -> None:
    """What an earlier try of the same cycle left, and markers and gaps in the offsets, are looked at and left alone."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    work = partition.take_work()
    assert isinstance(work, CommitWork)
    world.log.append(work.changes)  # a try that failed behind its first batch
    world.log.skip(3)
    await world.cycle.commit([work])
    assert world.reads == 1
    assert world.log.end == 2 * len(work.changes) + 3
    assert world.restored() == stored(partition)


async def test_a_cycle_without_changes_writes_no_state(world: World) -> None:
    """Events that change nothing move the offset alone."""
    partition = running()
    event = likes(["a"])[0]
    partition.fold([event], 0.0)
    await world.commit(partition)
    end = world.log.end
    partition.fold([replace(event, offset=1)], 0.0)
    await world.commit(partition)
    assert world.log.end == end
    assert world.group.commits[-1] == {TP: 2}


async def test_files_do_not_pass_over_the_records_of_a_successor(world: World) -> None:
    """A daemon whose write came late, behind those of the partition's new owner, has files that a later restore brings
    to what the changelog says: nothing between its own records is taken as read."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    await world.commit(partition)
    known = partition.store.checkpoint
    world.log.append(changes_of(["a", "b", "a"]))
    partition.fold(likes(["c"], 1), 0.0)
    work = partition.take_work()
    assert work is not None
    world.group.refuses = True
    with pytest.raises(PartitionsLost):
        await world.cycle.commit([work])
    assert partition.store.checkpoint == known
    await changelog.restore(ChangelogConsumer(world.log), TP, partition.store, lambda step: None)
    assert stored(partition) == world.restored()
