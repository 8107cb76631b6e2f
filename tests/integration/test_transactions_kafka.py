"""What transactions promise and what aiokafka's lack, on a real broker: reading what is committed, and fencing."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerFenced
from dict_store import DictStore
from partitions import like, record_of, result, running
from records import TopicNames, eventually
from tools import settings_for

from stream import changelog
from stream.kafka import connected
from stream.outgoing import OutgoingList, send_lists
from stream.partition import Partition
from stream.settings import Settings
from stream.source import lone_consumer
from stream.state import StateStore
from stream.stored import tail_key
from stream.tools.list_feed import ListFeed
from stream.transactions import Severity, severity, transaction, transactional_producer


@pytest.fixture
def settings(kafka: str, topics: TopicNames) -> Settings:
    return settings_for(kafka, topics, stream__delivery="exactly_once")


def list_of(partition: Partition, user_id: str, event_id: str) -> OutgoingList:
    partition.fold([record_of(like(user_id, event_id), partition.next_offset or 0)], 0.0)
    pending = partition.take_due(1e9)
    assert pending is not None
    value = partition.make_list(pending, result(pending.request), 1_000)
    partition.settle(pending)
    return OutgoingList(value, None, 0)


async def test_lists_of_a_transaction_that_was_aborted_are_seen_by_nobody(settings: Settings) -> None:
    """Those who read lists get what was committed, in order, past what was aborted before and behind it."""
    partition = running()
    lists = [list_of(partition, "a", f"e{number}") for number in range(3)]
    async with connected(transactional_producer(settings, partition.tp), settings.kafka) as producer:
        for number, item in enumerate(lists):
            await producer.begin_transaction()
            await send_lists(producer, settings.topics.lists, [item])
            await (producer.commit_transaction() if number == 1 else producer.abort_transaction())
    async with ListFeed.open(settings, "beginning") as feed:
        seen = [one.list_id for one in await feed.next(5)]
        seen += [one.list_id for one in await feed.next(0.5)]
    assert seen == [lists[1].value.list_id]


async def test_a_restore_holds_what_was_committed_and_nothing_else(settings: Settings) -> None:
    """What a crash left open is aborted by the next owner's claim, and the restore after it reads to the end."""
    partition = running()
    tp = TopicPartition(settings.changelog_topic, 0)
    key = tail_key("a")

    async with connected(transactional_producer(settings, partition.tp), settings.kafka) as dead:
        async with transaction(dead):
            await changelog.append(dead, tp, [(key, b"committed")], 0)
        await dead.begin_transaction()
        await changelog.append(dead, tp, [(key, b"aborted"), (tail_key("b"), b"aborted")], 0)
        await dead.abort_transaction()
        await dead.begin_transaction()
        await changelog.append(dead, tp, [(key, b"left open")], 0)

        store = DictStore()
        await _restore(settings, tp, store)
        assert store.values == {key: b"committed"}
        async with connected(transactional_producer(settings, partition.tp), settings.kafka) as successor:
            await _restore(settings, tp, store)
            assert store.values == {key: b"committed"}
            async with transaction(successor):
                end = await changelog.append(successor, tp, [(key, b"of the successor")], 0)
        with pytest.raises(ProducerFenced):
            await dead.commit_transaction()
    await _restore(settings, tp, store)
    assert store.values == {key: b"of the successor"}
    assert store.checkpoint >= end


async def _restore(settings: Settings, tp: TopicPartition, store: StateStore) -> None:
    async with connected(lone_consumer(settings), settings.kafka) as consumer:
        await changelog.restore(consumer, tp, store, lambda records: None)


async def test_only_the_next_producer_fences_one_whose_member_has_left(
    settings: Settings, topics: TopicNames
) -> None:
    """aiokafka's transactions know nothing of the group's generations: a member that was replaced could still commit
    offsets. That is why each partition has an id of its own, which its next owner claims."""
    tp = TopicPartition(topics.events, 0)
    zombie = transactional_producer(settings, tp)
    async with connected(zombie, settings.kafka):
        async with _member(settings) as consumer:
            await eventually(lambda: tp in consumer.assignment(), "the first member's partitions")
        async with _member(settings) as consumer:
            await eventually(lambda: tp in consumer.assignment(), "the second member's partitions")
            await _commit(zombie, tp, 5, topics.group)

            async def is_committed() -> bool:  # the coordinator answers before it has marked the offsets
                return await consumer.committed(tp) == 5

            await eventually(
                is_committed, "the zombie's offset: or has the broker learnt to fence by generation?"
            )
            async with connected(transactional_producer(settings, tp), settings.kafka):
                with pytest.raises(ProducerFenced) as caught:
                    await _commit(zombie, tp, 3, topics.group)
            assert severity(caught.value) is Severity.ABORTABLE
            assert await consumer.committed(tp) == 5


async def _commit(producer: AIOKafkaProducer, tp: TopicPartition, offset: int, group: str) -> None:
    async with transaction(producer):
        await producer.send_offsets_to_transaction({tp: offset}, group)


def _member(settings: Settings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        settings.topics.events,
        bootstrap_servers=settings.kafka.bootstrap_servers,
        group_id=settings.kafka.group_id,
        enable_auto_commit=False,
    )
