"""`mtgr-stream tail`: show recommendation lists as they come."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence

import click
import msgspec
from rich.console import Console
from rich.live import Live

from schemas.lists import RecommendationList
from stream.kafka import quieten
from stream.observability import configure_logging
from stream.settings import Settings, settings_options
from stream.tools.event_lookup import EventLookup
from stream.tools.list_feed import ListFeed, Place
from stream.tools.list_table import list_table

_REFRESH_SECONDS = 0.25
_FRAME_LINES = 4  # of the table that are no rows


@click.command()
@settings_options
@click.option(
    "--from",
    "place",
    type=click.Choice(["beginning", "end"]),
    default="end",
    show_default=True,
    help="Show lists that are there already, or only those that come.",
)
@click.option("--user", metavar="ID", help="Only this user's lists.")
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many lists.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines, as on a pipe.")
def command(settings: Settings, place: Place, user: str | None, limit: int | None, as_json: bool) -> None:
    """Show recommendation lists as they come: a live table on a terminal, JSON lines on a pipe.

    In the table, `after` is the event that the list followed, `ms` the time from that event's arrival to the
    list, and `cached` the share of the user's events that did not have to be computed again.
    """
    configure_logging(settings.log)
    quieten()
    console = Console()
    show = _print_lines if as_json or not console.is_terminal else _show_table
    asyncio.run(show(settings, place, user, limit, console))


async def _print_lines(
    settings: Settings, place: Place, user: str | None, limit: int | None, console: Console
) -> None:
    encode = msgspec.json.Encoder().encode_lines
    async with ListFeed.open(settings, place, user) as feed:
        async for lists in _until(feed, limit):
            sys.stdout.buffer.write(encode(lists))
            sys.stdout.buffer.flush()


async def _show_table(
    settings: Settings, place: Place, user: str | None, limit: int | None, console: Console
) -> None:
    rows: deque[RecommendationList] = deque(maxlen=max(console.height - _FRAME_LINES, 1))
    seen = 0
    async with (
        ListFeed.open(settings, place, user) as feed,
        EventLookup.open(settings.kafka) as lookup,
    ):
        with Live(console=console, auto_refresh=False, transient=False) as live:
            async for lists in _until(feed, limit):
                rows.extend(lists)
                seen += len(lists)
                title = f"{settings.topics.lists}: {seen:,} lists"
                live.update(
                    list_table(rows, await lookup.find(row.trigger for row in rows), title), refresh=True
                )


async def _until(feed: ListFeed, limit: int | None) -> AsyncIterator[Sequence[RecommendationList]]:
    left = limit
    while left is None or left > 0:
        lists = await feed.next(_REFRESH_SECONDS)
        if left is not None:
            lists = lists[:left]
            left -= len(lists)
        if lists:
            yield lists
