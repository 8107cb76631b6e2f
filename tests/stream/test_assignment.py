"""Promises of stream.assignment: partitions are restored, run and handed over whole, and no failure is swallowed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from changelogs import Changelog, ChangelogConsumer
from partitions import TOPIC, like, likes, partition_settings, record_of, running
from records import eventually

from mtgr.errors import InputError
from stream import restore
from stream.assignment import Assignment
from stream.commits import PartitionsLost
from stream.errors import Fatal
from stream.observability import Health, Metrics
from stream.partition import Partition, PendingList, Phase
from stream.restore import Restorer
from stream.state import RocksMemory, RocksStore
from stream.stored import tail_key


def tps(*numbers: int) -> list[TopicPartition]:
    return [TopicPartition(TOPIC, number) for number in numbers]


TP = tps(0)[0]


class World:
    """An assignment with changelogs in memory, in the place of consumer and committer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paused: set[TopicPartition] = set()
        self.resumed: list[TopicPartition] = []
        self.changelogs: dict[int, Changelog] = {}
        self.consumers: list[ChangelogConsumer] = []
        self.held = asyncio.Event()
        self.held.set()
        self.reading = asyncio.Event()
        self.restore_error: Exception | None = None
        self.commit_error: Exception | None = None
        self.claim_error: Exception | None = None
        self.claimed_offset: int | None = None
        self.claims: list[TopicPartition] = []
        self.released: list[TopicPartition] = []
        self.committed_offset: int | None = None
        self.settling = asyncio.Event()
        self.settling.set()
        self.positions: dict[TopicPartition, int] = {}
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.partitions: dict[TopicPartition, Partition] = {}
        self.health = Health()
        self.metrics = Metrics()
        self.restorer = Restorer(
            self._consumer,
            self.metrics,
            self.health,
            directory=directory,
            store_memory=RocksMemory(1 << 20),
            group_id="group",
            changelog_topic="group-changelog",
            patience_seconds=0.5,
        )
        self.assignment = self._assignment()

    def _assignment(self) -> Assignment:
        assignment = Assignment(
            self.partitions,
            self,
            self.restorer,
            partition_settings(),
            self.metrics,
            self.health,
            leave_seconds=20,
        )
        assignment.attach(self, self, lambda: self.begun.put_nowait(None))  # type: ignore[arg-type]
        return assignment

    def pause(self, *assigned: TopicPartition) -> None:
        self.paused |= set(assigned)

    def resume(self, tp: TopicPartition) -> None:
        self.paused.remove(tp)
        self.resumed.append(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        assert tp in self.paused
        self.positions[tp] = offset

    async def claim(self, tp: TopicPartition) -> int | None:
        self.claims.append(tp)
        if self.claim_error is not None:
            raise self.claim_error
        return self.claimed_offset

    async def release(self, tps: Iterable[TopicPartition]) -> None:
        self.released += tps

    async def settled(self) -> None:
        await self.settling.wait()

    async def committed(self, tp: TopicPartition) -> int | None:
        return self.committed_offset

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 3)

    async def commit(self, partitions: Iterable[Partition]) -> None:
        if self.commit_error is not None:
            raise self.commit_error
        for partition in partitions:
            work = partition.take_work()
            if work is not None:
                log = self.changelogs.setdefault(partition.tp.partition, Changelog())
                log.append(work.changes)
                partition.store.apply(work.changes, log.end)
                partition.committed(work)

    def _consumer(self) -> ChangelogConsumer:
        world = self

        class Consumer(ChangelogConsumer):
            def assign(self, tps: list[TopicPartition]) -> None:
                super().assign(tps)
                assert tps[0].topic == "group-changelog"
                self._changelog = world.changelogs.setdefault(tps[0].partition, Changelog())

        consumer = Consumer(Changelog(), error=self.restore_error)
        consumer.held, consumer.reading = self.held, self.reading
        self.consumers.append(consumer)
        return consumer

    async def running(self, count: int = 1) -> None:
        """Return once so many more partitions have begun to run."""
        async with asyncio.timeout(20):
            for _ in range(count):
                await self.begun.get()

    async def failure(self) -> BaseException:
        """What stops the daemon."""
        async with asyncio.timeout(20):
            await asyncio.wait({self.assignment.failure})
        error = self.assignment.failure.exception()
        assert error is not None
        return error


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "state")
    yield world
    await world.assignment.close_all()
    if world.assignment.failure.done():
        world.assignment.failure.exception()


