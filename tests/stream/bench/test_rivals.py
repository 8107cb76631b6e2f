"""The job that other stream processors are given, and how what they keep is judged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codecs import encode_event
from stream.bench.event_topic import EventTopic
from stream.bench.load import watches
from stream.bench.rivals import comparison
from stream.bench.rivals.comparison import Run, is_fold
from stream.bench.rivals.histories import (
    MAX_EVENTS,
    append_packed,
    append_plain,
    decode,
    narrowed,
    rows_of_packed,
    rows_of_plain,
)
from stream.bench.rivals.systems import RIVALS
from stream.tools.partitioning import partition_of

_EVENTS = list(watches(3 * MAX_EVENTS, 1, 1_000))


@given(st.lists(st.integers(0, len(_EVENTS) - 1), max_size=2 * MAX_EVENTS))
def test_both_ways_keep_the_same_rows(numbers: list[int]) -> None:
    """Kept plainly or packed, a history is the last events without those that were in it when they came."""
    plain: list[list[object]] = []
    packed: bytes | None = None
    expected: list[object] = []
    for number in numbers:
        event = _EVENTS[number]
        fields = {name: getattr(event, name) for name in event.__struct_fields__}
        appended = append_plain(plain, fields)
        changed = append_packed(packed, decode(encode_event(event)))
        assert appended == (changed is not None) == (narrowed(event) not in expected)
        packed = changed or packed
        if appended:
            expected = [*expected, narrowed(event)][-MAX_EVENTS:]
    assert rows_of_plain(plain) == expected
    assert (rows_of_packed(packed) if packed else []) == expected


def test_a_history_is_the_fold_of_what_is_committed_or_of_more() -> None:
    """A history that lacks a committed event, holds one twice or in another order is found out."""
    events = [narrowed(event) for event in _EVENTS]
    assert is_fold(events[:5], events, 5)
    assert is_fold(events[:5], events, 3)
    assert is_fold(events[200 - MAX_EVENTS : 200], events, 200)
    assert not is_fold(events[:4], events, 5)
    assert not is_fold([*events[:4], events[3]], events, 4)
    assert not is_fold([events[1], events[0]], events, 0)
    assert not is_fold(events[:200], events, 200)


def test_offsets_of_a_topic_count_its_partitions_apart() -> None:
    """An event's offset is the number of events before it in its user's partition."""
    topic = EventTopic("t", partitions=3, events=500, users=20)
    histories = topic.histories(sample=20)
    by_partition: dict[int, list[int]] = {}
    for user_id, events in histories.items():
        offsets = [offset for offset, _ in events]
        assert offsets == sorted(offsets)
        by_partition.setdefault(partition_of(user_id.encode(), 3), []).extend(offsets)
    assert all(sorted(offsets) == list(range(len(offsets))) for offsets in by_partition.values())
    assert sum(map(len, by_partition.values())) == 500


@pytest.mark.parametrize(("ours", "said"), [(401.0, "as was the aim"), (399.0, "where 4 times was the aim")])
def test_the_verdict_is_against_the_best_of_the_others(ours: float, said: str) -> None:
    """Four times the best median, by clock and by processor, is the aim; whoever is slower does not help."""
    runs = [
        Run("mtgr-stream", "at least once", "100 ms", ours, ours, 1, 0.0),
        Run("best", "at least once", "1 s", 90.0, 90.0, 1, 0.0),
        Run("best", "at least once", "1 s", 100.0, 100.0, 1, 0.0),
        Run("best", "at least once", "1 s", 500.0, 500.0, 1, 0.0),
        Run("slow", "at least once", "1 s", 2.0, 2.0, 1, 0.0),
    ]
    assert said in comparison.verdict(runs)
    assert "(best, at least once, 1 s)" in comparison.verdict(runs)
    assert [row[0] for row in comparison.rows(runs)] == ["mtgr-stream", "best", "slow"]


def test_every_rival_is_pinned() -> None:
    """What is compared with has a version, and its list of requirements names nothing without one."""
    for rival in RIVALS:
        assert rival.version
