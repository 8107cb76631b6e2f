"""When the next event of a log may be sent: as fast as can be, at a rate, or at the log's own speed. Pure."""

from __future__ import annotations

from typing import Final, Protocol

BURST_SECONDS: Final = 0.1  # a rate that was missed for longer is not made up for


class Pace(Protocol):
    """Says of one event after another how long it has still to wait."""

    def delay(self, now: float, timestamp_ms: int) -> float:
        """Seconds from `now`, on any steady clock, until the event of this time may be sent; 0 or less is at
        once.
        """


class Unpaced:
    """As fast as can be."""

    def delay(self, now: float, timestamp_ms: int) -> float:
        """Never any."""
        return 0.0


class RatePace:
    """A token bucket: so many events a second, and what a stall kept back is made up for BURST_SECONDS at
    most.
    """

    def __init__(self, events_per_second: float) -> None:
        self._interval = 1.0 / events_per_second
        self._due: float | None = None

    def delay(self, now: float, timestamp_ms: int) -> float:
        """Each call is for one event more."""
        if self._due is None:
            self._due = now
        due = max(self._due, now - BURST_SECONDS)
        self._due = due + self._interval
        return due - now


class LogPace:
    """The gaps between events as in the log, shortened by `speedup`; what a stall kept back follows at once."""

    def __init__(self, speedup: float = 1.0) -> None:
        self._speedup = speedup
        self._origin: tuple[float, int] | None = None

    def delay(self, now: float, timestamp_ms: int) -> float:
        """The first event's time is now."""
        if self._origin is None:
            self._origin = now, timestamp_ms
        begun, first_ms = self._origin
        return begun + (timestamp_ms - first_ms) / 1000 / self._speedup - now
