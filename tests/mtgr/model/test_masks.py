"""Promises of mtgr.model.masks: the tensors are the three rules, whatever a sequence is made of."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtgr.model.jagged import Layout
from mtgr.model.masks import Roles, causal_mask, history_roles, mixed_mask

tokens = st.lists(
    st.tuples(st.sampled_from(["static", "event", "candidate"]), st.integers(0, 6)), min_size=1, max_size=9
)


def _rules(row: int, column: int, kinds: list[str], order: list[int], both_ways: bool) -> bool:
    """The three rules in words, for one pair of tokens."""
    if row == column:
        return True
    if kinds[column] == "candidate":
        return False
    if kinds[row] == "static":
        if kinds[column] != "static":
            return False
        return both_ways or order[column] <= order[row]
    if kinds[column] == "static":
        return True
    if kinds[row] == "event":
        return order[column] <= order[row]
    return order[column] < order[row]


@given(tokens, st.booleans())
def test_the_mask_is_its_rules(made: list[tuple[str, int]], both_ways: bool) -> None:
    """Brute force over every pair of tokens gives the same mask, for kinds and places in any order."""
    kinds, order = [kind for kind, _ in made], [place for _, place in made]
    roles = Roles(
        torch.tensor([kind == "static" for kind in kinds]),
        torch.tensor([kind == "candidate" for kind in kinds]),
        torch.tensor(order),
    )
    expected = [
        [_rules(row, column, kinds, order, both_ways) for column in range(len(made))]
        for row in range(len(made))
    ]
    assert mixed_mask(roles, both_ways=both_ways).tolist() == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_a_history_without_static_events_is_seen_causally(lengths: list[int]) -> None:
    """With the profile as the only static token the mixed mask is the causal one, which the cache relies on."""
    roles = history_roles(Layout.of(np.array(lengths)), None)
    begin = 0
    for length in lengths:
        own = roles.at(torch.arange(begin, begin + length))
        assert torch.equal(mixed_mask(own, both_ways=True), causal_mask(length))
        begin += length


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 10))
def test_the_newest_events_of_a_history_are_recent(lengths: list[int], recent: int) -> None:
    """All but the newest events are static, and so is the profile always."""
    static = history_roles(Layout.of(np.array(lengths)), recent).static.tolist()
    expected = [place == 0 or place < length - recent for length in lengths for place in range(length)]
    assert static == expected