def take_all(partition: Partition) -> list[PendingList]:
    taken = []
    while (pending := partition.take_due(1e9)) is not None:
        taken.append(pending)
    return taken


def log_of_one_user() -> Changelog:
    """The changelog of a partition that has folded one event of user a."""
    partition = running()
    partition.fold(likes(["a"]), 0.0)
    work = partition.take_work()
    assert work is not None
    return _log(work.changes)


def _log(changes: list[tuple[bytes, bytes | None]]) -> Changelog:
    log = Changelog()
    log.append(changes)
    return log


async def test_a_partition_is_restored_before_it_runs(world: World) -> None:
    """Until its state is there a partition is paused and the daemon not ready; then lists owed from before are due."""
    world.changelogs[0] = log_of_one_user()
    world.held.clear()
    await world.assignment.on_partitions_assigned(tps(0))
    assert world.paused == {TP}
    assert not world.health.is_ready
    world.held.set()
    await world.running()
    assert world.resumed == [TP]
    assert world.health.is_ready
    partition = world.partitions[TP]
    assert (partition.phase, partition.owed, partition.cache.users) == (Phase.RUNNING, 1, 1)
    (pending,) = take_all(partition)
    assert (pending.trigger.event_id, pending.trigger.offset) == ("e0", 0)
    assert all(consumer.stopped for consumer in world.consumers)
    assert world.metrics.registry.get_sample_value("mtgr_restored_records_total") == 1


async def test_a_handed_over_partition_is_finished_committed_and_closed(world: World) -> None:
    """On a revocation the list under way is awaited, everything is committed, and the files are free for the next."""
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    partition = world.partitions[TP]
    partition.fold(likes(["a", "b"]), 0.0)
    pending = partition.take_due(1e9)
    assert pending is not None
    leaving = asyncio.create_task(world.assignment.on_partitions_revoked(tps(0)))
    await asyncio.sleep(0)
    assert world.partitions[TP].phase is Phase.LEAVING
    assert not leaving.done()
    partition.settle(pending)
    await leaving
    assert partition.phase is Phase.CLOSED
    assert world.partitions == {}
    assert not any(name.startswith("partition-") for name in world.health.reasons)

    # back again: only what the local files lack is read
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    again = world.partitions[TP]
    assert again is not partition
    assert (again.owed, again.cache.users) == (1, 2)
    assert world.consumers[-1].read == []


async def test_a_list_that_takes_too_long_stays_owed(world: World) -> None:
    """A hand-over does not wait for ever: what is still being made is owed by the next owner."""
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    partition = world.partitions[TP]
    partition.fold(likes(["a"]), 0.0)
    assert partition.take_due(1e9) is not None
    await world.assignment.release(tps(0), seconds=0.05)
    assert partition.phase is Phase.CLOSED
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    assert world.partitions[TP].owed == 1


@pytest.mark.parametrize("count", [1, 9])
async def test_partitions_taken_away_during_their_restore_are_forgotten(world: World, count: int) -> None:
    """A restore that a rebalance overtakes, begun or waiting its turn, leaves no claim on readiness or files."""
    numbers = range(count)
    world.changelogs = {number: log_of_one_user() for number in numbers}
    world.held.clear()
    await world.assignment.on_partitions_assigned(tps(*numbers))
    async with asyncio.timeout(20):
        await world.reading.wait()
    await world.assignment.on_partitions_revoked(tps(*numbers))
    assert world.resumed == []
    assert world.partitions == {}
    await world.assignment.on_partitions_assigned([])
    assert {name: reason for name, reason in world.health.reasons.items() if reason} == {}
    world.held.set()
    await world.assignment.on_partitions_assigned(tps(*numbers))
    await world.running(count)
    assert world.health.is_ready
    assert not world.assignment.failure.done()


async def test_memory_for_states_is_shared_by_the_partitions(world: World) -> None:
    """The cache's ceiling is the daemon's, however many partitions it has."""
    await world.assignment.on_partitions_assigned(tps(0, 1, 2, 3))
    await world.running(4)
    ceilings = [2 * partition.cache._half for partition in world.partitions.values()]
    assert sum(ceilings) <= partition_settings().cache_bytes


def _unreachable(world: World) -> None:
    world.restore_error = KafkaConnectionError("gone")


def _damaged(world: World) -> None:
    world.changelogs[0] = _log([(tail_key("a"), b"nonsense")])


