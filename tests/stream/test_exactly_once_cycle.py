"""Promises of stream.exactly_once: a cycle is seen whole and once or not at all, and files hold what is committed."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    ProducerFenced,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from dict_store import DictStore
from partitions import TOPIC, like, likes, record_of, result, running
from records import eventually
from transactional_kafka import GroupMember, TransactionalKafka, TransactionalProducer

from mtgr.errors import InputError
from stream import exactly_once
from stream.commits import PartitionsLost
from stream.errors import Fatal
from stream.exactly_once import ExactlyOnce
from stream.outgoing import OutgoingList
from stream.partition import CommitWork, Partition
from stream.settings import Settings, load_settings
from stream.transactions import transactional_id


class World:
    """A cycle on a broker in memory."""

    def __init__(self, *, patience: float = 60) -> None:
        self.kafka = TransactionalKafka()
        self.group = GroupMember(self.kafka)
        self.producers: list[TransactionalProducer] = []
        self.start_error: BaseException | None = None
        overrides = [
            "kafka.session_timeout_ms=1000",
            "stream.delivery=exactly_once",
            f"kafka.connect_timeout_seconds={patience}",
        ]
        self.settings = load_settings(None, {}, overrides)
        self.topics = self.settings.topics
        self.cycle = self.new_cycle()

    def new_cycle(self) -> ExactlyOnce:
        """As another daemon of the group has it."""
        return ExactlyOnce(self.settings, self.group, 1 << 20)

    def producer(self, settings: Settings, tp: TopicPartition) -> TransactionalProducer:
        producer = TransactionalProducer(self.kafka, transactional_id(settings.kafka.group_id, tp))
        producer.start_error = self.start_error
        self.producers.append(producer)
        return producer

    async def claimed(self, *numbers: int) -> list[Partition]:
        partitions = [running(number) for number in numbers]
        for partition in partitions:
            await self.cycle.claim(partition.tp)
        return partitions


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(exactly_once, "transactional_producer", world.producer)
    return world


def work_of(partition: Partition, users: list[str], first_offset: int = 0) -> CommitWork:
    """What a commit takes after these users' events, one of them no event, were folded and their lists were made."""
    bad = record_of(like("x", "x"), first_offset + len(users), value=b"nonsense")
    partition.fold([*likes(users, first_offset), bad], 0.0)
    while (pending := partition.take_due(1e9)) is not None:
        value = partition.make_list(pending, result(pending.request), 2_000)
        partition.settle(pending, OutgoingList(value, None, pending.since_ms))
    work = partition.take_work()
    assert work is not None
    return work


async def test_lists_states_dead_letters_and_offset_are_one_transaction(world: World) -> None:
    """Until the commit ends nobody sees anything of it, and the local files hold nothing of it either."""
    (partition,) = await world.claimed(0)
    work = work_of(partition, ["a", "b"])
    world.kafka.held.clear()
    committing = asyncio.create_task(world.cycle.commit([work]))
    await eventually(lambda: world.kafka.under_way == 1, "the transaction")
    await asyncio.sleep(0.01)
    assert (world.kafka.seen, world.kafka.offsets) == ([], {})
    assert isinstance(partition.store, DictStore)
    assert partition.store.values == {}
    world.kafka.held.set()
    assert await committing == []
    assert world.kafka.commits == 1
    assert world.kafka.offsets == {partition.tp: 3}
    assert len(world.kafka.values(world.topics.lists)) == 2
    assert world.kafka.values(world.topics.dead_letters) == [b"nonsense"]
    assert len(world.kafka.values(world.settings.changelog_topic)) == len(work.changes)
    assert [partition.store.load(user).unserved for user in ("a", "b")] == [0, 0]  # type: ignore[union-attr]
    assert partition.store.checkpoint == len(work.changes)


@pytest.mark.parametrize("step", ["begin", "send", "acknowledgement", "offsets", "commit"])
@pytest.mark.parametrize("error", [KafkaConnectionError("gone"), ProducerFenced(), KafkaError("sender died")])
async def test_a_transaction_that_fails_leaves_nothing(world: World, step: str, error: KafkaError) -> None:
    """Whatever fails at whatever step: nothing is seen, no file is written, the partition is given up, no other is."""
    failed, other = await world.claimed(0, 1)
    world.kafka.failures = [(step, error)]
    work = [work_of(failed, ["a"]), work_of(other, ["b"])]
    assert await world.cycle.commit(work) == work[:1]
    assert world.kafka.offsets == {other.tp: 2}
    assert len(world.kafka.values(world.topics.lists)) == 1
    assert isinstance(failed.store, DictStore)
    assert failed.store.values == {}
    assert other.store.load("b") is not None


