"""Promises of stream.hot_keys: what is hot is found, in bounded memory, and is forgotten with its window."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from stream.hot_keys import HotKeys, Summary


@dataclass(frozen=True)
class Keyed:
    key: bytes | None


def of(*users: str) -> list[Keyed]:
    return [Keyed(user.encode()) for user in users]


@given(st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=30), max_size=30), st.integers(2, 6))
def test_counts_are_never_above_the_truth_and_below_it_by_no_more_than_is_said(
    batches: list[list[str]], capacity: int
) -> None:
    """However many keys there are, a summary keeps no more than its places, and is wrong by a known amount."""
    summary, truth = Summary(capacity), Counter[str]()
    for batch in batches:
        summary.add(Counter(batch))
        truth.update(batch)
        assert len(summary.counts) <= capacity
    assert summary.total == truth.total()
    for key, count in truth.items():
        assert count - summary.undercount <= summary.counts[key] <= count
    # each time room is made, half of the places or more lose the median
    assert summary.undercount * (capacity + 1) / 2 <= summary.total


def test_a_hot_user_among_a_million_is_found() -> None:
    """A user with one record in fifty stands out of a stream in which every other user comes once."""
    hot, chance = HotKeys(60.0, 500, random.Random(1)), random.Random(2)
    strangers = iter(range(10**9))
    for second in range(50):
        records = [
            Keyed(b"hot" if chance.random() < 0.02 else b"u%d" % next(strangers)) for _ in range(4_000)
        ]
        hot.note(second % 3, records, float(second))
    (first, second_one) = hot.users(2, 50.0)
    assert first.key == "hot"
    assert 0.01 < first.share < 0.03
    assert second_one.share < 0.005


def test_few_records_are_counted_one_by_one() -> None:
    """Where there is little to do, the counts are exact, and keys that are no text or none do no harm."""
    hot = HotKeys()
    hot.note(3, [*of("a", "b", "a"), Keyed(None), Keyed(b"\xff")], 0.0)
    hot.note(1, of("a"), 1.0)
    assert [(one.key, one.events) for one in hot.users(2, 1.0)] == [("a", 3), ("b", 1)]
    assert [(one.key, one.events, one.share) for one in hot.partitions(1.0)] == [
        ("3", 5, 5 / 6),
        ("1", 1, 1 / 6),
    ]


def test_what_was_hot_is_forgotten_with_its_window() -> None:
    """A window counts for as long again after its end, and no longer; silence empties it too."""
    hot = HotKeys(10.0)
    hot.note(0, of("a", "a"), 0.0)
    hot.note(0, of("b"), 10.0)
    assert [one.key for one in hot.users(5, 19.0)] == ["a", "b"]
    hot.note(0, of("c"), 20.0)
    assert [one.key for one in hot.users(5, 21.0)] == ["c", "b"]
    assert hot.users(5, 100.0) == hot.partitions(100.0) == []