def _no_folder(world: World) -> None:
    world.directory.write_text("not a folder")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_unreachable, Fatal, "gone"),
        (_damaged, Fatal, "changelog group-changelog-0: "),
        (_no_folder, InputError, "state.directory"),
    ],
)
async def test_a_failed_restore_stops_the_daemon(
    world: World, spoil: Callable[[World], None], error: type[Exception], message: str
) -> None:
    """A state that cannot be restored is never run on: aiokafka would swallow the error, the daemon does not."""
    spoil(world)
    await world.assignment.on_partitions_assigned(tps(0))
    failure = await world.failure()
    assert isinstance(failure, error)
    assert message in str(failure)
    assert world.resumed == []


async def test_lists_owed_from_before_are_made_oldest_first(world: World) -> None:
    """After a restart those who have waited longest come first, whatever their names."""
    partition = running()
    order = ["m", "z", "a", "k"]
    for offset, user in enumerate(order):
        record = record_of(like(user, f"e{offset}"), offset, timestamp=1_000 + offset)
        partition.fold([record], 0.0)
    work = partition.take_work()
    assert work is not None
    world.changelogs[0] = _log(work.changes)
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    assert [pending.request.user_id for pending in take_all(world.partitions[TP])] == order


def spoil(partition: Partition) -> None:
    """Write what does not read back into the local files alone."""
    partition.store.apply([(tail_key("a"), b"nonsense")], partition.store.checkpoint)


@pytest.mark.parametrize("found_by", ["fold", "take_due", "restart"])
@pytest.mark.parametrize("committed", [7, None])
async def test_bad_files_are_made_anew_from_the_changelog(
    world: World, found_by: str, committed: int | None
) -> None:
    """Whoever comes upon files that do not read back, the partition goes on with those that the changelog gives, from
    the offset that is committed, once nothing of it is being written any more."""
    world.changelogs[0], world.committed_offset = log_of_one_user(), committed
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    partition = world.partitions[TP]
    spoil(partition)
    world.settling.clear()
    match found_by:
        case "fold":
            partition.fold(likes(["a"], 9), 0.0)
        case "take_due":
            assert partition.take_due(1e9) is None
        case _:
            world.settling.set()
            await world.assignment.release(tps(0), 5)
            await world.assignment.on_partitions_assigned(tps(0))
    if found_by != "restart":
        assert partition.phase is Phase.CLOSED
        world.settling.set()
    await world.running()
    renewed = world.partitions[TP]
    assert (renewed.phase, renewed.owed, renewed.cache.users) == (Phase.RUNNING, 1, 1)
    assert renewed.cache.get("a").event_id == "e0"
    assert world.positions[TP] == (3 if committed is None else committed)
    assert world.metrics.registry.get_sample_value("mtgr_state_repairs_total") == 1
    assert not world.assignment.failure.done()


async def test_files_that_do_not_last_stop_the_daemon(world: World) -> None:
    """What does not read back twice within the hour is no accident of the files: disk or changelog are named."""
    world.changelogs[0] = log_of_one_user()
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    spoil(world.partitions[TP])
    world.partitions[TP].fold(likes(["a"], 9), 0.0)
    await world.running()
    spoil(world.partitions[TP])
    world.partitions[TP].fold(likes(["a"], 9), 0.0)
    assert "the disk or the changelog is damaged" in str(await world.failure())


async def test_a_commit_that_fails_at_the_hand_over_stops_the_daemon(world: World) -> None:
    """A last commit that Kafka refuses for good is not swallowed by the rebalance, and the files are closed."""
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    partition = world.partitions[TP]
    partition.fold(likes(["a"]), 0.0)
    world.commit_error = Fatal("Kafka has failed for 61 seconds")
    await world.assignment.on_partitions_revoked(tps(0))
    assert "61 seconds" in str(await world.failure())
    assert partition.phase is Phase.CLOSED


