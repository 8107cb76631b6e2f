"""Which users and partitions most records are of: a bounded summary over a moving window. Pure, on the clock handed in.

There is no metric with a label for each user: that would be millions of series, and user ids in a metrics store. What
is kept here is bounded, is gone after two windows, and is shown to whoever asks the daemon itself.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

WINDOW_SECONDS: Final = 60.0
_CAPACITY: Final = 2_000
_SAMPLE: Final = 16  # of a batch: looking at each record's key would cost 2 % of the fold


class Share(Struct, frozen=True):
    """How many records of the window are of one key, and what part of all that is."""

    key: str
    events: int
    share: float


class Summary:
    """Counts of the commonest keys in no more than `capacity` places: Misra and Gries, "Finding repeated elements".

    When the places are used up, all counts are lowered by their median, and what is left without any goes. A count is
    below the truth by `undercount` at most, which is at most twice the total divided by the capacity.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self.counts: Counter[str] = Counter()
        self.total = 0.0
        self.undercount = 0.0

    def add(self, counts: Mapping[str, int], weight: float = 1.0) -> None:
        """So many records of each key, each standing for `weight`."""
        for key, count in counts.items():
            self.counts[key] += count * weight  # type: ignore[assignment]
            self.total += count * weight
            if len(self.counts) > self._capacity:
                self._make_room()

    def _make_room(self) -> None:
        median = sorted(self.counts.values())[len(self.counts) // 2]
        self.undercount += median
        self.counts = Counter({key: count - median for key, count in self.counts.items() if count > median})


class HotKeys:
    """The users with the most records of the last one to two windows, and each partition's part in them.

    A batch of records longer than a sample is judged by a sample of it: what is hot is found all the same.
    """

    def __init__(
        self,
        window_seconds: float = WINDOW_SECONDS,
        capacity: int = _CAPACITY,
        chance: random.Random | None = None,
    ) -> None:
        self.window_seconds: Final = window_seconds
        self._capacity = capacity
        self._chance = chance or random.Random()
        self._panes = self._new_pane(), self._new_pane()  # this window's and that of the one before
        self._begun = float("-inf")

    def note(self, partition: int, records: Sequence[Any], now: float) -> None:
        """These records of a partition came now; their keys are user ids."""
        self._turn(now)
        users, partitions = self._panes[0]
        partitions.add({str(partition): len(records)})
        some = records if len(records) <= _SAMPLE else self._chance.choices(records, k=_SAMPLE)
        keys = Counter([record.key for record in some])
        weight = len(records) / len(some) if some else 1.0
        users.add({key.decode(errors="replace"): count for key, count in keys.items() if key}, weight)

    def users(self, count: int, now: float) -> list[Share]:
        """The users with the most records, the hottest first."""
        return self._top(0, count, now)

    def partitions(self, now: float) -> list[Share]:
        """The partitions that had records, the busiest first."""
        return self._top(1, None, now)

    def _top(self, kind: int, count: int | None, now: float) -> list[Share]:
        self._turn(now)
        counts = self._panes[0][kind].counts + self._panes[1][kind].counts
        total = sum(pane[1].total for pane in self._panes)
        return [Share(key, round(events), events / total) for key, events in counts.most_common(count)]

    def _turn(self, now: float) -> None:
        passed = now - self._begun
        if passed >= self.window_seconds:
            before = self._panes[0] if passed < 2 * self.window_seconds else self._new_pane()
            self._panes = self._new_pane(), before
            self._begun = now

    def _new_pane(self) -> tuple[Summary, Summary]:
        return Summary(self._capacity), Summary(self._capacity)
