"""Events made from columns, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl

from mtgr.datasets.checked_rows import COLUMNS, LIKE, SHARE, WATCH
from schemas.events import Event, Favorite, Like, Share, Watch

_SLICE_ROWS: Final = 65_536


def make_events(table: pl.DataFrame) -> Iterator[Event]:
    """Events of a table of COLUMNS, in its order; their values are not checked again."""
    for rows in table.select(COLUMNS).drop("place").iter_slices(_SLICE_ROWS):
        columns = (rows[name].to_list() for name in rows.columns)
        for time, kind, user, video, event_id, session, channel, seconds, ratio, length in zip(
            *columns, strict=True
        ):
            if kind == WATCH:
                yield Watch(
                    event_id=event_id,
                    user_id=user,
                    video_id=video,
                    timestamp_ms=time,
                    watch_seconds=seconds,
                    watch_ratio=ratio,
                    video_seconds=length,
                    session_id=session,
                )
            elif kind == SHARE:
                yield Share(
                    event_id=event_id,
                    user_id=user,
                    video_id=video,
                    timestamp_ms=time,
                    channel=channel,
                    session_id=session,
                )
            else:
                make = Like if kind == LIKE else Favorite
                yield make(
                    event_id=event_id, user_id=user, video_id=video, timestamp_ms=time, session_id=session
                )
