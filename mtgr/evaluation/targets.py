"""What a list should have held: the events that count as targets, and which of them are new."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mtgr.history import WATCH, History

Target = Literal["watch", "long-view"]
"""watch: any watch event. long-view: a watch of at least 18 seconds, or to the end of a shorter video."""

LONG_VIEW_SECONDS: Final = 18.0


def is_target(history: History, target: Target) -> npt.NDArray[np.bool_]:
    """Whether each event is a target: (n,) bool.

    A long view is what KuaiRand defines as one (Gao et al., CIKM 2022); where the video's length is unknown,
    18 seconds are asked for.
    """
    records = history.records
    watched: npt.NDArray[np.bool_] = records["event_type"] == WATCH
    if target == "watch":
        return watched
    length = records["video_seconds"]
    asked = np.where(length > 0, np.minimum(length, LONG_VIEW_SECONDS), LONG_VIEW_SECONDS)
    long: npt.NDArray[np.bool_] = watched & (records["watch_seconds"] >= asked)
    return long


def is_first(history: History) -> npt.NDArray[np.bool_]:
    """Whether each event is the user's first with its video: (n,) bool."""
    ids = history.video_ids
    places = range(len(ids) - 1, -1, -1)
    first_of = dict(zip(reversed(ids), places, strict=True))
    first: npt.NDArray[np.bool_] = np.zeros(len(ids), np.bool_)
    first[list(first_of.values())] = True
    return first


def target_places(history: History, target: Target, *, only_new: bool) -> npt.NDArray[np.int64]:
    """The places of the events to predict, in order: (targets,) int64.

    With `only_new`, only those whose video is in no earlier event: lists leave seen videos out, so that no
    list could have held the others.
    """
    wanted = is_target(history, target)
    if only_new:
        wanted &= is_first(history)
    return np.flatnonzero(wanted)
