"""Promises of mtgr.behavior_sessions: a session is what happened in it, in whatever pieces and however often told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from behaviors import NOW_MS, behavior, behaviors, behaviors_of
from hypothesis import given
from hypothesis import strategies as st

from mtgr.attributes import unpack_attributes
from mtgr.behavior_sessions import BehaviorSessions
from mtgr.config import BLOCK_EVENTS, capacity
from mtgr.errors import InputError
from mtgr.history import History
from mtgr.requests import ListRequest

MAX_EVENTS = 32


def sessions(**changes: Any) -> BehaviorSessions:
    arguments: dict[str, Any] = {"max_sessions": 10, "clock": lambda: NOW_MS}
    return BehaviorSessions(MAX_EVENTS, **arguments | changes)


def whole(told: list[dict[str, Any]]) -> ListRequest:
    """What a generator is asked after all of it at once."""
    return sessions().request("u", "s", told, 5)


def times(request: ListRequest) -> list[int]:
    """Of the events, in milliseconds after NOW_MS."""
    history = History.from_bytes(request.records, request.videos)
    return [at - NOW_MS for at in history.records["timestamp_ms"].tolist()]


@given(st.lists(behaviors, max_size=120), st.lists(st.integers(0, 120)))
def test_a_session_told_in_pieces_is_the_session_told_at_once(
    told: list[dict[str, Any]], ends: list[int]
) -> None:
    """Wherever the calls cut it, also when it grows beyond what a sequence keeps."""
    store = sessions()
    begin = 0
    for end in sorted({min(end, len(told)) for end in ends} | {len(told)}):
        request = store.request("u", "s", told[begin:end], 5)
        begin = end
    assert request == whole(told)


@given(st.lists(behaviors, max_size=60), st.lists(st.integers(0, 60), min_size=1))
def test_telling_all_each_time_is_telling_what_is_new(told: list[dict[str, Any]], ends: list[int]) -> None:
    """What was told before changes nothing, whether it is still in the sequence or was cut since."""
    store = sessions()
    for end in [*sorted(ends), len(told)]:
        request = store.request("u", "s", told[:end], 5)
    assert request == whole(told)


def test_a_session_is_cut_in_whole_blocks() -> None:
    """It grows to the model's capacity, then falls back to max_events: the newest ones stay."""
    told = [behavior(f"v{number}") for number in range(10 * MAX_EVENTS)]
    store = sessions()
    lengths = []
    for number, one in enumerate(told):
        request = store.request("u", "s", [one], 5)
        history = History.from_bytes(request.records, request.videos)
        lengths.append(len(history))
        assert history.video_ids[-1] == f"v{number}"
        assert (number + 1 - len(history)) % BLOCK_EVENTS == 0
    assert max(lengths) == capacity(MAX_EVENTS)
    assert min(lengths[MAX_EVENTS:]) > MAX_EVENTS


def test_a_behaviour_without_a_time_follows_the_one_before_it() -> None:
    """After as long as it was watched, a flag at the end of its watch, and the first one by the clock."""
    told = [
        behavior(watch_duration=10),
        behavior(watch_duration=20.5, is_liked=True),
        behavior(timestamp_ms=NOW_MS + 100_000),
        behavior("v2", watch_duration=1.5),
        behavior(watch_duration=3, timestamp_ms=NOW_MS - 7),
        behavior("v3", watch_duration=2, is_shared=True),
    ]
    assert times(whole(told)) == [0, 20_500, 20_500, 100_000, 101_500, -7, 1_993, 1_993]


def test_a_request_has_the_events_as_the_daemon_has_them() -> None:
    """Packed alike, so that the same generators serve both."""
    request = whole([behavior("ü", is_shared=True), behavior("v2", watch_percentage=0)])
    history = History.from_bytes(request.records, request.videos)
    assert history.video_ids == ["ü", "ü", "v2"]
    assert history.records["event_type"].tolist() == [1, 4, 1]
    assert np.allclose(history.records["video_seconds"], [25 / 0.83, 0, 0])
    assert (request.count, request.strategy, request.profile) == (5, "topk", b"")


