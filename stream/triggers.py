"""When a user is due a list: debounce, coalesce, deadline. Pure, on the clock its caller hands in.

A user is due after `min_events` events and `quiet_period` without another, or `max_wait` after the first unserved one,
whichever comes first. However many events fall into that window, one list serves them all.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Final

from msgspec import Struct

_STALE_ENTRIES: Final = 64  # heap entries that may have lost their meaning before the heap is made anew


class TriggerRules(Struct, frozen=True):
    """The window, in seconds, and the events that make a list worth its cost."""

    min_events: int
    quiet_period: float
    max_wait: float


class _Window:
    """A user's unserved events: when the first and the last came, and how many.

    `queued` is the time of the window's entry in the heap, None while it has none; any other entry is stale.
    """

    __slots__ = ("count", "first", "last", "queued")

    def __init__(self, now: float, count: int) -> None:
        self.first = now
        self.last = now
        self.count = count
        self.queued: float | None = None


class TriggerQueue:
    """The users of one partition who are owed a list, ordered by deadline.

    An event costs one dictionary look-up: the heap holds the deadline a window had when it was queued, and what
    later events did to it is worked out only when that moment comes.
    """

    def __init__(self, rules: TriggerRules) -> None:
        self._rules = rules
        self._windows: dict[str, _Window] = {}
        self._heap: list[tuple[float, int, str]] = []  # of equal deadlines the first noted comes first
        self._numbers = count()
        self._busy: set[str] = set()

    def __len__(self) -> int:
        """How many users wait, those whose list is being made included."""
        return len(self._windows) + sum(user_id not in self._windows for user_id in self._busy)

    def note(self, user_id: str, now: float) -> None:
        """An event of this user was folded in."""
        window = self._windows.get(user_id)
        if window is not None:
            window.last = now
            window.count += 1
            if window.count == self._rules.min_events and user_id not in self._busy:
                # the quiet period counts from here on, which can only bring the deadline forward
                self._queue(user_id, window)
            return
        window = self._windows[user_id] = _Window(now, 1)
        if user_id not in self._busy:
            self._queue(user_id, window)

    def owe(self, user_id: str) -> None:
        """A list of this user was due before: it is due at once, after those said so before and before all others."""
        window = self._windows[user_id] = _Window(float("-inf"), self._rules.min_events)
        self._queue(user_id, window)

    def next_deadline(self) -> float | None:
        """When the next user is due; None while nobody waits."""
        heap, windows = self._heap, self._windows
        while heap:
            at, number, user_id = heap[0]
            window = windows.get(user_id)
            if window is None or window.queued != at:
                heappop(heap)
                continue
            deadline = self._deadline(window)
            if deadline <= at:
                return at
            window.queued = deadline  # later events have put it off
            heapreplace(heap, (deadline, number, user_id))
        return None

    def take(self, now: float) -> str | None:
        """Take the user whose deadline is the oldest of those that have passed; None if nobody is due.

        A user taken is busy until `release` and is not due again before.
        """
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return None
        _, _, user_id = heappop(self._heap)
        del self._windows[user_id]
        self._busy.add(user_id)
        return user_id

    def hurry(self) -> None:
        """Everyone who waits is due now: no further event will come."""
        for window in self._windows.values():
            window.first = float("-inf")
            if window.queued is not None:
                window.queued = window.first
        self._rebuild()

    def release(self, user_id: str) -> None:
        """The list of a busy user is published or given up; events that came meanwhile count from their arrival."""
        self._busy.discard(user_id)
        window = self._windows.get(user_id)
        if window is not None:
            self._queue(user_id, window)

    def _queue(self, user_id: str, window: _Window) -> None:
        window.queued = self._deadline(window)
        heappush(self._heap, (window.queued, next(self._numbers), user_id))
        if len(self._heap) > 2 * len(self._windows) + _STALE_ENTRIES:
            self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [
            (window.queued, next(self._numbers), user_id)
            for user_id, window in self._windows.items()
            if window.queued is not None
        ]
        heapify(self._heap)

    def _deadline(self, window: _Window) -> float:
        latest = window.first + self._rules.max_wait
        if window.count < self._rules.min_events:
            return latest
        return min(window.last + self._rules.quiet_period, latest)
