"""Bounded scalars shared by the wire types, so that a bound is part of the type and of its JSON Schema."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

MAX_ID_CHARACTERS: Final = 128
MAX_SECONDS: Final = 604_800.0  # one week: no single watch is longer
MAX_WATCH_RATIO: Final = 1_000.0
MAX_TIMESTAMP_MS: Final = 4_102_444_800_000  # 2100-01-01

Identifier = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARACTERS)]
EventId = Annotated[
    Identifier, Meta(description="Unique for the user: an event whose id was seen before is a duplicate.")
]
UserId = Annotated[Identifier, Meta(description="The user; also the record's key.")]
VideoId = Annotated[Identifier, Meta(description="The video, by the producer's own id.")]
SessionId = Annotated[Identifier, Meta(description="The user's session; handed on to the list.")]
TimestampMs = Annotated[
    int, Meta(ge=0, le=MAX_TIMESTAMP_MS, description="Milliseconds since 1970-01-01 00:00 UTC.")
]
WatchSeconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS, description="Time watched, in seconds.")]
VideoSeconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS, description="Length of the video, in seconds.")]
WatchRatio = Annotated[
    float,
    Meta(ge=0, le=MAX_WATCH_RATIO, description="Watched time over video length; above 1 when watched again."),
]
Channel = Annotated[str, Meta(min_length=1, max_length=64, description="Where it was shared to.")]
SchemaVersion = Literal[1]
