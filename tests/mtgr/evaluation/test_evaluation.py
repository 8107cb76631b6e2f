"""Promises of mtgr.evaluation.evaluation: all systems judged on the same users, slice by slice."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from events import watch

from mtgr.evaluation.evaluation import ALL, COLD_ITEMS, COLD_USERS, Evaluation, SystemResult
from mtgr.evaluation.metrics import NO_ITEM
from mtgr.evaluation.protocol import LeaveOneOut, Split
from mtgr.evaluation.rankings import Rankings
from mtgr.training.log import EventLog


@pytest.fixture
def split() -> Split:
    """Three users with targets that 3, 1 and no others know, and a fourth who did too little to be tested."""
    videos = {"ann": "abcx", "bob": "xyb", "eve": "xabyz", "tom": "xy"}
    return LeaveOneOut().split(
        EventLog.collect(
            watch(user, f"{user}{place}", video, timestamp_ms=place)
            for user, names in videos.items()
            for place, video in enumerate(names)
        )
    )


def _rankings(ranks: Sequence[float], lists: Sequence[Sequence[int]], *, complete: bool = True) -> Rankings:
    return Rankings(np.array(ranks, np.float64), np.array(lists, np.int64), None, complete)


LISTS = [[0, 1], [0, NO_ITEM], [2, 0]]


def test_slices_hold_the_users_they_name(split: Split) -> None:
    """Cold items are those that few users knew before the test; cold users have few events before it."""
    evaluation = Evaluation(split, ["x", "a", "b", "c", "y"], (1, 2), cold_items=2, cold_users=4)
    assert [(case.user_id, case.video_id) for case in split.test] == [
        ("ann", "x"),
        ("bob", "b"),
        ("eve", "z"),
    ]
    assert evaluation.table.target_popularity == [3, 2, 0]
    assert evaluation.table.history_events == [3, 2, 4]
    assert evaluation.missing_targets == 1
    found = evaluation.judge("ours", _rankings([1, 2, np.inf], LISTS))
    assert {name: one.users for name, one in found.slices.items()} == {ALL: 3, COLD_ITEMS: 1, COLD_USERS: 2}
    assert found.slices[ALL].metrics["HR@2"].value == pytest.approx(2 / 3)
    assert found.slices[ALL].metrics["MRR"].value == pytest.approx(0.5)
    assert found.slices[COLD_ITEMS].metrics["HR@2"].value == 0
    assert found.slices[COLD_USERS].metrics["HR@1"].value == 0.5
    assert found.ranks == [1, 2, None]


def test_an_empty_slice_has_no_figures(split: Split) -> None:
    """Where no user is cold, there is nothing to say of cold users."""
    evaluation = Evaluation(split, ["x", "a"], (1,), cold_items=0, cold_users=0)
    found = evaluation.judge("ours", _rankings([1, 2, np.inf], LISTS))
    assert found.slices[COLD_ITEMS].users == found.slices[COLD_USERS].users == 0
    assert found.slices[COLD_ITEMS].metrics == {}


def test_lists_are_described_beside_their_targets(split: Split) -> None:
    """Coverage at each k, and the popularity of what is listed beside that of what was then watched."""
    lists = (
        Evaluation(split, ["x", "a", "b", "c", "y"], (1, 2)).judge("ours", _rankings([1, 1, 1], LISTS)).lists
    )
    assert lists.coverage == {1: 2 / 5, 2: 3 / 5}
    # x is known to three of the four before the test, a to two and b to two
    assert lists.popularity == pytest.approx((3 * 3 + 2 + 2) / 5)
    assert lists.target_popularity == pytest.approx((3 + 2 + 0) / 3)


def test_the_difference_of_two_systems_is_paired(split: Split) -> None:
    """It is over the same users, for the metrics that both have, and it survives being written and read."""
    evaluation = Evaluation(split, ["x", "a", "b", "c", "y"], (1, 2))
    ours = evaluation.judge("ours", _rankings([1, 1, 2], LISTS))
    theirs = evaluation.judge("theirs", _rankings([2, 2, np.inf], LISTS, complete=False))
    found = evaluation.difference(ours, theirs)
    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {"HR@1": 2 / 3, "HR@2": 1 / 3, "NDCG@1": 2 / 3, "NDCG@2": (2 - 1 / np.log2(3)) / 3, "MRR@2": 0.5}
    )
    read = msgspec.json.decode(msgspec.json.encode(theirs), type=SystemResult)
    assert read == theirs
    assert evaluation.difference(ours, read) == found
