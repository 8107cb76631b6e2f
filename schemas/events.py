"""The event union: what a user did with a video, tagged by `type`."""

from __future__ import annotations

from msgspec import Struct

from schemas.bounds import (
    Channel,
    EventId,
    SchemaVersion,
    SessionId,
    TimestampMs,
    UserId,
    VideoId,
    VideoSeconds,
    WatchRatio,
    WatchSeconds,
)


class Watch(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="watch"):
    """A user watched a video, wholly or in part."""

    event_id: EventId
    user_id: UserId
    video_id: VideoId
    timestamp_ms: TimestampMs
    watch_seconds: WatchSeconds
    watch_ratio: WatchRatio
    video_seconds: VideoSeconds | None = None
    session_id: SessionId | None = None
    schema_version: SchemaVersion = 1


class Like(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="like"):
    """A user liked a video."""

    event_id: EventId
    user_id: UserId
    video_id: VideoId
    timestamp_ms: TimestampMs
    session_id: SessionId | None = None
    schema_version: SchemaVersion = 1


class Favorite(
    Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="favorite"
):
    """A user put a video among the favourites."""

    event_id: EventId
    user_id: UserId
    video_id: VideoId
    timestamp_ms: TimestampMs
    session_id: SessionId | None = None
    schema_version: SchemaVersion = 1


class Share(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="share"):
    """A user shared a video, through a channel if the producer knows it."""

    event_id: EventId
    user_id: UserId
    video_id: VideoId
    timestamp_ms: TimestampMs
    channel: Channel | None = None
    session_id: SessionId | None = None
    schema_version: SchemaVersion = 1


Event = Watch | Like | Favorite | Share
