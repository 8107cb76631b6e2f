"""The recommendation list, as consumers read it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from schemas.bounds import EventId, SchemaVersion, SessionId, TimestampMs, UserId, VideoId

Count = Annotated[int, Meta(ge=0)]
Strategy = Annotated[
    Literal["topk", "slate"],
    Meta(
        description="topk: the likeliest next videos, each by itself. slate: made video by video, each chosen as "
        "if the ones before it had been watched."
    ),
]


class RecommendedVideo(Struct, frozen=True, gc=False):
    """One place in a list."""

    video_id: VideoId
    score: Annotated[
        float,
        Meta(
            description="Log-probability of being the next video, seen ones excluded; in a slate, given the places "
            "before it."
        ),
    ]
    rank: Annotated[int, Meta(ge=1, description="1 is best.")]


class ModelVersion(Struct, frozen=True, gc=False):
    """Which model made a list."""

    name: str
    version: Annotated[str, Meta(description="Digest of the checkpoint's weights, catalog and config.")]


class TriggerEvent(Struct, frozen=True, gc=False):
    """The last event folded into the user's sequence before the list was made."""

    topic: str
    partition: Count
    offset: Count
    event_id: EventId
    timestamp_ms: TimestampMs


class RecommendationList(Struct, frozen=True, kw_only=True):
    """The videos one user is recommended next, best first. Consumers deduplicate by `list_id`."""

    list_id: Annotated[
        str, Meta(min_length=1, description="Deterministic: the user and the last event folded in.")
    ]
    user_id: UserId
    session_id: SessionId | None
    items: tuple[RecommendedVideo, ...]
    model: ModelVersion
    strategy: Strategy
    generated_at_ms: TimestampMs
    trigger: TriggerEvent
    sequence_length: Annotated[int, Meta(ge=1, description="Events the model saw.")]
    cached_tokens: Annotated[int, Meta(ge=0, description="Tokens taken from the KV cache.")]
    latency_ms: Annotated[
        float, Meta(ge=0, description="From the arrival of the first unserved event to this list.")
    ]
    schema_version: SchemaVersion = 1
