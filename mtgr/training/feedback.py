"""What a user did with a video: how much it counts as a target, and what the ranking heads are to say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from mtgr.evaluation.targets import is_target
from mtgr.history import FAVORITE, LIKE, SHARE, WATCH, History

Feedback = Literal["skip", "watch", "long-view", "like", "favorite", "share"]
"""Weakest first. skip: left within 3 seconds and before its half; long-view: as in `mtgr.evaluation.targets`."""

FEEDBACK: Final[tuple[Feedback, ...]] = get_args(Feedback)
NO_CONDITION: Final = 0
SKIP_SECONDS: Final = 3.0
SKIP_RATIO: Final = 0.5
WATCHED_THROUGH: Final = 0.99
"""Watch ratio from which a video counts as watched to its end: players report the last frame late or not at all."""

_CODES: Final[dict[Feedback, int]] = {name: code for code, name in enumerate(FEEDBACK)}
_OF_TYPE: Final[dict[int, Feedback]] = {LIKE: "like", FAVORITE: "favorite", SHARE: "share"}


def strongest_feedback(history: History, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """For each event, the strongest thing that the history holds about its video: (n,) places in `FEEDBACK`.

    items: (n,), a number for each event's video.
    """
    records = history.records
    codes = np.full(len(items), _CODES["watch"], np.int8)
    skipped = (records["watch_seconds"] < SKIP_SECONDS) & (records["watch_ratio"] < SKIP_RATIO)
    codes[skipped] = _CODES["skip"]
    codes[is_target(history, "long-view")] = _CODES["long-view"]
    for event_type, name in _OF_TYPE.items():
        codes[records["event_type"] == event_type] = _CODES[name]
    _, video = np.unique(items, return_inverse=True)
    strongest = np.zeros(len(items), np.int8)
    np.maximum.at(strongest, video, codes)
    return strongest[video]


def feedback_weights(weights: Mapping[Feedback, float]) -> npt.NDArray[np.float32]:
    """(len(FEEDBACK),) weight of each, 1 where none is named."""
    return np.array([weights.get(name, 1.0) for name in FEEDBACK], np.float32)


def feedback_conditions(kinds: Sequence[Feedback]) -> npt.NDArray[np.int8]:
    """(len(FEEDBACK),) the condition that each is learnt under: 1 for the first of these kinds, `NO_CONDITION` for what
    is none of them.
    """
    return np.array([kinds.index(name) + 1 if name in kinds else NO_CONDITION for name in FEEDBACK], np.int8)


def outcomes(history: History, items: npt.NDArray[np.int64], heads: Sequence[str]) -> npt.NDArray[np.bool_]:
    """(n, heads) whether each outcome follows an event: the video is watched to its end in this very event, or
    liked or shared in it or after it. items: (n,), a number for each event's video.
    """
    records = history.records
    labels = np.zeros((len(items), len(heads)), np.bool_)
    if not heads:
        return labels
    _, video = np.unique(items, return_inverse=True)
    for column, head in enumerate(heads):
        if head == "watch_through":
            labels[:, column] = (records["event_type"] == WATCH) & (records["watch_ratio"] >= WATCHED_THROUGH)
            continue
        places = np.flatnonzero(records["event_type"] == {"like": LIKE, "share": SHARE}[head])
        last = np.full(len(items), -1)
        np.maximum.at(last, video[places], places)
        labels[:, column] = last[video] >= np.arange(len(items))
    return labels
