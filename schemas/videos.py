"""A video and what is known of it, so that one which no user has watched yet can be recommended."""

from __future__ import annotations

from msgspec import Struct

from schemas.attributes import Attributes
from schemas.bounds import SchemaVersion, TimestampMs, VideoId


class Video(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A video that can be recommended, whether or not anybody has watched it yet."""

    video_id: VideoId
    attributes: Attributes = {}
    timestamp_ms: TimestampMs | None = None
    schema_version: SchemaVersion = 1
