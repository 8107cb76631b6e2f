"""Whether a test asks for what a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from mtgr.evaluation.protocol import Case, LeaveOneOut, Protocol
from mtgr.learnt_part import LearntPart


def learnt_cases(learnt: LearntPart, protocol: Protocol, cases: Sequence[Case]) -> int:
    """How many test cases are not later than what was learnt, of the same log, so that they may be part of it.

    With leave-one-out there are none if the test holds out the same targets; else all up to the log's end may be.
    """
    if (
        learnt.split == "leave-one-out"
        and isinstance(protocol, LeaveOneOut)
        and (learnt.target, learnt.include_seen) == (protocol.target, not protocol.exclude_seen)
    ):
        return 0
    end = learnt.last_ms + 1 if learnt.cut_ms is None else learnt.cut_ms
    return sum(case.timestamp_ms < end for case in cases)
