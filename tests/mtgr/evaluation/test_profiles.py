"""Promises of mtgr.evaluation.profiles: what was known of a user at a time, and nothing later."""

from __future__ import annotations

from events import watch

from mtgr.evaluation.profiles import ProfileTimeline
from schemas.events import Event, Profile


def _profile(time_ms: int, **attributes: str) -> Profile:
    return Profile(event_id=f"p{time_ms}", user_id="ann", timestamp_ms=time_ms, attributes=dict(attributes))


def test_a_profile_counts_from_its_time_on_and_replaces_the_one_before() -> None:
    """The newest that is not later counts as a whole, in whatever order they came."""
    timeline = ProfileTimeline()
    for profile in (_profile(20, city="Rome"), _profile(10, age="young"), _profile(20, city="Oslo")):
        timeline.add(profile)
    assert timeline.at("ann", 9) == timeline.at("bob", 99) == {}
    assert timeline.at("ann", 10) == timeline.at("ann", 19) == {"age": "young"}
    assert timeline.at("ann", 20) == timeline.at("ann", 99) == {"city": "Oslo"}
    assert len(timeline) == 1


def test_what_is_known_from_the_start_counts_until_a_profile_comes() -> None:
    """Attributes from a file have no time, and what the log tells later replaces them."""
    timeline = ProfileTimeline()
    timeline.add(_profile(5, age="old"))
    timeline.know("ann", {"age": "young"})
    timeline.know("bob", {"age": "young"})
    assert timeline.at("ann", 4) == timeline.at("bob", 99) == {"age": "young"}
    assert timeline.at("ann", 5) == {"age": "old"}


def test_profiles_are_taken_out_of_a_log() -> None:
    """What is left are the events of histories, in their order."""
    timeline = ProfileTimeline()
    events: list[Event] = [watch("ann", "1"), _profile(5, age="old"), watch("ann", "2")]
    assert [event.event_id for event in timeline.taken_from(events)] == ["1", "2"]
    assert timeline.at("ann", 5) == {"age": "old"}
