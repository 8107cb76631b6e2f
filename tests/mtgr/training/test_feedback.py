"""Promises of mtgr.training.feedback: what a user did with a video, found wherever it stands in a history."""

from __future__ import annotations

import numpy as np
from events import watch
from hypothesis import given
from hypothesis import strategies as st

from mtgr.history import History
from mtgr.training.feedback import FEEDBACK, feedback_weights, outcomes, strongest_feedback
from schemas.events import Event, Favorite, Like, Share

KINDS = ("skip", "watch", "long-view", "through", "like", "favorite", "share")


def _event(kind: str, video: str, place: int) -> Event:
    fields = {"event_id": f"{place}", "user_id": "u", "video_id": video, "timestamp_ms": place}
    for name, of_type in (("like", Like), ("favorite", Favorite), ("share", Share)):
        if kind == name:
            return of_type(**fields)  # type: ignore[arg-type]
    seconds, ratio = {
        "skip": (2.0, 0.1),
        "watch": (10.0, 0.1),
        "long-view": (30.0, 0.5),
        "through": (10.0, 1.0),
    }[kind]
    return watch("u", f"{place}", video, timestamp_ms=place, watch_seconds=seconds, watch_ratio=ratio)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from("abc")), max_size=20))
def test_feedback_and_outcomes_are_those_of_the_whole_history(log: list[tuple[str, str]]) -> None:
    """The strongest thing done with a video, before or after; watched through in this event; liked from here on."""
    history = History.from_events([_event(kind, video, place) for place, (kind, video) in enumerate(log)])
    items = np.array([ord(video) for _, video in log], np.int64)
    strongest = [FEEDBACK[code] for code in strongest_feedback(history, items)]
    found = outcomes(history, items, ["share", "watch_through", "like"])
    assert found.shape == (len(log), 3)
    for place, (kind, video) in enumerate(log):
        names = ["watch" if other == "through" else other for other, its in log if its == video]
        assert strongest[place] == max(names, key=FEEDBACK.index)
        later = [other for other, its in log[place:] if its == video]
        assert found[place].tolist() == ["share" in later, kind == "through", "like" in later]


def test_what_has_no_weight_weighs_one() -> None:
    """Weights are by name, in the order of strength."""
    assert feedback_weights({"skip": 0.25, "share": 3}).tolist() == [0.25, 1, 1, 1, 1, 3]
