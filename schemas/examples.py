"""One example of every wire type, used in the documents and valid by test."""

from __future__ import annotations

from typing import Final

from schemas.dead_letters import DeadLetter
from schemas.events import Event, Favorite, Forget, Like, Profile, Share, Watch
from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from schemas.videos import Video

_MOMENT: Final = 1_767_225_600_000  # 2026-01-01 00:00 UTC

EVENTS: Final[dict[str, Event]] = {
    "watch": Watch(
        event_id="b7c1f1e2-0001",
        user_id="u-1042",
        video_id="v-77",
        timestamp_ms=_MOMENT,
        watch_seconds=12.5,
        watch_ratio=0.5,
        video_seconds=25.0,
        session_id="s-9",
    ),
    "like": Like(event_id="b7c1f1e2-0002", user_id="u-1042", video_id="v-77", timestamp_ms=_MOMENT + 3_000),
    "favorite": Favorite(
        event_id="b7c1f1e2-0003", user_id="u-1042", video_id="v-77", timestamp_ms=_MOMENT + 4_000
    ),
    "share": Share(
        event_id="b7c1f1e2-0004",
        user_id="u-1042",
        video_id="v-77",
        timestamp_ms=_MOMENT + 5_000,
        channel="chat",
    ),
    "profile": Profile(
        event_id="b7c1f1e2-0005",
        user_id="u-1042",
        timestamp_ms=_MOMENT + 6_000,
        attributes={"age_range": "25-34", "followed_authors": 18, "interests": ["cooking", "cats"]},
    ),
}

FORGET: Final = Forget(event_id="b7c1f1e2-0006", user_id="u-1042", timestamp_ms=_MOMENT + 7_000)

VIDEO: Final = Video(
    video_id="v-305",
    attributes={"author": "a-7", "tags": ["cats", "funny"], "seconds": 31.5},
    timestamp_ms=_MOMENT - 86_400_000,
)

RECOMMENDATIONS: Final = RecommendationList(
    list_id="e9c0ba2eb4c1443f0c733a666f9fb3ba",
    user_id="u-1042",
    session_id="s-9",
    items=(RecommendedVideo("v-12", -1.25, 1), RecommendedVideo("v-305", -1.5, 2)),
    model=ModelVersion("tiny", "3f9a0c1b"),
    strategy="topk",
    generated_at_ms=_MOMENT + 5_080,
    trigger=TriggerEvent("user-events", 3, 1_207, "b7c1f1e2-0004", _MOMENT + 5_000),
    sequence_length=4,
    cached_tokens=0,
    latency_ms=78.5,
)

DEAD_LETTER: Final = DeadLetter.make(
    topic="user-events",
    partition=3,
    offset=1_208,
    stage="decode",
    exception_class="MalformedEvent",
    message="Input data was truncated",
)
