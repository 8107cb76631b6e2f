"""Promises of mtgr.evaluation.learnt: a test on what was learnt is noticed, and one that is fair is not."""

from __future__ import annotations

from typing import Any

import pytest

from mtgr.evaluation.learnt import learnt_cases
from mtgr.evaluation.protocol import Case, LeaveOneOut, Protocol, TimeSplit
from mtgr.history import History
from mtgr.learnt_part import LearntPart

CASES = [Case(f"u{time}", History.from_events([]), "v", time, time) for time in (5, 10, 15)]


def _learnt(**changes: Any) -> LearntPart:
    facts = {"split": "none", "target": "watch", "include_seen": False, "part": "training", "last_ms": 10}
    return LearntPart(**facts | changes)


@pytest.mark.parametrize(
    ("learnt", "protocol", "expected"),
    [
        (_learnt(), LeaveOneOut(), 2),
        (_learnt(last_ms=4), LeaveOneOut(), 0),
        (_learnt(split="leave-one-out", last_ms=20), LeaveOneOut(), 0),
        (_learnt(split="leave-one-out", last_ms=20), LeaveOneOut(target="long-view"), 3),
        (_learnt(split="leave-one-out", last_ms=20), LeaveOneOut(exclude_seen=False), 3),
        (_learnt(split="leave-one-out"), TimeSplit(cut_ms=5), 2),
        (_learnt(split="time", cut_ms=5, last_ms=20), TimeSplit(cut_ms=5), 0),
        (_learnt(split="time", cut_ms=10, last_ms=20), TimeSplit(cut_ms=5, target="long-view"), 1),
        (_learnt(split="time", cut_ms=10, last_ms=20), LeaveOneOut(), 1),
    ],
)
def test_targets_up_to_the_end_of_what_was_learnt_are_counted(
    learnt: LearntPart, protocol: Protocol, expected: int
) -> None:
    """By time, unless both leave the same targets out."""
    assert learnt_cases(learnt, protocol, CASES) == expected
