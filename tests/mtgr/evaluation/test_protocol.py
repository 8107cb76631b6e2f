"""Promises of mtgr.evaluation.protocol: what is learnt from, what is predicted, and that neither knows the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from events import watch
from hypothesis import given
from hypothesis import strategies as st

from mtgr.errors import InputError
from mtgr.evaluation.protocol import Case, LeaveOneOut, Protocol, Split, TimeSplit, parse_moment
from mtgr.history import History
from mtgr.training.log import EventLog
from schemas.events import Event, Like

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def _watch(user: str, video: str, time_ms: int, **fields: Any) -> Event:
    return watch(user, f"{user}-{video}-{time_ms}", video, timestamp_ms=time_ms, **fields)


def _user(user: str, videos: str, begin_ms: int = 1, step_ms: int = 1, **fields: Any) -> list[Event]:
    """A user who watches videos named by letters, one after the other."""
    return [_watch(user, video, begin_ms + step_ms * place, **fields) for place, video in enumerate(videos)]


def _log(*users: Sequence[Event]) -> EventLog:
    return EventLog.collect(event for events in users for event in events)


def _told(cases: Sequence[Case]) -> dict[str, tuple[str, str]]:
    """User -> videos of the history, target."""
    return {case.user_id: ("".join(case.history.video_ids), case.video_id) for case in cases}


def _videos(histories: dict[str, History]) -> dict[str, str]:
    return {user: "".join(history.video_ids) for user, history in histories.items()}


def test_leave_one_out_tests_the_last_and_validates_by_the_one_before() -> None:
    """The test knows the validation target, the training part knows neither."""
    split = LeaveOneOut().split(_log(_user("ann", "abcd"), _user("bob", "bca")))
    assert _told(split.test) == {"ann": ("abc", "d"), "bob": ("bc", "a")}
    assert _told(split.validation) == {"ann": ("ab", "c"), "bob": ("b", "c")}
    assert _videos(split.training) == {"ann": "ab", "bob": "b"}
    assert _videos(split.known) == {"ann": "abc", "bob": "bc"}
    assert [(case.timestamp_ms, case.asked_ms) for case in split.test] == [(4, 4), (3, 3)]


def test_a_target_is_a_video_that_a_list_could_hold() -> None:
    """With seen videos left out of lists, one watched before is no target; without, it is."""
    log = _log(_user("ann", "abcbb"), _user("bob", "abcd"))
    assert _told(LeaveOneOut().split(log).test)["ann"] == ("ab", "c")
    assert _told(LeaveOneOut().split(log).validation)["ann"] == ("a", "b")
    assert _told(LeaveOneOut(exclude_seen=False).split(log).test)["ann"] == ("abcb", "b")


def test_who_did_too_little_is_learnt_from_alone() -> None:
    """A user without two targets after a first event is in the training part, whole, and in no other."""
    split = LeaveOneOut().split(_log(_user("ann", "abc"), _user("bob", "ab"), _user("eve", "aaa")))
    assert _videos(split.training) == {"ann": "a", "bob": "ab", "eve": "aaa"}
    assert list(_told(split.test)) == list(_told(split.validation)) == ["ann"]


def test_only_a_watch_is_a_target() -> None:
    """Likes are part of a history and never what is predicted."""
    events = _user("ann", "abc")
    events.append(Like(event_id="like", user_id="ann", video_id="z", timestamp_ms=9))
    split = LeaveOneOut().split(_log(events, _user("bob", "abc")))
    assert _told(split.test)["ann"] == ("ab", "c")


@pytest.mark.parametrize(
    ("watched", "length", "is_long"),
    [
        (18.0, 60.0, True),
        (17.9, 60.0, False),
        (9.0, 9.0, True),
        (8.9, 9.0, False),
        (18.0, None, True),
        (17.9, None, False),
        (0.0, 0.0, False),
    ],
)
def test_a_long_view_is_eighteen_seconds_or_the_whole_video(
    watched: float, length: float | None, is_long: bool
) -> None:
    """KuaiRand's rule; of a video of unknown length 18 seconds must be watched."""
    last = _watch("ann", "z", 9, watch_seconds=watched, video_seconds=length)
    long = {"watch_seconds": 20.0}
    split = LeaveOneOut(target="long-view").split(
        _log([*_user("ann", "abc", **long), last], _user("bob", "abc", **long))
    )
    assert _told(split.test)["ann"] == (("abc", "z") if is_long else ("ab", "c"))


