"""Promises of mtgr.evaluation.impressions: what users were shown after a cut, judged head by head."""

from __future__ import annotations

import numpy as np
import pytest
from events import watch

from mtgr.evaluation.impressions import HeadResult, Impressions, impressions_after, judge_heads
from mtgr.evaluation.protocol import TimeSplit
from mtgr.history import History
from mtgr.training.log import EventLog
from schemas.events import Event, Like, Share

HEADS = ("watch_through", "like", "share")


def _log() -> EventLog:
    events: list[Event] = [
        watch("ann", "1", "a", timestamp_ms=1),
        Like(event_id="2", user_id="ann", video_id="b", timestamp_ms=2),
        watch("ann", "3", "b", timestamp_ms=10, watch_ratio=1.0),
        watch("ann", "4", "c", timestamp_ms=11, watch_ratio=0.2),
        Like(event_id="5", user_id="ann", video_id="c", timestamp_ms=12),
        Share(event_id="6", user_id="ann", video_id="b", timestamp_ms=13),
        watch("ann", "7", "c", timestamp_ms=14, watch_ratio=2.0),
        watch("bob", "8", "a", timestamp_ms=3),
        watch("eve", "9", "a", timestamp_ms=12),
    ]
    return EventLog.collect(events)


def test_impressions_are_the_watches_after_the_cut() -> None:
    """Outcomes before the cut do not count, and who is new or gone is not judged."""
    log = _log()
    known = TimeSplit(cut_ms=10).split(log, needs=()).known
    (found,) = impressions_after(log, known, 10, HEADS)
    assert (found.user_id, found.history.video_ids, found.asked_ms) == ("ann", ["a", "b"], 10)
    assert found.video_ids == ["b", "c", "c"]
    assert found.labels.tolist() == [[True, False, True], [False, True, False], [True, False, False]]


def _shown(user: str, *labels: bool) -> Impressions:
    return Impressions(
        user, History.from_events([]), 0, ["v"] * len(labels), np.array([[label, False] for label in labels])
    )


def test_heads_are_judged_by_the_order_within_each_user() -> None:
    """Users weigh by their impressions, and a head that nobody can judge has no figure."""
    shown = [_shown("a", True, False, False), _shown("b", False, True), _shown("c", True, True)]
    scores = [np.array([[score, 0.0] for score in scores]) for scores in ([2, 1, 3], [1, 2], [0, 0])]
    found = judge_heads(shown, scores, ("like", "share"))
    assert list(found) == ["like", "share"]
    assert found["share"] == HeadResult(gauc=None, users=0, impressions=0, positives=0.0)
    assert found["like"].gauc is not None
    assert found["like"].gauc.value == pytest.approx((0.5 * 3 + 1.0 * 2) / 5)
    assert found["like"].gauc.low <= found["like"].gauc.value <= found["like"].gauc.high
    assert (found["like"].users, found["like"].impressions) == (2, 5)
    assert found["like"].positives == pytest.approx(2 / 5)
    assert judge_heads([], [], HEADS) == dict.fromkeys(HEADS, found["share"])