def test_sessions_have_nothing_to_do_with_each_other() -> None:
    """Neither those of one user nor those of one name; an engine that keeps a history a user can tell them apart."""
    store = sessions()
    names = [("u", "s"), ("u", "t"), ("v", "s"), ("us", ""), ("u:", "s")]
    asked = [
        store.request(user, session or "s", behaviors_of(number, 5), 5)
        for number, (user, session) in enumerate(names)
    ]
    assert len({request.user_id for request in asked}) == len(names)
    for number, (user, session) in enumerate(names):
        assert store.request(user, session or "s", [], 5) == asked[number]


def test_the_session_used_longest_ago_is_forgotten() -> None:
    """When there are more than may be, and any one where that is asked for."""
    store = sessions(max_sessions=2)
    for session in ("a", "b", "a", "c"):
        store.request("u", session, [behavior()], 5)
    assert len(store) == 2
    assert not store.forget("u", "b")
    assert store.forget("u", "a")
    assert not store.forget("u", "a")
    assert store.request("u", "a", [], 5).records == b""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"user_id": ""}, "user_id = '': expected a string of 1 to 128 characters"),
        ({"user_id": 7}, "user_id = 7: expected a string"),
        ({"session_id": None}, "session_id = None: expected a string"),
        ({"session_id": "\udfff"}, "session_id = '\\udfff': expected a string"),
        ({"num_recommendations": 0}, "num_recommendations = 0: expected an integer, at least 1"),
        ({"num_recommendations": 2.5}, "num_recommendations = 2.5: expected an integer"),
        ({"num_recommendations": True}, "num_recommendations = True: expected an integer"),
        (
            {"behaviors": [behavior(), behavior(watch_duration=-1)]},
            "behaviors[1].watch_duration = -1: expected",
        ),
    ],
)
def test_a_wrong_argument_is_told_and_nothing_is_remembered(wrong: dict[str, Any], message: str) -> None:
    """The error names the argument, its value and what would be right."""
    store = sessions()
    right: dict[str, Any] = {
        "user_id": "u",
        "session_id": "s",
        "behaviors": [behavior()],
        "num_recommendations": 5,
    }
    with pytest.raises(InputError) as raised:
        store.request(**right | wrong)
    assert str(raised.value).startswith(message)
    assert len(store) == 0


def test_a_wrong_bound_is_told() -> None:
    """As every argument is."""
    with pytest.raises(InputError, match=r"^max_sessions = 0: expected an integer, at least 1$"):
        sessions(max_sessions=0)


def test_a_profile_is_kept_until_another_is_given() -> None:
    """By its own session alone, and nothing of it is kept where anything else is wrong."""
    store = sessions()
    first = store.request("u", "s", [behavior()], 5, profile={"country": "jp"}, strategy="slate")
    assert (unpack_attributes(first.profile), first.strategy) == ({"country": "jp"}, "slate")
    assert store.request("u", "other", [behavior()], 5).profile == b""
    with pytest.raises(InputError, match="watch_duration"):
        store.request("u", "s", [behavior(watch_duration=-1)], 5, profile={"country": "fr"})
    again = store.request("u", "s", [], 5)
    assert (unpack_attributes(again.profile), again.strategy) == ({"country": "jp"}, "topk")
    assert store.request("u", "s", [], 5, profile={}).profile == b""


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"profile": 3}, r"^profile = 3: expected a mapping"),
        ({"profile": {"a": None}}, r"^profile = \{'a': None\}: expected an object"),
        ({"strategy": "best"}, r"^strategy = 'best': expected"),
    ],
)
def test_wrong_wishes_are_named(named: dict[str, Any], said: str) -> None:
    """Before anything is appended."""
    store = sessions()
    with pytest.raises(InputError, match=said):
        store.request("u", "s", [behavior()], 5, **named)
    assert not len(store)
