"""Recommendation lists as they come, for whoever runs the demo."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from time import monotonic
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.live import Live

from schemas.events import Event, Interaction
from schemas.lists import RecommendationList
from stream.demo.ledger import Arrival
from stream.tools.list_table import cached_share, list_table

_FRAME_SECONDS: Final = 0.25
_LINE_SECONDS: Final = 0.5
_ROWS: Final = 16
_TOP: Final = 5
_VERBS: Final = {"watch": "watched", "like": "liked", "favorite": "favorited", "share": "shared"}


class Screen:
    """A table of the latest lists on a terminal; on a pipe a line every half second, with the newest list."""

    def __init__(self, console: Console, events: Mapping[str, Event]) -> None:
        """`events` by their ids, to say what a list followed."""
        self.progress = ""
        self._console = console
        self._events = events
        self._lists = 0
        self._latest: deque[Arrival] = deque(maxlen=max(min(console.height - 6, _ROWS), 1))
        self._shown = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def add(self, arrivals: Sequence[Arrival]) -> None:
        """Lists that have just come."""
        self._lists += len(arrivals)
        self._latest.extend(arrivals)
        now = monotonic()
        if self._live is not None and now - self._shown >= _FRAME_SECONDS:
            self._shown = now
            self._draw(self._live)
        elif self._live is None and now - self._shown >= _LINE_SECONDS:
            self._shown = now
            self._console.print(self._line(arrivals[-1]), highlight=False, soft_wrap=True)

    def _draw(self, live: Live) -> None:
        lists = [arrival.recommended for arrival in self._latest]
        events = [self._events.get(each.trigger.event_id) for each in lists]
        live.update(list_table(lists, events, f"{self._lists:,} lists, {self.progress}"), refresh=True)

    def _line(self, arrival: Arrival) -> str:
        each = arrival.recommended
        time = datetime.fromtimestamp(arrival.arrived_ms / 1000).strftime("%H:%M:%S")
        videos = "  ".join(f"{video.video_id} ({video.score:.2f})" for video in each.items[:_TOP])
        return (
            f"{time}  user {each.user_id} {self._followed(each)} -> {videos}  [{each.latency_ms:.0f} ms, "
            f"{each.sequence_length} events, {cached_share(each):.0%} cached]  {self._lists:,} lists, {self.progress}"
        )

    def _followed(self, each: RecommendationList) -> str:
        event = self._events.get(each.trigger.event_id)
        if not isinstance(event, Interaction):
            return ""
        return f"{_VERBS[str(type(event).__struct_config__.tag)]} {event.video_id}"

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._draw(self._live)
            self._live.stop()
