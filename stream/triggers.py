"""When a user is due a list: debounce, coalesce, deadline. Pure, on the clock its caller hands in.

A user is due after `min_events` events and `quiet_period` without another, or `max_wait` after the first unserved one,
whichever comes first. However many events fall into that window, one list serves them all.
"""

from __future__ import annotations

from heapq import heappop, heappush

from msgspec import Struct


class TriggerRules(Struct, frozen=True):
    """The window, in seconds, and the events that make a list worth its cost."""

    min_events: int
    quiet_period: float
    max_wait: float


class _Window:
    """A user's unserved events: when the first and the last came, and how many."""

    __slots__ = ("count", "first", "last")

    def __init__(self, now: float, count: int) -> None:
        self.first = now
        self.last = now
        self.count = count


class TriggerQueue:
    """The users of one partition who are owed a list, ordered by deadline.

    An event costs one dictionary look-up: the heap holds the deadline a window had when it was queued, and what
    later events did to it is worked out only when that moment comes.
    """

    def __init__(self, rules: TriggerRules) -> None:
        self._rules = rules
        self._windows: dict[str, _Window] = {}
        self._heap: list[tuple[float, str]] = []
        self._busy: set[str] = set()

    def __len__(self) -> int:
        """How many users wait, those whose list is being made included."""
        return len(self._windows.keys() | self._busy) if self._busy else len(self._windows)

    def note(self, user_id: str, now: float) -> None:
        """An event of this user was folded in."""
        window = self._windows.get(user_id)
        if window is not None:
            window.last = now
            window.count += 1
            if window.count == self._rules.min_events and user_id not in self._busy:
                # the quiet period counts from here on, which can only bring the deadline forward
                heappush(self._heap, (self._deadline(window), user_id))
            return
        window = self._windows[user_id] = _Window(now, 1)
        if user_id not in self._busy:
            self._queue(user_id, window)

    def owe(self, user_id: str, now: float) -> None:
        """This user has been owed a list since before the daemon started: it is due at once."""
        window = self._windows[user_id] = _Window(now - self._rules.max_wait, self._rules.min_events)
        self._queue(user_id, window)

    def next_deadline(self) -> float | None:
        """When the next user may be due; None while nobody waits. Never later than the true moment."""
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> str | None:
        """Take the user whose deadline is the oldest of those that have passed; None if nobody is due.

        A user taken is busy until `release` and is not due again before.
        """
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, user_id = heappop(heap)
            window = self._windows.get(user_id)
            if window is None or user_id in self._busy:
                continue  # an entry that a later one overtook
            deadline = self._deadline(window)
            if deadline > now:
                heappush(heap, (deadline, user_id))
                continue
            del self._windows[user_id]
            self._busy.add(user_id)
            return user_id
        return None

    def hurry(self) -> None:
        """Everyone who waits is due now: no further event will come."""
        self._heap = [(float("-inf"), user_id) for user_id in self._windows if user_id not in self._busy]
        for window in self._windows.values():
            window.first = float("-inf")

    def release(self, user_id: str) -> None:
        """The list of a busy user is published or given up; events that came meanwhile count from their arrival."""
        self._busy.discard(user_id)
        window = self._windows.get(user_id)
        if window is not None:
            self._queue(user_id, window)

    def _queue(self, user_id: str, window: _Window) -> None:
        heappush(self._heap, (self._deadline(window), user_id))

    def _deadline(self, window: _Window) -> float:
        latest = window.first + self._rules.max_wait
        if window.count < self._rules.min_events:
            return latest
        return min(window.last + self._rules.quiet_period, latest)