async def test_a_store_that_does_not_close_stops_the_daemon_and_no_other_store(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk at the hand-over is told, and the other partitions' files are closed all the same."""
    await world.assignment.on_partitions_assigned(tps(0, 1))
    await world.running(2)
    first, second = world.partitions.values()
    close = first.store.close

    def fail() -> None:
        close()
        raise OSError("no space left on device")

    monkeypatch.setattr(first.store, "close", fail)
    await world.assignment.on_partitions_revoked(tps(0, 1))
    assert "no space left" in str(await world.failure())
    assert second.phase is Phase.CLOSED
    await world.assignment.on_partitions_assigned(tps(1))
    await world.running()  # its files were free


async def test_nothing_is_begun_after_the_end(world: World) -> None:
    """A rebalance that comes while the daemon stops gets partitions no restore."""
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    await world.assignment.close_all()
    assert world.partitions == {}
    await world.assignment.on_partitions_assigned(tps(0, 1))
    assert world.consumers[1:] == []
    assert world.paused >= set(tps(0, 1))


async def test_a_partition_is_claimed_before_its_state_is_read(world: World) -> None:
    """What the last owner was writing has ended when the changelog is read, and reading begins where it ended."""
    world.changelogs[0] = Changelog()
    world.claimed_offset = 7
    claim = world.claim

    async def last_words(tp: TopicPartition) -> int | None:
        world.changelogs[0] = log_of_one_user()
        return await claim(tp)

    world.claim = last_words  # type: ignore[method-assign]
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    assert world.partitions[TP].owed == 1
    assert world.positions == {TP: 7}
    await world.assignment.on_partitions_revoked(tps(0))
    assert world.released == [TP]


async def test_a_partition_given_up_begins_again_from_what_is_durable(world: World) -> None:
    """After a failed transaction nothing of what was only in memory is left, and the rest of the daemon goes on."""
    await world.assignment.on_partitions_assigned(tps(0, 1))
    await world.running(2)
    failed, other = world.partitions[TP], world.partitions[tps(1)[0]]
    failed.fold(likes(["a"]), 0.0)
    await world.commit([failed])
    failed.fold(likes(["a", "b"], 1), 0.0)
    assert failed.take_work() is not None
    failed.lose()
    world.claimed_offset = 1
    world.assignment.regain(failed)
    assert not world.health.is_ready
    await world.running()
    again = world.partitions[TP]
    assert again is not failed
    assert (again.cache.users, again.owed, again.cache.get("a").offset) == (1, 1, 0)
    assert world.positions == {TP: 1}
    assert world.partitions[tps(1)[0]] is other
    assert other.phase is Phase.RUNNING
    assert world.health.is_ready


async def test_a_partition_that_is_being_taken_away_is_not_begun_again(world: World) -> None:
    """What the group revokes while its transaction fails is left to the next owner."""
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    partition = world.partitions[TP]
    partition.lose()
    await world.assignment.on_partitions_revoked(tps(0))
    world.assignment.regain(partition)
    assert world.claims == [TP]
    assert world.health.reasons.get("partition-0") is None


async def test_a_claim_that_the_group_refuses_waits_for_the_group(world: World) -> None:
    """A daemon that has lost the partition without knowing it runs nothing, is not ready, and does not stop."""
    world.claim_error = PartitionsLost("the group has already rebalanced")
    await world.assignment.on_partitions_assigned(tps(0))
    await eventually(lambda: "partition-0" not in world.health.reasons, "the end of the claim")
    assert not world.health.is_ready
    assert world.resumed == []
    assert not world.assignment.failure.done()
    world.claim_error = None
    await world.assignment.on_partitions_revoked(tps(0))
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    assert world.health.is_ready


async def test_a_store_that_opens_too_late_is_closed_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that is taken away while its files are being opened, and comes back, finds them free."""
    slow = threading.Event()
    opened: list[RocksStore] = []

    def open_slowly(*about: Any) -> RocksStore:
        slow.wait(20)
        opened.append(RocksStore(*about))
        return opened[-1]

    monkeypatch.setattr(restore, "RocksStore", open_slowly)
    monkeypatch.setattr(restore, "_LOCK_PATIENCE_SECONDS", 3.0)
    await world.assignment.on_partitions_assigned(tps(0))
    await eventually(lambda: bool(world.claims), "the restore's beginning")
    await asyncio.sleep(0)
    await world.assignment.on_partitions_revoked(tps(0))
    slow.set()
    await eventually(lambda: bool(opened), "the store that nobody waits for")
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    assert world.partitions[TP].phase is Phase.RUNNING
    assert len(opened) == 2


async def test_a_partition_taken_away_while_it_is_closed_is_closed_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that was given up, and is revoked before a thread has come to close its files, comes back."""
    monkeypatch.setattr(restore, "_LOCK_PATIENCE_SECONDS", 3.0)
    await world.assignment.on_partitions_assigned(tps(0))
    await world.running()
    given_up = world.partitions[TP]
    given_up.lose()
    busy = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        threads.submit(busy.wait, 20)
        world.assignment.regain(given_up)
        await eventually(lambda: TP not in world.partitions, "the close that waits for a thread")
        await world.assignment.on_partitions_revoked(tps(0))
        busy.set()
        await world.assignment.on_partitions_assigned(tps(0))
        await world.running()
        await world.assignment.close_all()
    assert not world.assignment.failure.done()
