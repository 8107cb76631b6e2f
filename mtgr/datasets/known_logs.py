"""Logs that are known by the names of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from mtgr.datasets.columns import ColumnMapping
from mtgr.errors import InputError

# The header of KuaiRand's logs (Gao et al., CIKM 2022). A follow is of the author, not of the video: no
# favourite.
KUAIRAND: Final = ColumnMapping(
    user="user_id",
    video="video_id",
    time="time_ms",
    time_unit="ms",
    watch_ms="play_time_ms",
    video_ms="duration_ms",
    like="is_like",
    share="is_forward",
)

# wire field -> field of the mapping, for logs whose columns are named as on the wire
_WIRE_NAMES: Final = {
    "event_id": "event_id",
    "session_id": "session",
    "type": "type",
    "watch_seconds": "watch_seconds",
    "watch_ratio": "watch_ratio",
    "video_seconds": "video_seconds",
    "channel": "channel",
}


def recognise(names: Sequence[str], source: str) -> ColumnMapping:
    """The mapping of a log by its columns alone: KuaiRand's, or columns named as the fields on the wire.

    Raises InputError, with `source` as the file's name, if it is neither.
    """
    known = set(names)
    if known >= set(KUAIRAND.columns().values()):
        return KUAIRAND
    if known >= {"user_id", "video_id", "timestamp_ms"}:
        wire = ColumnMapping(user="user_id", video="video_id", time="timestamp_ms", time_unit="ms")
        wire = replace(wire, **{target: name for name, target in _WIRE_NAMES.items() if name in known})
        if wire.type is None and wire.watch_seconds is None and wire.watch_ratio is None:
            # whether these are watches at all is a guess that only a mapping can settle
            raise InputError(
                f"{source}: no column type, watch_seconds or watch_ratio says what the rows are; say so by a "
                f"mapping, such as user=user_id,video=video_id,time=timestamp_ms,rows_are=watch"
            )
        return wire
    raise InputError(
        f"{source}: the columns {', '.join(names)} are not those of a known log; name yours by a mapping, "
        f"such as user=COLUMN,video=COLUMN,time=COLUMN,watch_seconds=COLUMN"
    )
