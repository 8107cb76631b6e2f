"""The event union: what a user did with a video, or what is known of a user, tagged by `type`."""

from __future__ import annotations

from typing import Annotated, final

from msgspec import Meta, Struct

from schemas.attributes import Attributes
from schemas.bounds import (
    Channel,
    EventId,
    Identifier,
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


@final
class Profile(
    Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="profile"
):
    """What is known of a user; the newest by `timestamp_ms` replaces the one before it, as a whole."""

    event_id: Annotated[Identifier, Meta(description="Unique for the user, as with every event.")]
    user_id: UserId
    timestamp_ms: TimestampMs
    attributes: Attributes
    schema_version: SchemaVersion = 1


@final
class Forget(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True, tag_field="type", tag="forget"):
    """Everything kept of a user is deleted: history, profile, and the list that is owed."""

    event_id: Annotated[Identifier, Meta(description="Unique for the user, as with every event.")]
    user_id: UserId
    timestamp_ms: TimestampMs
    schema_version: SchemaVersion = 1


Interaction = Watch | Like | Favorite | Share
"""What becomes part of a user's sequence, and after which a list is owed."""

Event = Interaction | Profile
"""What logs are made of, and models of them."""

Instruction = Event | Forget
"""What the events topic may hold."""