async def test_a_commit_whose_answer_is_lost_is_not_repeated(world: World) -> None:
    """It may have succeeded: the files are left as they are, and reading goes on where Kafka says."""
    (partition,) = await world.claimed(0)
    world.kafka.failures = [("answer", KafkaConnectionError("gone"))]
    work = work_of(partition, ["a"])
    assert await world.cycle.commit([work]) == [work]
    assert isinstance(partition.store, DictStore)
    assert partition.store.values == {}
    assert await world.cycle.claim(partition.tp) == 2
    assert len(world.kafka.values(world.topics.lists)) == 1


@pytest.mark.parametrize(
    "error", [TopicAuthorizationFailedError("user-events.dlq"), TransactionalIdAuthorizationFailed("id")]
)
async def test_a_refusal_stops_the_daemon(world: World, error: KafkaError) -> None:
    """What Kafka would refuse again is not tried again: a person must set it right."""
    (partition,) = await world.claimed(0)
    world.kafka.failures = [("send", error)]
    with pytest.raises(Fatal, match=r"partition 0: Kafka refuses.*(user-events\.dlq|id)"):
        await world.cycle.commit([work_of(partition, ["a"])])
    assert world.kafka.seen == []
    assert world.producers[0].aborted == 1


async def test_transactions_that_go_on_failing_stop_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition is not begun again for ever: the daemon says for how long it has failed, and at what."""
    world = World(patience=0.05)
    monkeypatch.setattr(exactly_once, "transactional_producer", world.producer)
    (partition,) = await world.claimed(0)
    world.cycle._heartbeat_seconds = 0.03

    async def fail_again_and_again() -> None:
        for _ in range(100):
            world.kafka.failures = [("commit", InvalidProducerEpoch())]
            begun = running(0)
            assert await world.cycle.commit([work_of(begun, ["a"])])
            await world.cycle.claim(partition.tp)

    with pytest.raises(Fatal, match=r"connect_timeout_seconds = 0\.05.*Epoch"):
        await fail_again_and_again()


async def test_partitions_commit_beside_each_other(world: World) -> None:
    """A cycle takes as long as its slowest transaction, not as all of them."""
    partitions = await world.claimed(0, 1, 2)
    world.kafka.held.clear()
    committing = asyncio.create_task(world.cycle.commit([work_of(part, ["a"]) for part in partitions]))
    await eventually(lambda: world.kafka.under_way == 3, "three transactions at once")
    world.kafka.held.set()
    assert await committing == []


async def test_a_commit_that_nobody_waits_for_any_more_comes_to_its_end(world: World) -> None:
    """A transaction is not cut off by a caller that gives up, and the next call with its work finds it done."""
    (partition,) = await world.claimed(0)
    work = work_of(partition, ["a"])
    world.kafka.held.clear()
    committing = asyncio.create_task(world.cycle.commit([work]))
    await eventually(lambda: world.kafka.under_way == 1, "the transaction")
    committing.cancel()
    await asyncio.gather(committing, return_exceptions=True)
    again = asyncio.create_task(world.cycle.commit([work]))
    await asyncio.sleep(0.01)
    world.kafka.held.set()
    assert await again == []
    assert world.kafka.commits == 1
    assert partition.store.load("a") is not None


async def test_a_partition_given_away_writes_no_file(world: World) -> None:
    """A commit that ends after the hand-over is durable in Kafka, and its files are another's by then."""
    (partition,) = await world.claimed(0)
    work = work_of(partition, ["a"])
    world.kafka.held.clear()
    committing = asyncio.create_task(world.cycle.commit([work]))
    await eventually(lambda: world.kafka.under_way == 1, "the transaction")
    partition.close()
    world.kafka.held.set()
    await committing
    assert isinstance(partition.store, DictStore)
    assert partition.store.values == {}