def test_a_time_split_tests_the_first_new_video_after_the_cut() -> None:
    """Training ends before the cut; frozen histories too, else they go on to the target."""
    log = _log(
        _user("ann", "abcabde", step_ms=HOUR_MS),
        _user("bob", "ab", step_ms=HOUR_MS),
        _user("eve", "zab", DAY_MS),
    )
    cut = 1 + 3 * HOUR_MS
    frozen = TimeSplit(cut_ms=cut, validation_days=2 / 24)
    split = frozen.split(log)
    assert _videos(split.known) == {"ann": "abc", "bob": "ab"}
    assert _told(split.test) == {"ann": ("abc", "d")}, "bob did no more, and nothing is known of eve"
    assert _videos(split.training) == {"ann": "a", "bob": "a"}
    assert _told(split.validation) == {"ann": ("a", "b"), "bob": ("a", "b")}

    assert [(case.timestamp_ms, case.asked_ms) for case in split.test] == [(1 + 5 * HOUR_MS, cut)]

    live = msgspec.structs.replace(frozen, frozen=False).split(log)
    assert _told(live.test) == {"ann": ("abcab", "d"), "eve": ("z", "a")}
    assert _videos(live.known) == _videos(split.known)

    again = msgspec.structs.replace(frozen, exclude_seen=False).split(log)
    assert _told(again.test) == {"ann": ("abc", "a")}


def test_an_event_that_came_late_is_before_the_cut_all_the_same() -> None:
    """A time split goes by the events' own times, not by the order in which they came."""
    late = [_watch("ann", "a", 1), _watch("ann", "x", DAY_MS), _watch("ann", "b", 2)]
    split = TimeSplit(cut_ms=DAY_MS, validation_days=0.5).split(_log(late, _user("bob", "abc")), ("test",))
    assert _videos(split.known)["ann"] == "ab"
    assert _told(split.test)["ann"] == ("ab", "x")


@pytest.mark.parametrize(
    ("protocol", "users", "message"),
    [
        (LeaveOneOut(), [_user("ann", "abcd")], "the event log has 1 user, where at least 2 are wanted"),
        (LeaveOneOut(), [], "the event log has 0 users, where at least 2 are wanted"),
        (
            LeaveOneOut(),
            [_user("ann", "ab"), _user("bob", "ba")],
            "split leave-one-out: the validation part is empty: none of the 2 users has two new watched videos",
        ),
        (
            LeaveOneOut(target="long-view", exclude_seen=False),
            [_user("ann", "abcd"), _user("bob", "abcd")],
            "none of the 2 users has two long views after",
        ),
        (
            TimeSplit(cut_ms=5 * DAY_MS),
            [_user("ann", "ab"), _user("bob", "abc")],
            "cut: 1970-01-06T00:00:00+00:00 is not within the log, which goes from 1970-01-01T00:00:00+00:00 to 1970",
        ),
        (
            TimeSplit(cut_ms=1),
            [_user("ann", "ab"), _user("bob", "ab")],
            "cut: 1970-01-01T00:00:00+00:00 is not",
        ),
        (
            TimeSplit(cut_ms=10**18),
            [_user("ann", "ab"), _user("bob", "ab")],
            "cut: 1000000000000000000 ms is not",
        ),
        (
            TimeSplit(cut_ms=2),
            [_user("ann", "ab"), _user("bob", "ab")],
            "split time: the training part is empty: nothing happened before 1969-12-31T00:00:00+00:00",
        ),
        (
            TimeSplit(cut_ms=3 * DAY_MS),
            [_user("ann", "ab", step_ms=4 * DAY_MS), _user("bob", "ab")],
            "split time: the validation part is empty: none of the users known by then has one of the new watched "
            "videos between 1970-01-03T00:00:00+00:00 and 1970-01-04T00:00:00+00:00",
        ),
        (
            TimeSplit(cut_ms=2 * DAY_MS, validation_days=1.5),
            [_user("ann", "aba", step_ms=DAY_MS), _user("bob", "ab")],
            "split time: the test part is empty: none of the users known by then has one of the new watched videos "
            "after 1970-01-03T00:00:00+00:00",
        ),
    ],
)
def test_what_cannot_be_split_is_told(protocol: Protocol, users: list[list[Event]], message: str) -> None:
    """One line says what is empty or out of bounds, and why."""
    with pytest.raises(InputError) as caught:
        protocol.split(_log(*users))
    assert message in str(caught.value)


