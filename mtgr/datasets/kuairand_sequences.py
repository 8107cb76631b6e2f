"""KuaiRand histories of which only the order is left: what was watched, liked and watched long, without times."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from mtgr.datasets.wire_log import read_lines
from mtgr.errors import InputError
from schemas.bounds import TimestampMs
from schemas.events import Event

STEP_MS: Final = 60_000
LONG_SECONDS: Final = 18.0
"""The least that KuaiRand calls a long view of a video of unknown length."""
LONG_RATIO: Final = 1.0
SHORT_SECONDS: Final = 3.0
SHORT_RATIO: Final = 0.2

_Video = Annotated[int, Meta(ge=0)]


class UserHistory(Struct, frozen=True, forbid_unknown_fields=True):
    """The last videos of a user, the oldest first: at most 50 watched, 50 liked and 50 watched long."""

    user_id: Annotated[int, Meta(ge=0)]
    history_len: int
    last_time_ms: TimestampMs
    watch: list[_Video]
    like: list[_Video]
    long: list[_Video]


_decode = msgspec.json.Decoder(UserHistory).decode


class Step(NamedTuple):
    """One video of a history; whether it was watched is certain only where it stands among the watched."""

    video: int
    watched: bool
    long: bool
    liked: bool


def is_history(line: bytes) -> bool:
    """Whether a line of JSON is a user's history."""
    try:
        _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True


def steps(history: UserHistory) -> list[Step]:
    """One order of what a history tells in three, the oldest first.

    Long views and likes are some of the watches, in the same order, so each belongs to the last watch of its
    video that leaves the order whole. Those for which the 50 watches do not reach back far enough are older:
    a long view is a watch still, a like among them stands alone unless it is of such a long view.
    """
    long, older_long = _aligned(history.watch, history.long)
    liked, older_liked = _aligned(history.watch, history.like)
    found = [
        Step(video, watched=True, long=place in long, liked=place in liked)
        for place, video in enumerate(history.watch)
    ]
    return _older(history.long[:older_long], history.like[:older_liked]) + found


def read_histories(path: Path, on_invalid: Callable[[InputError], None] | None) -> Iterator[Event]:
    """Events of a file of histories, in time order.

    The file tells neither times nor lengths, so these are placeholders: the steps of a user are STEP_MS
    apart, the last one 1 ms before `last_time_ms` and each like 1 ms after its watch; a long view is
    LONG_SECONDS at the ratio LONG_RATIO, another watch SHORT_SECONDS at SHORT_RATIO. A line that is no history
    goes to `on_invalid` as the error that names it, or is raised.
    """
    import polars as pl  # takes longer to import than many a log to read

    from mtgr.datasets.checked_rows import LIKE, WATCH
    from mtgr.datasets.event_table import make_events

    times, kinds, longs, ordinals = array("q"), array("b"), array("b"), array("q")
    users: list[str] = []
    videos: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            history = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            wrong = InputError(
                f"{path}: line {number}: {error}; it should be a history like the first line's"
            )
            if on_invalid is None:
                raise wrong from None
            on_invalid(wrong)
            continue
        user = str(history.user_id)
        found = steps(history)
        first = history.last_time_ms - 1 - STEP_MS * (len(found) - 1)
        for ordinal, step in enumerate(found):
            video, time = str(step.video), max(first + STEP_MS * ordinal, 0)
            for kind in [WATCH] * step.watched + [LIKE] * step.liked:
                times.append(time + (kind == LIKE))
                kinds.append(kind)
                longs.append(step.long)
                ordinals.append(ordinal)
                users.append(user)
                videos.append(video)
    long = pl.col("long") == 1
    table = pl.DataFrame(
        {"time": times, "type": kinds, "long": longs, "ordinal": ordinals, "user": users, "video": videos},
        schema_overrides={"user": pl.String, "video": pl.String},
    )
    name = pl.when(pl.col("type") == LIKE).then(pl.lit("like")).otherwise(pl.lit("watch"))
    events = table.select(
        pl.int_range(pl.len()).alias("place"),
        "time",
        "type",
        "user",
        "video",
        # a user has one history in the file, in which no place is taken twice
        pl.format("history-{}-{}-{}", "ordinal", "video", name).alias("event_id"),
        pl.lit(None, pl.String).alias("session"),
        pl.lit(None, pl.String).alias("channel"),
        pl.when(long).then(LONG_SECONDS).otherwise(SHORT_SECONDS).alias("seconds"),
        pl.when(long).then(LONG_RATIO).otherwise(SHORT_RATIO).alias("ratio"),
        pl.lit(None, pl.Float64).alias("length"),
    )
    return make_events(events.sort("time", "place", maintain_order=True))


def _aligned(watched: Sequence[int], chosen: Sequence[int]) -> tuple[set[int], int]:
    """Places of the chosen among the watched, matched from the end, and how many at the start have none."""
    places: set[int] = set()
    left = len(chosen)
    for place in range(len(watched) - 1, -1, -1):
        if left and watched[place] == chosen[left - 1]:
            places.add(place)
            left -= 1
    return places, left


def _older(long: Sequence[int], liked: Sequence[int]) -> list[Step]:
    """Long views and likes from before the watched, each in its order, a like beside its long view."""
    steps: list[Step] = []
    end = len(long)
    for video in reversed(liked):
        place = next((place for place in range(end - 1, -1, -1) if long[place] == video), None)
        if place is None:
            steps.append(Step(video, watched=False, long=False, liked=True))
            continue
        steps += (Step(one, watched=True, long=True, liked=False) for one in reversed(long[place + 1 : end]))
        steps.append(Step(video, watched=True, long=True, liked=True))
        end = place
    steps += (Step(one, watched=True, long=True, liked=False) for one in reversed(long[:end]))
    return steps[::-1]
