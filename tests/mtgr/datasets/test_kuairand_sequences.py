"""KuaiRand's histories become events in an order that contradicts none of the three that they tell."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtgr.datasets import read_events, read_file
from mtgr.datasets.kuairand_sequences import LONG_SECONDS, UserHistory, steps
from mtgr.errors import InputError
from schemas.events import Like, Watch

END_MS = 1_650_815_523_456


def history(
    watch: list[int], long: list[int] | None = None, like: list[int] | None = None, user: int = 7
) -> dict[str, Any]:
    return {
        "user_id": user,
        "history_len": len(watch),
        "last_time_ms": END_MS,
        "watch": watch,
        "like": like or [],
        "long": long or [],
    }


def file(path: Path, *histories: dict[str, Any]) -> Path:
    path.write_bytes(gzip.compress(msgspec.json.Encoder().encode_lines(histories)))
    return path


def told(**lists: list[int]) -> list[tuple[int, bool, bool, bool]]:
    return [tuple(step) for step in steps(msgspec.convert(history(**lists), UserHistory))]


def test_a_history_becomes_watches_and_likes_that_end_at_its_last_time(tmp_path: Path) -> None:
    """Watches are a minute apart, a like follows its watch at once, and nothing is later than the history."""
    found = list(read_file(file(tmp_path / "log.jsonl.gz", history([1, 2, 3], long=[2], like=[2]))))
    assert [(type(event), event.video_id, END_MS - event.timestamp_ms) for event in found] == [
        (Watch, "1", 120_001),
        (Watch, "2", 60_001),
        (Like, "2", 60_000),
        (Watch, "3", 1),
    ]
    first, second = found[:2]
    assert isinstance(first, Watch)
    assert isinstance(second, Watch)
    assert (second.watch_seconds, second.watch_ratio) == (LONG_SECONDS, 1.0)
    assert first.watch_seconds < LONG_SECONDS
    assert first.watch_ratio < 0.5
    assert len({event.event_id for event in found}) == 4


def test_of_two_watches_only_the_last_that_fits_was_long() -> None:
    """A video watched twice and once for long: the order of long views says which, the later where both fit."""
    assert told(watch=[1, 1, 2], long=[1]) == [
        (1, True, False, False),
        (1, True, True, False),
        (2, True, False, False),
    ]
    assert [long for _, _, long, _ in told(watch=[1, 2, 1], long=[1, 2])] == [True, True, False]


def test_what_is_older_than_the_watches_comes_first() -> None:
    """Long views and likes from before the first watch keep their order; a like of none stands alone."""
    assert told(watch=[5, 6], long=[1, 2, 3, 6], like=[2, 9, 5]) == [
        (1, True, True, False),
        (2, True, True, True),
        (3, True, True, False),
        (9, False, False, True),
        (5, True, False, True),
        (6, True, True, False),
    ]


@given(
    watched=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=40),
    kept=st.integers(1, 20),
)
def test_no_list_of_a_history_is_contradicted(watched: list[tuple[int, bool, bool]], kept: int) -> None:
    """Whatever a user did, each list that is left of it is read back out of the events, in its order."""
    watch = [video for video, _, _ in watched][-kept:]
    long = [video for video, was_long, _ in watched if was_long][-kept:]
    like = [video for video, _, liked in watched if liked][-kept:]
    found = told(watch=watch, long=long, like=like)
    assert [video for video, _, _, liked in found if liked] == like
    assert [video for video, _, was_long, _ in found if was_long] == long
    assert [video for video, was_watched, _, _ in found if was_watched][-len(watch) :] == watch
    if len(watched) <= kept:
        assert Counter(video for video, *_ in found) == Counter(watch)


def test_histories_are_told_by_content_and_merge_with_other_logs(tmp_path: Path) -> None:
    """A file of histories beside a timed log is one log; several users come in one time order."""
    log = tmp_path / "later.jsonl"
    log.write_text(
        '{"type":"like","event_id":"e","user_id":"7","video_id":"9","timestamp_ms":1650815523457}\n'
    )
    histories = file(tmp_path / "histories", history([1, 2]), history([3, 4], user=8))
    found = list(read_events([log, histories]))
    assert [(event.user_id, event.video_id) for event in found] == [
        ("7", "1"),
        ("8", "3"),
        ("7", "2"),
        ("8", "4"),
        ("7", "9"),
    ]


def test_a_line_that_is_no_history_is_named(tmp_path: Path) -> None:
    """A history without its lists stops the reading, or is passed over."""
    broken = history([1])
    del broken["watch"]
    path = file(tmp_path / "log.jsonl.gz", history([1]), broken, history([2], user=8))
    with pytest.raises(InputError, match=r"line 2: Object missing required field `watch`"):
        read_file(path)
    wrong: list[InputError] = []
    assert len(list(read_file(path, on_invalid=wrong.append))) == 2
    assert len(wrong) == 1
