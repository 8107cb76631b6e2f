"""What the demo's summary says of events and lists."""

from __future__ import annotations

import pytest

from schemas.lists import ModelVersion, RecommendationList, RecommendedVideo, TriggerEvent
from stream.demo.ledger import Arrival, StoredEvent, outcome


def _event(
    user: str,
    offset: int,
    sent_ms: int,
    *,
    partition: int = 0,
    video_id: str | None = "v",
    event_id: str = "",
) -> StoredEvent:
    return StoredEvent(
        partition, offset, user, sent_ms, video_id, video_id is not None, event_id or f"{partition}-{offset}"
    )


def _list(
    user: str, offset: int, *, partition: int = 0, length: int = 10, cached: int = 0
) -> RecommendationList:
    return RecommendationList(
        list_id=f"{user}-{offset}",
        user_id=user,
        session_id=None,
        items=(RecommendedVideo("v1", -1.0, 1),),
        model=ModelVersion("tiny", "0"),
        strategy="topk",
        generated_at_ms=0,
        trigger=TriggerEvent("events", partition, offset, f"e{offset}", 0),
        sequence_length=length,
        cached_tokens=cached,
        latency_ms=1.0,
    )


def test_wait_is_counted_from_the_first_event_without_a_list() -> None:
    """Of two live events served by one list, the earlier one waited, and it counts."""
    events = [_event("u", 0, 1_000), _event("u", 1, 1_200), _event("u", 2, 1_500)]
    found = outcome(events, [Arrival(_list("u", 0), 1_050.0), Arrival(_list("u", 2), 1_900.0)], {0: 0})
    assert found is not None
    assert found.lists == 2
    assert found.median_ms == pytest.approx((50 + 700) / 2)


def test_history_is_not_waited_for() -> None:
    """Lists for the history do not count, and history that a live list also serves is no part of its wait."""
    events = [_event("u", 0, 0), _event("u", 1, 0), _event("u", 2, 60_000)]
    served = [Arrival(_list("u", 0), 30_000.0), Arrival(_list("u", 2), 60_080.0)]
    found = outcome(events, served, {0: 2})
    assert found is not None
    assert (found.lists, found.median_ms) == (1, 80.0)


def test_a_profile_waits_for_no_list() -> None:
    """The wait of a list begins with the first event that asks for one, not with what was told of the user."""
    events = [_event("u", 0, 1_000, video_id=None), _event("u", 1, 2_000)]
    found = outcome(events, [Arrival(_list("u", 1), 2_030.0)], {0: 0})
    assert found is not None
    assert found.median_ms == 30.0


def test_an_event_that_comes_twice_waits_for_no_list() -> None:
    """No list is due after a duplicate, so that the time to the next one is not its wait."""
    events = [_event("u", 0, 0, event_id="e"), _event("u", 1, 10, event_id="e"), _event("u", 2, 60_000)]
    found = outcome(events, [Arrival(_list("u", 0), 100), Arrival(_list("u", 2), 60_100)], {0: 0})
    assert found is not None
    assert found.p99_ms == 100


def test_a_list_that_comes_twice_counts_once() -> None:
    """Delivery is at least once: what covers nothing new is a repetition."""
    events = [_event("u", 0, 0)]
    found = outcome(events, [Arrival(_list("u", 0), 10.0), Arrival(_list("u", 0), 5_000.0)], {0: 0})
    assert found is not None
    assert (found.lists, found.p99_ms) == (1, 10.0)


def test_cached_share_is_of_all_events_of_the_lists() -> None:
    """Long sequences weigh more than short ones, and the token of the profile is no event."""
    events = [_event("a", 0, 0), _event("b", 0, 0, partition=1)]
    lists = [_list("a", 0, length=90, cached=91), _list("b", 0, partition=1, length=10)]
    found = outcome(events, [Arrival(each, 1.0) for each in lists], {0: 0, 1: 0})
    assert found is not None
    assert found.cached_share == pytest.approx(0.9)
    assert found.users == 2


def test_no_list_for_live_events_is_no_outcome() -> None:
    """Without a list there is nothing to take a median of."""
    assert outcome([_event("u", 0, 0)], [], {0: 0}) is None
