"""Transactions of one input partition: who may write them, one from its begin to its end, and what its errors demand.

A partition's transactional id is the same in whichever daemon has the partition. A new producer of an id fences the one
before: the broker ends what that one had under way and refuses whatever else comes from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Final

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    ConcurrentTransactions,
    DuplicateSequenceNumber,
    IllegalOperation,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    TransactionCoordinatorFenced,
    UnknownProducerId,
)

from stream.kafka import is_connection_error, producer_options
from stream.outgoing import BATCH_BYTES, REQUEST_BYTES
from stream.settings import Settings

_APPLICATION: Final = "mtgr-stream"
_ABORT_SECONDS: Final = 2.0
_ABORTABLE: Final = (
    ConcurrentTransactions,
    DuplicateSequenceNumber,
    IllegalOperation,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    TransactionCoordinatorFenced,
    UnknownProducerId,
)


class Severity(enum.Enum):
    """What an error in a transaction demands, once the client no longer tries again by itself."""

    RETRIABLE = "retriable"
    """A broker was away for too long: nothing is wrong with what was written, and trying again may help."""
    ABORTABLE = "abortable"
    """The producer has lost its place: fenced by a newer one, or timed out. It can never commit again."""
    FATAL = "fatal"
    """Kafka refuses what is asked, and would refuse it again: a person must set something right."""


class ProducerBroken(KafkaError):  # type: ignore[misc]
    """aiokafka found its producer in a state out of which no transaction can be made."""


def severity(error: BaseException) -> Severity:
    """Sort an error that came out of a transaction; one that is no Kafka error is fatal."""
    if isinstance(error, _ABORTABLE):
        return Severity.ABORTABLE
    if is_connection_error(error):
        return Severity.RETRIABLE
    # KafkaError itself, and not one of its kinds, is what aiokafka makes of a sender task that died
    if type(error) in (KafkaError, ProducerBroken):
        return Severity.ABORTABLE
    return Severity.FATAL


def transactional_ids_of(group_id: str) -> str:
    """The prefix of all transactional ids of a group, and of no other group's: what permissions are granted to."""
    # no topic's name has a slash, and no group's any more: an id can be taken apart in one way only
    escaped = group_id.replace("%", "%25").replace("/", "%2F")
    return f"{_APPLICATION}/{escaped}/"


def transactional_id(group_id: str, tp: TopicPartition) -> str:
    """The id under which whoever has this input partition writes, and nobody who has another."""
    return f"{transactional_ids_of(group_id)}{tp.topic}/{tp.partition}"


def transactional_producer(settings: Settings, tp: TopicPartition) -> AIOKafkaProducer:
    """A producer of the partition's id, which fences those before it when it is started."""
    return AIOKafkaProducer(
        **producer_options(settings.kafka),
        max_batch_size=BATCH_BYTES,
        max_request_size=REQUEST_BYTES,
        transactional_id=transactional_id(settings.kafka.group_id, tp),
        transaction_timeout_ms=settings.stream.transaction_timeout_ms,
    )


@asynccontextmanager
async def transaction(producer: AIOKafkaProducer) -> AsyncIterator[None]:
    """A transaction around the block, committed at its end.

    Where the block or the commit fails the producer must not be used again: what it has written is never seen, and
    its place is taken by a new one. Raises KafkaError; whether the transaction is committed is then unknown.
    """
    await _checked(producer.begin_transaction())
    try:
        yield
        await _checked(producer.commit_transaction())
    except Exception:
        # the next producer of this id would do the same, but if none comes consumers wait for the broker's timeout
        with contextlib.suppress(KafkaError, AssertionError, TimeoutError):
            async with asyncio.timeout(_ABORT_SECONDS):
                await producer.abort_transaction()
        raise


def keep_to_one_report() -> None:
    """Leave out of the log what asyncio says of futures that aiokafka makes, fails with its producer, and forgets.

    The same error comes out of the transaction, and is told there.
    """
    logging.getLogger("asyncio").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, _ABORTABLE) and "never retrieved" in record.getMessage())


async def _checked(step: Awaitable[None]) -> None:
    """A step of a transaction; aiokafka asserts where its producer has failed meanwhile."""
    try:
        await step
    except AssertionError as error:
        raise ProducerBroken(str(error)) from error
