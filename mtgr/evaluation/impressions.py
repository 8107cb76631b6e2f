"""What users were shown after a moment, and what came of it: the test of the ranking heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from mtgr.evaluation.gauc import user_auc
from mtgr.evaluation.intervals import Interval, bootstrap
from mtgr.history import WATCH, History
from mtgr.training.feedback import outcomes
from mtgr.training.log import EventLog


@dataclass(frozen=True, slots=True)
class Impressions:
    """The videos that one user met after a moment, to be judged by what was known at it.

    history: the events before the moment; video_ids: (n,) what was watched from then on, however briefly; labels:
    (n, heads) bool, what came of each.
    """

    user_id: str
    history: History
    asked_ms: int
    video_ids: list[str]
    labels: npt.NDArray[np.bool_]


class HeadResult(Struct, frozen=True):
    """How well one ranking head orders what users were shown."""

    gauc: Interval | None
    """AUC within each user, weighted by impressions; None where no user has both labels."""
    users: int
    """Users with both labels, of whom alone there is an AUC."""
    impressions: int
    positives: float
    """The share of those users' impressions that the head should find; 0 without such users."""


def impressions_after(
    log: EventLog, known: Mapping[str, History], cut_ms: int, heads: Sequence[str]
) -> list[Impressions]:
    """Every watch at or after the cut of a user of whom something is known, with the outcomes the heads name.

    known: user -> the events before the cut.
    """
    found = []
    for user, history in known.items():
        whole = log.histories[user]
        later = np.flatnonzero(whole.records["timestamp_ms"] >= cut_ms)
        part = History(whole.records[later], [whole.video_ids[place] for place in later.tolist()])
        watches = np.flatnonzero(part.records["event_type"] == WATCH)
        if not len(watches):
            continue
        _, videos = np.unique(np.array(part.video_ids, np.object_), return_inverse=True)
        labels = outcomes(part, videos, heads)[watches]
        shown = [part.video_ids[place] for place in watches.tolist()]
        found.append(Impressions(user, history, cut_ms, shown, labels))
    return found


def judge_heads(
    impressions: Sequence[Impressions],
    scores: Sequence[npt.NDArray[np.float32]],
    heads: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, HeadResult]:
    """GAUC of each head.

    scores: for each user (n, heads), higher for what is likelier. Raises ValueError for a score that is NaN.
    """
    results = dict.fromkeys(heads, HeadResult(gauc=None, users=0, impressions=0, positives=0.0))
    if not impressions:
        return results
    counts = [len(one.video_ids) for one in impressions]
    users = np.repeat(np.arange(len(impressions)), counts)
    labels = np.concatenate([one.labels for one in impressions])
    scored = np.concatenate(list(scores))
    for column, head in enumerate(heads):
        found = user_auc(users, scored[:, column], labels[:, column])
        if not len(found.auc):
            continue
        judged = np.isin(users, found.users)
        results[head] = HeadResult(
            gauc=bootstrap({head: found.auc}, weights=found.impressions, seed=seed)[head],
            users=len(found.auc),
            impressions=int(found.impressions.sum()),
            positives=float(labels[judged, column].mean()),
        )
    return results
