"""Promises of mtgr.behaviors: a behaviour stands for events that the wire takes, and what is none is told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from behaviors import NOW_MS, behavior, behaviors
from hypothesis import given

from mtgr.behaviors import MAX_BEHAVIORS, Behavior, event_id_of, event_of, kinds_of, parse_behaviors
from mtgr.errors import InputError
from schemas.codecs import decode_event, encode_event
from schemas.events import Favorite, Interaction, Like, Share, Watch


def events_of(fields: dict[str, Any], session_id: str = "s") -> list[Interaction]:
    (parsed,) = parse_behaviors([fields])
    return [
        event_of(kind, event_id_of(kind, session_id, parsed), "u", session_id, parsed, NOW_MS)
        for kind in kinds_of(parsed)
    ]


def test_a_behaviour_is_a_watch_and_an_event_for_each_flag() -> None:
    """In this order, all of one video, user, session and time; the length of the video follows from the watch."""
    watch, *others = events_of(behavior(is_liked=True, is_favorited=True, is_shared=True))
    assert isinstance(watch, Watch)
    assert (watch.watch_seconds, watch.watch_ratio) == (25.0, 0.83)
    assert watch.video_seconds == pytest.approx(25 / 0.83)
    assert [type(event) for event in others] == [Like, Favorite, Share]
    for event in (watch, *others):
        assert (event.user_id, event.session_id, event.video_id) == ("u", "s", "v1")
        assert event.timestamp_ms == NOW_MS
    assert len({event.event_id for event in (watch, *others)}) == 4
    assert [type(event) for event in events_of(behavior(is_liked=False, is_shared=True))] == [Watch, Share]


@pytest.mark.parametrize(("seconds", "share"), [(25.0, 0.0), (0.0, 0.5), (600_000.0, 0.01)])
def test_a_length_that_no_video_has_is_unknown(seconds: float, share: float) -> None:
    """As of a video of which nothing was watched."""
    (watch,) = events_of(behavior(watch_duration=seconds, watch_percentage=share))
    assert isinstance(watch, Watch)
    assert watch.video_seconds is None


@given(behaviors)
def test_its_events_are_events_of_the_wire(fields: dict[str, Any]) -> None:
    """Whatever a behaviour may be, each of its events can be sent to the daemon as it is."""
    for event in events_of(fields):
        assert decode_event(encode_event(event)) == event


def test_the_same_behaviour_is_the_same_events() -> None:
    """However its numbers are written; in another session, or with another watch, it is another."""
    (event,) = events_of(behavior(watch_duration=25.0))
    for same in (
        behavior(watch_duration=25),
        behavior(watch_duration=np.float32(25), is_liked=np.bool_(False)),
    ):
        assert events_of(same) == [event]
    for other in (behavior(watch_duration=26), behavior(watch_percentage=0.8), behavior(timestamp_ms=NOW_MS)):
        assert events_of(other)[0].event_id != event.event_id
    assert events_of(behavior(), "another")[0].event_id != event.event_id


def test_a_flag_set_later_adds_its_event_alone() -> None:
    """The watch that is reported again is the one reported before; a video is liked once in a session."""
    before, after = events_of(behavior()), events_of(behavior(is_liked=True))
    assert after[0] == before[0]
    again = events_of(behavior(watch_duration=3.0, is_liked=True))
    assert again[0].event_id != after[0].event_id
    assert again[1].event_id == after[1].event_id


def test_a_behaviour_may_be_an_object() -> None:
    """And is checked as a mapping is, since its constructor checks nothing."""
    one = Behavior(video_id="v1", watch_duration=25.0, watch_percentage=0.83)
    assert parse_behaviors([one, behavior()]) == [one, one]
    with pytest.raises(InputError, match=r"^behaviors\[0\]\.watch_duration = -1:"):
        parse_behaviors([Behavior(video_id="v1", watch_duration=-1, watch_percentage=0.83)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"watch_percentage": 83},
            ".watch_percentage = 83: expected a number, at least 0 and at most 10 (a share of",
        ),
        ({"watch_percentage": None}, ".watch_percentage = None: expected a number"),
        (
            {"watch_duration": -1},
            ".watch_duration = -1: expected a number, at least 0 and at most 604800 (seconds",
        ),
        ({"watch_duration": math.nan}, ".watch_duration = nan: expected a number"),
        ({"watch_duration": math.inf}, ".watch_duration = inf: expected a number"),
        ({"watch_duration": "25"}, ".watch_duration = '25': expected a number"),
        ({"watch_duration": True}, ".watch_duration = True: expected a number"),
        ({"video_id": 7}, ".video_id = 7: expected a string of 1 to 128 characters"),
        ({"video_id": ""}, ".video_id = '': expected a string"),
        ({"video_id": "\ud800"}, ".video_id = '\\ud800': expected a string"),
        ({"is_liked": 1}, ".is_liked = 1: expected"),
        ({"timestamp_ms": 1.5}, ".timestamp_ms = 1.5: expected an integer"),
        ({"timestamp": NOW_MS}, ": unknown field 'timestamp'; did you mean timestamp_ms?"),
        ({3: 4}, ": unknown field 3; known are video_id, "),
    ],
)
def test_what_is_no_behaviour_is_told(change: dict[Any, Any], message: str) -> None:
    """The error names the place in the call, the field, its value and what would be right."""
    with pytest.raises(InputError) as raised:
        parse_behaviors([behavior(), behavior() | change])
    assert str(raised.value).startswith(f"behaviors[1]{message}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "behaviors = None: expected a list of behaviours"),
        (behavior(), "behaviors = {'video_id': 'v1', "),
        ("v1", "behaviors = 'v1': expected a list of behaviours"),
        (["v1"], "behaviors[0] = 'v1': expected a mapping of video_id, watch_duration, watch_percentage"),
        (
            [{"video_id": "v1", "watch_percentage": 1}],
            "behaviors[0].watch_duration is missing: expected a number",
        ),
        ((behavior() for _ in range(MAX_BEHAVIORS + 1)), "behaviors: more than 10,000"),
    ],
)
def test_what_is_no_list_of_behaviours_is_told(wrong: Any, message: str) -> None:
    """As when one behaviour is handed in without a list around it."""
    with pytest.raises(InputError) as raised:
        parse_behaviors(wrong)
    assert str(raised.value).startswith(message)
