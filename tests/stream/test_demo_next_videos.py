"""What the demo's summary says of the next videos that users watched, on planted cases."""

from __future__ import annotations

from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from stream.demo.ledger import Arrival, StoredEvent
from stream.demo.next_videos import NextVideos, next_videos

RANKING = ["p1", "p2", "p3", "p4"]


def watch(offset: int, sent_ms: int, video_id: str, user: str = "u", partition: int = 0) -> StoredEvent:
    return StoredEvent(partition, offset, user, sent_ms, video_id, True, f"{partition}-{offset}")


def like(offset: int, sent_ms: int, video_id: str) -> StoredEvent:
    return StoredEvent(0, offset, "u", sent_ms, video_id, False, str(offset))


def arrival(arrived_ms: float, offset: int, *video_ids: str, user: str = "u", partition: int = 0) -> Arrival:
    made = RecommendationList(
        list_id=f"{user}-{offset}",
        user_id=user,
        session_id=None,
        items=tuple(RecommendedVideo(video_id, -1.0, rank) for rank, video_id in enumerate(video_ids, 1)),
        model=ModelVersion("tiny", "0"),
        strategy="topk",
        generated_at_ms=0,
        trigger=TriggerEvent("events", partition, offset, f"e{offset}", 0),
        sequence_length=1,
        cached_tokens=0,
        latency_ms=1.0,
    )
    return Arrival(made, arrived_ms)


def judged(events: list[StoredEvent], arrivals: list[Arrival], live_from: int = 0) -> NextVideos:
    return next_videos(events, arrivals, {0: live_from, 1: live_from}, RANKING)


def test_a_new_video_of_the_live_list_is_a_hit() -> None:
    """The video watched after the list came is in it, or it is not; popularity is asked the same."""
    events = [watch(0, 1_000, "a"), watch(1, 2_000, "b")]
    assert judged(events, [arrival(1_500, 0, "x", "b")]) == NextVideos(1, 1, 0)
    assert judged(events, [arrival(1_500, 0, "x", "y")]) == NextVideos(1, 0, 0)
    popular = [watch(0, 1_000, "a"), watch(1, 2_000, "p2")]
    assert judged(popular, [arrival(1_500, 0, "x", "y")]) == NextVideos(1, 0, 1)
    assert judged(popular, [arrival(1_500, 0, "x")]) == NextVideos(1, 0, 0), "a list of one has one place"


def test_a_list_that_was_not_there_yet_is_not_live() -> None:
    """What comes after the watch was sent, or at the same moment, cannot have been shown before it."""
    events = [watch(0, 1_000, "a"), watch(1, 2_000, "b")]
    assert judged(events, [arrival(2_000, 0, "b")]) == NextVideos(0, 0, 0)
    assert judged(events, [arrival(1_999.9, 0, "b")]) == NextVideos(1, 1, 0)
    later = [*events, watch(2, 3_000, "c")]
    assert judged(later, [arrival(1_500, 0, "c"), arrival(2_500, 1, "b")]) == NextVideos(2, 0, 0)


def test_the_newest_list_is_the_live_one() -> None:
    """A list replaces the one before it, and one that is delivered again replaces none."""
    events = [watch(0, 1_000, "a"), watch(1, 1_100, "b"), watch(2, 2_000, "c")]
    newer = [arrival(1_500, 0, "c"), arrival(1_600, 1, "x")]
    assert judged(events, newer) == NextVideos(1, 0, 0)
    assert judged(events, [*newer, arrival(1_700, 0, "c")]) == NextVideos(1, 0, 0)


def test_a_list_is_judged_by_the_first_new_video_alone() -> None:
    """The second video after a list is not the next one, and no second chance."""
    events = [watch(0, 1_000, "a"), watch(1, 2_000, "b"), watch(2, 2_100, "c")]
    assert judged(events, [arrival(1_500, 0, "c")]) == NextVideos(1, 0, 0)
    assert judged(events, [arrival(1_500, 0, "b")]) == NextVideos(1, 1, 0)


def test_only_watches_of_videos_new_to_the_user_count() -> None:
    """Watching again, liking, and what others watch are passed over; a video liked before is not new."""
    events = [
        watch(0, 1_000, "a"),
        like(1, 2_000, "b"),
        watch(2, 2_100, "a"),
        watch(3, 2_200, "b"),
        StoredEvent(0, 4, "u", 2_300, None, False, "p"),
        watch(5, 2_400, "c", user="other"),
        watch(6, 2_500, "d"),
    ]
    assert judged(events, [arrival(1_500, 0, "d")]) == NextVideos(1, 1, 0)


def test_history_counts_as_seen_and_is_not_judged() -> None:
    """Events before the live ones say what is new; a list made for them may be the live one of the first."""
    events = [watch(0, 0, "a"), watch(1, 0, "b"), watch(2, 5_000, "a"), watch(3, 6_000, "c")]
    lists = [arrival(-1, 0, "b"), arrival(1_000, 1, "c")]
    assert judged(events, lists, live_from=2) == NextVideos(1, 1, 0)


def test_popularity_leaves_out_what_was_seen_when_the_list_was_made() -> None:
    """Popularity fills its list with the most watched that are new to the user, with the same knowledge as the list."""
    events = [watch(0, 1_000, "p1"), watch(1, 1_400, "p2"), watch(2, 2_000, "p3")]
    assert judged(events, [arrival(1_500, 1, "x")]) == NextVideos(1, 0, 1), "p3 is the first one left"
    # the list was made before p2 was watched, so that popularity did not know of it either
    assert judged(events, [arrival(1_450, 0, "x")]) == NextVideos(1, 0, 0)
    assert judged(events, [arrival(1_450, 0, "x", "y")]) == NextVideos(1, 0, 1)


def test_users_and_partitions_are_kept_apart() -> None:
    """A list is judged by its own user's events, whatever offsets the others have."""
    events = [
        watch(0, 1_000, "a", user="u", partition=0),
        watch(0, 1_000, "a", user="w", partition=1),
        watch(1, 2_000, "b", user="u", partition=0),
        watch(1, 2_000, "c", user="w", partition=1),
    ]
    lists = [arrival(1_500, 0, "b", user="u"), arrival(1_500, 0, "b", user="w", partition=1)]
    assert judged(events, lists) == NextVideos(2, 1, 0)


def test_without_lists_there_is_nothing_to_judge() -> None:
    """No list, no moment."""
    assert judged([watch(0, 1_000, "a"), watch(1, 2_000, "b")], []) == NextVideos(0, 0, 0)