async def test_the_next_owner_fences_the_last(world: World) -> None:
    """What a daemon has in hand when another claims its partition is never seen, and its producer is replaced."""
    (partition,) = await world.claimed(0)
    successor = world.new_cycle()
    await successor.claim(partition.tp)
    work = work_of(partition, ["a"])
    assert await world.cycle.commit([work]) == [work]
    assert (world.kafka.seen, world.kafka.offsets) == ([], {})
    theirs = work_of(running(0), ["b"])
    assert await successor.commit([theirs]) == []
    assert world.kafka.offsets == {partition.tp: 2}


async def test_a_daemon_that_was_fenced_asks_its_group_before_it_writes(world: World) -> None:
    """It waits for a heartbeat, so as not to fence its successor in turn, and goes on only if the group agrees."""
    (partition,) = await world.claimed(0)
    assert await world.cycle.commit([work_of(partition, ["a"])]) == []
    await world.new_cycle().claim(partition.tp)
    assert await world.cycle.commit([work_of(partition, ["b"], 2)])
    world.group.refusals = [CommitFailedError("the group has already rebalanced")]
    started = asyncio.get_running_loop().time()
    with pytest.raises(PartitionsLost, match="rebalanced"):
        await world.cycle.claim(partition.tp)
    assert asyncio.get_running_loop().time() - started >= world.cycle._heartbeat_seconds >= 0.2
    await world.cycle.release([partition.tp])
    started = asyncio.get_running_loop().time()
    assert await world.cycle.claim(partition.tp) == 2
    assert asyncio.get_running_loop().time() - started < world.cycle._heartbeat_seconds


async def test_reading_begins_where_the_last_owner_ended(world: World) -> None:
    """The committed offset is asked for after the fencing, when nothing can move it any more."""
    assert await world.cycle.claim(TopicPartition(TOPIC, 0)) == 0
    world.kafka.offsets[TopicPartition(TOPIC, 0)] = 40
    assert await world.cycle.claim(TopicPartition(TOPIC, 0)) == 40
    assert world.producers[0].stopped


async def test_what_is_settled_without_an_event_moves_no_offset(world: World) -> None:
    """A list owed from before is committed with its state alone."""
    (partition,) = await world.claimed(0)
    partition.fold(likes(["a"]), 0.0)
    folded = partition.take_work()
    assert folded is not None
    await world.cycle.commit([folded])
    partition.committed(folded)
    world.kafka.offsets.clear()
    pending = partition.take_due(1e9)
    assert pending is not None
    value = partition.make_list(pending, result(pending.request), 2_000)
    partition.settle(pending, OutgoingList(value, None, pending.since_ms))
    settled = partition.take_work()
    assert settled is not None
    assert await world.cycle.commit([settled]) == []
    assert len(world.kafka.values(world.topics.lists)) == 1
    assert world.kafka.offsets == {}


async def test_lists_are_left_to_the_commit(world: World) -> None:
    """Nothing is written when a list is made."""
    assert await world.cycle.publish([]) is False
    assert world.producers == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransactionalIdAuthorizationFailed("mtgr-stream"), Fatal),
        (KafkaError("InvalidTransactionTimeout"), Fatal),
        (InputError("kafka.sasl_password is wrong"), InputError),
    ],
)
async def test_a_producer_that_may_not_be_made_stops_the_daemon(
    world: World, error: Exception, expected: type[Exception]
) -> None:
    """A partition without a transactional id cannot be served: the id is named."""
    world.start_error = error
    with pytest.raises(expected, match=r"mtgr-stream/mtgr-stream/user-events/0|sasl_password"):
        await world.cycle.claim(TopicPartition(TOPIC, 0))


async def test_a_stop_waits_for_what_is_under_way(world: World) -> None:
    """A daemon that ends leaves no transaction open behind it."""
    (partition,) = await world.claimed(0)
    world.kafka.held.clear()
    committing = asyncio.create_task(world.cycle.commit([work_of(partition, ["a"])]))
    await eventually(lambda: world.kafka.under_way == 1, "the transaction")
    stopping = asyncio.create_task(world.cycle.stop())
    await asyncio.sleep(0.01)
    assert not stopping.done()
    world.kafka.held.set()
    await stopping
    assert await committing == []
    assert world.kafka.commits == 1
    assert world.producers[0].stopped
