"""Promises of stream.transactions: who may write, one transaction from begin to end, and what each error demands."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.errors import InvalidProducerEpoch, KafkaConnectionError, KafkaError, ProducerFenced
from hypothesis import example, given
from hypothesis import strategies as st
from transactional_kafka import TransactionalKafka, TransactionalProducer

from stream.transactions import (
    ProducerBroken,
    Severity,
    keep_to_one_report,
    severity,
    transaction,
    transactional_id,
    transactional_ids_of,
)

_FENCED_OR_TIMED_OUT = (
    "ProducerFenced",
    "InvalidProducerEpoch",
    "InvalidProducerIdMapping",
    "InvalidTxnState",
    "UnknownProducerId",
    "OutOfOrderSequenceNumber",
    "DuplicateSequenceNumber",
    "ConcurrentTransactions",
    "TransactionCoordinatorFenced",
    "IllegalOperation",
    "ProducerClosed",
)
_BROKER_AWAY = (
    "KafkaConnectionError",
    "KafkaTimeoutError",
    "RequestTimedOutError",
    "NotLeaderForPartitionError",
    "LeaderNotAvailableError",
    "NotEnoughReplicasError",
    "NotCoordinatorForGroupError",
    "GroupCoordinatorNotAvailableError",
    "GroupLoadInProgressError",
)
_REFUSED = (
    "TransactionalIdAuthorizationFailed",
    "TopicAuthorizationFailedError",
    "GroupAuthorizationFailedError",
    "ClusterAuthorizationFailedError",
    "InvalidTransactionTimeout",
    "MessageSizeTooLargeError",
    "RecordListTooLargeError",
    "InvalidTopicError",
    "PolicyViolationError",
    "UnsupportedVersionError",
)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (_FENCED_OR_TIMED_OUT, Severity.ABORTABLE),
        (_BROKER_AWAY, Severity.RETRIABLE),
        (_REFUSED, Severity.FATAL),
    ],
)
def test_every_error_of_a_transaction_is_sorted(names: tuple[str, ...], wanted: Severity) -> None:
    """What a broker's absence, a fencing and a refusal bring about are three things, and demand three."""
    for name in names:
        error_class: Any = getattr(kafka_errors, name)
        assert severity(error_class()) is wanted, name


def test_errors_of_no_kind_are_sorted_too() -> None:
    """A sender task that died is a producer lost; a broken connection may come back; what is no error of Kafka's is a
    mistake in the program."""
    assert severity(KafkaError("Unexpected error during batch delivery")) is Severity.ABORTABLE
    assert severity(ProducerBroken("invalid state transition")) is Severity.ABORTABLE
    assert severity(ConnectionResetError()) is Severity.RETRIABLE
    assert severity(ValueError("a bug")) is Severity.FATAL


def test_a_partition_has_one_id_in_every_daemon() -> None:
    """The id names application, group, topic and partition, and nothing of the process or the machine."""
    assert transactional_id("shop", TopicPartition("user-events", 3)) == "mtgr-stream/shop/user-events/3"


GROUPS = st.text(st.sampled_from("ab-/%2F.5"), min_size=1, max_size=8)
TOPICS = st.text(st.sampled_from("ab-._5"), min_size=1, max_size=8)
PLACES = st.tuples(GROUPS, st.builds(TopicPartition, TOPICS, st.integers(0, 99)))


@given(PLACES, PLACES)
@example(("a", TopicPartition("b-c", 0)), ("a-b", TopicPartition("c", 0)))
@example(("a", TopicPartition("b", 0)), ("a/b", TopicPartition("b", 0)))
@example(("a/b", TopicPartition("b", 0)), ("a%2Fb", TopicPartition("b", 0)))
def test_no_two_partitions_share_an_id(
    one: tuple[str, TopicPartition], other: tuple[str, TopicPartition]
) -> None:
    """Ids are equal where group, topic and partition are, and nowhere else: nobody fences a stranger."""
    assert (transactional_id(*one) == transactional_id(*other)) == (one == other)


@given(GROUPS, PLACES)
def test_the_prefix_of_a_group_is_of_its_ids_alone(group: str, place: tuple[str, TopicPartition]) -> None:
    """A permission for the ids of one group, granted by their prefix, is none for another's."""
    assert transactional_id(*place).startswith(transactional_ids_of(group)) == (place[0] == group)


@pytest.fixture
async def producer() -> TransactionalProducer:
    producer = TransactionalProducer(TransactionalKafka(), "id")
    await producer.start()
    return producer


async def test_a_transaction_is_seen_whole_at_its_end(producer: TransactionalProducer) -> None:
    """Nothing of it is seen before."""
    kafka = producer._kafka
    async with transaction(producer):
        await producer.send("lists", b"1", key=b"a")
        await producer.send("lists", b"2", key=b"a")
        assert kafka.seen == []
    assert kafka.values("lists") == [b"1", b"2"]


async def test_a_failed_block_is_aborted(producer: TransactionalProducer) -> None:
    """Consumers need not wait for the broker's timeout to get past what will never be committed."""

    async def cut_off() -> None:
        async with transaction(producer):
            await producer.send("lists", b"1", key=b"a")
            raise KafkaConnectionError

    with pytest.raises(KafkaConnectionError):
        await cut_off()
    assert producer.aborted == 1
    assert producer._kafka.seen == []


async def test_an_abort_that_fails_hides_nothing(producer: TransactionalProducer) -> None:
    """The error that is raised is the one that ended the transaction, though a fenced producer cannot even abort."""

    async def fenced() -> None:
        raise ProducerFenced

    producer.abort_transaction = fenced  # type: ignore[method-assign]
    with pytest.raises(InvalidProducerEpoch):
        async with transaction(producer):
            raise InvalidProducerEpoch


@pytest.mark.parametrize("step", ["begin_transaction", "commit_transaction"])
async def test_a_producer_that_failed_in_silence_is_an_error_of_kafka(
    producer: TransactionalProducer, step: str
) -> None:
    """aiokafka asserts where its producer has failed between two calls: that is an error to recover from, no bug."""

    async def broken() -> None:
        raise AssertionError("Invalid state transition FATAL_ERROR -> IN_TRANSACTION")

    setattr(producer, step, broken)
    with pytest.raises(ProducerBroken, match="FATAL_ERROR"):
        async with transaction(producer):
            pass


def test_an_abandoned_transaction_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """Futures that aiokafka fails and forgets add nothing to the log; whatever else asyncio has to say stays."""
    keep_to_one_report()
    log = logging.getLogger("asyncio")
    for error in (ProducerFenced(), ValueError("a bug")):
        log.error("Future exception was never retrieved", exc_info=(type(error), error, None))
    log.error("Task was destroyed but it is pending!")
    texts = [str(record.exc_info[1]) if record.exc_info else record.message for record in caplog.records]
    assert texts == ["a bug", "Task was destroyed but it is pending!"]
