"""Record batches as they stand in a broker's files: which producer wrote them, and what became of its transaction.

The heads of batches are read here byte by byte, as the Kafka protocol's record batch format (magic 2) lays them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from checker import Kind, Verdict

_HEAD = Struct(">qiibIhiqqqhii")  # to the number of records
_LENGTH_FROM = 12  # baseOffset and batchLength itself are not counted by batchLength
_TRANSACTIONAL = 1 << 4
_CONTROL = 1 << 5


@dataclass(frozen=True)
class Batch:
    """The head of one batch; `marker` is "commit" or "abort" where it is one that ends a transaction."""

    partition: int
    base_offset: int
    records: int
    producer_id: int
    producer_epoch: int
    is_transactional: bool = True
    marker: str | None = None


def read_batches(data: Path, topic: str) -> Iterator[Batch]:
    """Every batch of a topic in a broker's data directory, those of a partition in order."""
    for directory in sorted(data.glob(f"{topic}-[0-9]*")):
        partition = int(directory.name.rpartition("-")[2])
        for segment in sorted(directory.glob("*.log")):
            yield from _read_segment(partition, segment.read_bytes())


def _read_segment(partition: int, content: bytes) -> Iterator[Batch]:
    at = 0
    while at + _HEAD.size <= len(content):
        base, length, _, magic, _, attributes, _, _, _, pid, epoch, _, records = _HEAD.unpack_from(
            content, at
        )
        if length <= 0 or magic != 2:
            return  # preallocated or torn: nothing was acknowledged here
        marker = None
        if attributes & _CONTROL:
            # one record: length, attributes, timestamp and offset deltas of a byte each, key length, version, type
            kind = content[at + _HEAD.size + 7 : at + _HEAD.size + 9]
            marker = "commit" if kind == b"\0\1" else "abort"
        yield Batch(partition, base, records, pid, epoch, bool(attributes & _TRANSACTIONAL), marker)
        at += _LENGTH_FROM + length


def check_fencing(batches: Iterable[Batch], verdict: Verdict) -> None:
    """Nothing that can be seen may be from a producer that was fenced before, or from outside of a transaction.

    A new producer of a transactional id has the id's next epoch, and so has the marker that ends what its predecessor
    had under way. Tells too how many records were aborted, which are what fencing and failures kept from consumers.
    """
    newest: dict[tuple[int, int], int] = {}
    open_batches: dict[tuple[int, int], list[Batch]] = {}
    aborted = 0
    for batch in batches:
        producer = (batch.partition, batch.producer_id)
        if batch.marker is None:
            if not batch.is_transactional:
                verdict.found(Kind.FENCED, f"{_about(batch)} is in no transaction")
                continue
            open_batches.setdefault(producer, []).append(batch)
        else:
            ended = open_batches.pop(producer, [])
            if batch.marker == "abort":
                aborted += sum(one.records for one in ended)
            else:
                for one in ended:
                    if one.producer_epoch < newest.get(producer, -1):
                        verdict.found(
                            Kind.FENCED, f"{_about(one)} was committed, after epoch {newest[producer]}"
                        )
        newest[producer] = max(batch.producer_epoch, newest.get(producer, -1))
    for left in open_batches.values():
        verdict.found(Kind.FENCED, f"{_about(left[0])} is in a transaction that never ended")
    verdict.figures["lists_aborted"] = aborted


def _about(batch: Batch) -> str:
    return (
        f"batch at {batch.partition}:{batch.base_offset} of producer {batch.producer_id}, epoch "
        f"{batch.producer_epoch},"
    )