def test_only_the_parts_that_are_needed_must_hold_something() -> None:
    """Evaluation needs no validation part, and training no test part."""
    log = _log(_user("ann", "ab", step_ms=4 * DAY_MS), _user("bob", "ab"))
    split = TimeSplit(cut_ms=3 * DAY_MS).split(log, needs=("training", "test"))
    assert not split.validation
    assert list(_told(split.test)) == ["ann"]


def test_a_protocol_can_be_written_down() -> None:
    """What a split was made by is data that reads back."""
    for protocol in (LeaveOneOut(target="long-view"), TimeSplit(cut_ms=5, frozen=False)):
        assert msgspec.json.decode(msgspec.json.encode(protocol), type=Protocol) == protocol


def test_a_moment_is_utc_where_it_names_no_zone() -> None:
    """An ISO time with a zone, without one, and a date alone are read."""
    assert parse_moment("1970-01-02T08:00+08:00") == DAY_MS
    assert parse_moment("1970-01-02T00:00") == parse_moment("1970-01-02") == DAY_MS
    with pytest.raises(ValueError, match="yesterday"):
        parse_moment("yesterday")


_times = st.integers(0, 40)
_logs = st.lists(
    st.tuples(st.sampled_from("AB"), st.sampled_from("abcde"), _times, st.booleans()), min_size=2, max_size=40
)
_protocols: st.SearchStrategy[Protocol] = st.one_of(
    st.builds(LeaveOneOut, exclude_seen=st.booleans()),
    st.builds(
        TimeSplit,
        cut_ms=_times,
        exclude_seen=st.booleans(),
        frozen=st.booleans(),
        validation_days=st.integers(1, 20).map(lambda ms: ms / DAY_MS),
    ),
)


@given(log=_logs, protocol=_protocols)
def test_no_part_knows_what_it_is_asked(log: list[tuple[str, str, int, bool]], protocol: Protocol) -> None:
    """Whatever the log, targets come after their histories, are new where they must be, and are not learnt."""
    events = [
        Like(event_id=str(number), user_id=user, video_id=video, timestamp_ms=time)
        if liked
        else watch(user, str(number), video, timestamp_ms=time)
        for number, (user, video, time, liked) in enumerate(log)
    ]
    whole = EventLog.collect(events)
    try:
        split = protocol.split(whole, needs=())
    except InputError:
        return
    _check_parts(split, split.validation, split.training, whole, protocol)
    _check_parts(split, split.test, split.known, whole, protocol)


def _check_parts(
    split: Split, cases: list[Case], learnt: dict[str, History], whole: EventLog, protocol: Protocol
) -> None:
    digests = {user: history.records["event_digest"].tolist() for user, history in whole.histories.items()}
    assert len({case.user_id for case in cases}) == len(cases)
    for case in cases:
        in_log = digests[case.user_id]
        known = case.history.records["event_digest"].tolist()
        assert len(case.history) > 0
        assert known == [digest for digest in in_log if digest in known], "in the order they came"
        history = whole.histories[case.user_id]
        place = next(
            place
            for place in range(len(history))
            if history.video_ids[place] == case.video_id
            and history.records["timestamp_ms"][place] == case.timestamp_ms
            and history.records["event_type"][place] == 1
            and in_log[place] not in known
        )
        if protocol.exclude_seen:
            assert case.video_id not in case.history.video_ids
        if case.user_id in learnt:
            assert in_log[place] not in learnt[case.user_id].records["event_digest"].tolist()
        if isinstance(protocol, TimeSplit) and protocol.frozen:
            assert known == learnt[case.user_id].records["event_digest"].tolist()
