"""Whom a partition keeps no longer: those silent for too long, and the most silent where there is no room. Pure.

Time is that of the stream: the newest time that a record of the partition bore. It stands still while no record comes:
a daemon that was away for a week does not begin by deleting, and nobody's clock is asked.
"""

from __future__ import annotations

from array import array
from typing import Final

import numpy as np
from msgspec import Struct

_PASSES: Final = 50  # over all users, in the time that a user may be silent
_LEAST_PASS_MS: Final = 60_000
_ROOM: Final = 0.9  # of the ceiling is left full, so that not every pass has to make room


class RetentionRules(Struct, frozen=True):
    """How long a user may be silent, and how much may be kept of all users of a partition; None for no limit."""

    ttl_ms: int | None = None
    max_bytes: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether anybody is ever let go of."""
        return self.ttl_ms is not None or self.max_bytes is not None


class Retention:
    """What passes over all users of a partition find out, and who is to go because of it.

    A pass looks at every user once. It finds what all of them take, and with it the moment before which a user must
    have been silent for there to be room for the rest; the next pass lets those go. Who is silent for too long goes
    in the pass that finds it.
    """

    def __init__(self, rules: RetentionRules) -> None:
        self._rules = rules
        self._room_since = 0  # who has been silent since before that makes room for the others
        self._next_pass_ms = 0
        self._last = array("q")
        self._sizes = array("q")
        self.now_ms = 0

    def advance(self, timestamp_ms: int) -> None:
        """A record bore this time; one that is older than the newest changes nothing."""
        self.now_ms = max(self.now_ms, timestamp_ms)

    @property
    def is_due(self) -> bool:
        """Whether enough time has gone by in the stream since the last pass began."""
        return self._rules.is_bounded and self.now_ms >= self._next_pass_ms

    def begin_pass(self) -> None:
        """Forget what the pass before saw, but not what it found."""
        period = _LEAST_PASS_MS
        if self._rules.ttl_ms is not None:
            period = max(self._rules.ttl_ms // _PASSES, 1)
        self._next_pass_ms = self.now_ms + period
        self._last, self._sizes = array("q"), array("q")

    def lets_go(self, last_ms: int, nbytes: int) -> bool:
        """Whether a user who was last heard of then, and takes so much, is to go; to be asked once a pass for each."""
        if last_ms < self.horizon_ms:
            return True
        if self._rules.max_bytes is not None:
            self._last.append(last_ms)
            self._sizes.append(nbytes)
        return False

    @property
    def horizon_ms(self) -> int:
        """Who was last heard of before this is to go."""
        ttl = self._rules.ttl_ms
        return max(self._room_since, self.now_ms - ttl if ttl is not None else 0)

    def end_pass(self) -> None:
        """Every user was seen: find whom there is room for."""
        ceiling = self._rules.max_bytes
        if ceiling is None:
            return
        sizes = np.frombuffer(self._sizes, dtype=np.int64)
        if sizes.sum() <= ceiling:
            return
        last = np.frombuffer(self._last, dtype=np.int64)
        newest_first = np.argsort(-last, kind="stable")
        kept = int(np.searchsorted(np.cumsum(sizes[newest_first]), ceiling * _ROOM, side="right"))
        # the first whom there is no room for, and everybody heard of no later
        self._room_since = int(last[newest_first[kept]]) + 1
        self._next_pass_ms = self.now_ms  # there is no room now: let them go at once
