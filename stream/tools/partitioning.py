"""Which partition a key belongs to."""

from __future__ import annotations

from aiokafka.partitioner import murmur2


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's own clients choose, so that a user stays in one place whoever sends the
    events.
    """
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
