"""Lists are shown so that a person sees who got what, after what, and how fast."""

from __future__ import annotations

import io

from rich.console import Console

from schemas.events import Like, Watch
from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from stream.tools.list_table import cached_share, list_table


def made(user_id: str = "u1", length: int = 20, cached: int = 16) -> RecommendationList:
    return RecommendationList(
        list_id="l",
        user_id=user_id,
        session_id=None,
        items=tuple(RecommendedVideo(f"v{rank}", -0.5 * rank, rank) for rank in range(1, 11)),
        model=ModelVersion("tiny", "0"),
        strategy="topk",
        generated_at_ms=1_700_000_000_000,
        trigger=TriggerEvent("events", 0, 3, "e", 1),
        sequence_length=length,
        cached_tokens=cached,
        latency_ms=85.4,
    )


def test_a_row_says_who_what_after_what_and_how_fast() -> None:
    """User, last watched video, best items with scores, milliseconds and the cached share are all there."""
    watch = Watch(
        event_id="e", user_id="u1", video_id="seen7", timestamp_ms=1, watch_seconds=1, watch_ratio=0.5
    )
    like = Like(event_id="f", user_id="u2", video_id="seen8", timestamp_ms=1)
    console = Console(file=io.StringIO(), width=140)
    console.print(list_table([made(), made("u2"), made("u3")], [watch, like, None], "lists"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = text.splitlines()[-3:]
    for word in ("u1", "seen7 watched", "v1 -0.50", "v5 -2.50", "85", "80%"):
        assert word in rows[0]
    assert "seen8 liked" in rows[1]
    assert "u3" in rows[2]


def test_the_cached_share_is_a_share() -> None:
    """Tokens beside the events are cached too, which makes it no more than all."""
    assert cached_share(made(length=20, cached=5)) == 0.25
    assert cached_share(made(length=20, cached=21)) == 1.0
