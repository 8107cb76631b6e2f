"""Which records of a partition are done with, out of order, in as much as fits beside a committed offset.
Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, Self

MAX_METADATA_CHARACTERS: Final = 4_000  # Kafka's offset.metadata.max.bytes is 4096 by default
_PREFIX: Final = "settled:"


class SettledOffsets:
    """Every offset below `next_offset`, and ranges of offsets above it.

    A committed offset alone cannot say that records were passed over to be dealt with later; the metadata
    that Kafka keeps with it can.
    """

    def __init__(self, next_offset: int = 0) -> None:
        self.next_offset = next_offset
        self._starts: list[int] = []  # of ranges above next_offset, which neither touch nor overlap
        self._ends: list[int] = []  # one past each range's last

    def __contains__(self, offset: int) -> bool:
        if offset < self.next_offset:
            return True
        place = bisect_right(self._starts, offset) - 1
        return place >= 0 and offset < self._ends[place]

    def add(self, start: int, end: int) -> None:
        """The offsets from start up to but not including end are settled."""
        if start >= end:
            return
        if start <= self.next_offset:
            self.next_offset = max(self.next_offset, end)
        else:
            # those that the new range touches become one with it
            first = bisect_right(self._ends, start - 1)
            last = bisect_right(self._starts, end)
            if first < last:
                start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
            self._starts[first:last] = [start]
            self._ends[first:last] = [end]
        while self._starts and self._starts[0] <= self.next_offset:
            self._starts.pop(0)
            self.next_offset = max(self.next_offset, self._ends.pop(0))

    def to_metadata(self) -> str:
        """The ranges above `next_offset` as text; the highest are left out where there are too many to fit."""
        parts = []
        room = MAX_METADATA_CHARACTERS - len(_PREFIX)
        before = self.next_offset
        for start, end in zip(self._starts, self._ends, strict=True):
            part = f"{start - before}+{end - start}"
            room -= len(part) + 1
            if room < 0:
                break
            parts.append(part)
            before = end
        return _PREFIX + ",".join(parts) if parts else ""

    @classmethod
    def from_commit(cls, offset: int, metadata: str) -> Self:
        """Read back what was committed; metadata that is not of this kind says nothing more than the offset."""
        settled = cls(max(offset, 0))
        if metadata.startswith(_PREFIX):
            end = settled.next_offset
            for part in metadata.removeprefix(_PREFIX).split(","):
                gap, plus, length = part.partition("+")
                if not (plus and gap.isdecimal() and length.isdecimal()):
                    break
                start = end + int(gap)
                end = start + int(length)
                settled.add(start, end)
        return settled
