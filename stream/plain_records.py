"""A consumer that hands records over as aiokafka unpacks them, with no further object made of each."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult


class PlainRecordsConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """An AIOKafkaConsumer whose records have an offset, a timestamp, a key, a value and headers, and no more than that.

    aiokafka copies each record that it has unpacked into a ConsumerRecord, which takes as long as the unpacking. That
    last step alone is left out; checksums, aborted transactions and positions remain aiokafka's. What was fetched
    before `start` returned still comes as ConsumerRecords, which have all of these too.
    """

    async def start(self) -> None:
        """Connect, as AIOKafkaConsumer does; AttributeError where aiokafka is built otherwise than is taken here."""
        await super().start()
        fetcher = self._fetcher
        fetch = fetcher._proc_fetch_request

        async def fetch_plain(*arguments: Any) -> Any:
            has_records = await fetch(*arguments)
            for result in fetcher._records.values():
                if isinstance(result, FetchResult) and result.has_more():
                    result._partition_records._consumer_record = _as_unpacked
            return has_records

        fetcher._proc_fetch_request = fetch_plain


def _as_unpacked(_: TopicPartition, record: Any) -> Any:
    return record
