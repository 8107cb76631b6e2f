"""Recommendation lists as rows of a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.table import Table
from rich.text import Text

from schemas.events import Event, Interaction
from schemas.lists import RecommendationList

_TOP: Final = 5


def list_table(lists: Sequence[RecommendationList], events: Sequence[Event | None], title: str) -> Table:
    """Lists, one row each, with the event that each followed, as far as it is known."""
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="bold", expand=True
    )
    table.add_column("time", no_wrap=True)
    table.add_column("user", no_wrap=True, max_width=16)
    table.add_column("after", no_wrap=True, max_width=24)
    table.add_column(f"top {_TOP} of the list", ratio=1, no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("events", justify="right", no_wrap=True)
    table.add_column("cached", justify="right", no_wrap=True)
    for each, event in zip(lists, events, strict=True):
        table.add_row(
            datetime.fromtimestamp(each.generated_at_ms / 1000).strftime("%H:%M:%S"),
            each.user_id,
            _event(event),
            _items(each),
            f"{each.latency_ms:.0f}",
            str(each.sequence_length),
            f"{cached_share(each):.0%}",
        )
    return table


def cached_share(each: RecommendationList) -> float:
    """The share of the user's events that did not have to be computed again, from 0 to 1."""
    return min(each.cached_tokens / each.sequence_length, 1.0)


def _event(event: Event | None) -> Text:
    if not isinstance(event, Interaction):
        return Text("")
    kind = str(type(event).__struct_config__.tag)
    return Text.assemble((event.video_id, "cyan"), " ", ("watched" if kind == "watch" else f"{kind}d", "dim"))


def _items(each: RecommendationList) -> Text:
    text = Text()
    for item in each.items[:_TOP]:
        text.append(item.video_id, "green")
        text.append(f" {item.score:.2f}  ", "dim")
    return text
