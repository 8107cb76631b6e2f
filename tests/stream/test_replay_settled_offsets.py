"""What is settled out of order is remembered beside a committed offset."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.tools.settled_offsets import MAX_METADATA_CHARACTERS, SettledOffsets

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=30)


def settle(begin: int, parts: list[tuple[int, int]]) -> tuple[SettledOffsets, set[int]]:
    settled, model = SettledOffsets(begin), set(range(begin))
    for start, length in parts:
        settled.add(start, start + length)
        model.update(range(start, start + length))
    return settled, model


@given(begin=st.integers(0, 20), parts=ranges)
def test_it_holds_exactly_what_was_added(begin: int, parts: list[tuple[int, int]]) -> None:
    """Ranges in any order, touching or overlapping, are the set of their offsets; the offset to commit is the
    first that is not settled.
    """
    settled, model = settle(begin, parts)
    assert [offset for offset in range(100) if offset in settled] == sorted(model)
    assert settled.next_offset == next(offset for offset in range(200) if offset not in model)


@given(begin=st.integers(0, 20), parts=ranges)
def test_it_reads_back_what_it_wrote(begin: int, parts: list[tuple[int, int]]) -> None:
    """A commit's offset and metadata are the whole of it."""
    settled, model = settle(begin, parts)
    read = SettledOffsets.from_commit(settled.next_offset, settled.to_metadata())
    assert [offset for offset in range(100) if offset in read] == sorted(model)
    assert read.to_metadata() == settled.to_metadata()


def test_more_ranges_than_fit_leave_out_the_highest() -> None:
    """The metadata never grows beyond what Kafka takes, and never says more than the truth."""
    settled = SettledOffsets()
    for start in range(1, 20_000, 2):
        settled.add(start, start + 1)
    metadata = settled.to_metadata()
    assert len(metadata) <= MAX_METADATA_CHARACTERS
    read = SettledOffsets.from_commit(0, metadata)
    known = [offset for offset in range(20_000) if offset in read]
    assert len(known) > 900
    assert known == list(range(1, 2 * len(known), 2))


@pytest.mark.parametrize(
    "metadata", ["", "of another tool", "settled:", "settled:3", "settled:x+1", "settled:1+-2"]
)
def test_metadata_of_another_kind_says_nothing(metadata: str) -> None:
    """Whoever else committed for the group, the offset still counts."""
    read = SettledOffsets.from_commit(7, metadata)
    assert 6 in read
    assert not any(offset in read for offset in range(7, 50))


def test_a_group_without_a_commit_has_settled_nothing() -> None:
    """Kafka's -1 is no offset."""
    assert 0 not in SettledOffsets.from_commit(-1, "")
