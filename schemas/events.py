"""The event union: what a user did with a video, tagged by `type`."""

from __future__ import annotations

from msgspec import Struct

from schemas.bounds import Channel, Identifier, SchemaVersion, Seconds, TimestampMs, WatchRatio


class Watch(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="watch"):
    """A user watched a video, wholly or in part."""

    event_id: Identifier
    user_id: Identifier
    video_id: Identifier
    timestamp_ms: TimestampMs
    watch_seconds: Seconds
    watch_ratio: WatchRatio
    video_seconds: Seconds | None = None
    session_id: Identifier | None = None
    schema_version: SchemaVersion = 1


class Like(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="like"):
    """A user liked a video."""

    event_id: Identifier
    user_id: Identifier
    video_id: Identifier
    timestamp_ms: TimestampMs
    session_id: Identifier | None = None
    schema_version: SchemaVersion = 1


class Favorite(
    Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="favorite"
):
    """A user put a video among the favourites."""

    event_id: Identifier
    user_id: Identifier
    video_id: Identifier
    timestamp_ms: TimestampMs
    session_id: Identifier | None = None
    schema_version: SchemaVersion = 1


class Share(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="share"):
    """A user shared a video, through a channel if the producer knows it."""

    event_id: Identifier
    user_id: Identifier
    video_id: Identifier
    timestamp_ms: TimestampMs
    channel: Channel | None = None
    session_id: Identifier | None = None
    schema_version: SchemaVersion = 1


Event = Watch | Like | Favorite | Share
