"""Full rankings of the catalog for evaluation cases: where the target stands, and the best of the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from mtgr.errors import InputError
from mtgr.evaluation.metrics import NO_ITEM, Lists, Ranks
from mtgr.evaluation.protocol import Case

_BATCH_SCORES: Final = 1 << 24  # 64 MiB of float32

OnProgress = Callable[[int], None]
"""Told the number of cases done so far."""


class Scorer(Protocol):
    """Anything that scores the whole catalog for a case."""

    def scores(self, cases: Sequence[Case]) -> npt.NDArray[np.float32]:
        """(cases, n_items), higher is better, -inf for what is not to be recommended; the caller may change it."""


@dataclass(frozen=True, slots=True)
class Rankings:
    """What one recommender makes of the cases, in their order.

    ranks: (cases,) float64, the target's place from 1, infinite where it is not ranked. lists: (cases, k) item
    numbers, best first, NO_ITEM where a list is shorter. scores: (cases, k) float32, NaN where there is no
    item, or None where the recommender tells none. complete: whether ranks reach beyond the lists.
    """

    ranks: Ranks
    lists: Lists
    scores: npt.NDArray[np.float32] | None
    complete: bool


def rank_all(
    cases: Sequence[Case],
    scorer: Scorer,
    index_of: Mapping[str, int],
    n_items: int,
    k: int,
    *,
    exclude_seen: bool = True,
    on_progress: OnProgress | None = None,
) -> Rankings:
    """Rank the whole catalog for each case, never a sample of it.

    index_of gives a video's column in the scores; one that has none there, or a number from n_items on, is not
    ranked. With `exclude_seen` the videos of a case's history stand in no ranking. Of equal scores the lower
    number comes first, in ranks and lists alike. Raises InputError for a score that is NaN or +inf: it would
    pass for the best of ranks.
    """
    ranks = np.full(len(cases), np.inf)
    lists = np.full((len(cases), k), NO_ITEM, np.int64)
    list_scores = np.full((len(cases), k), np.nan, np.float32)
    # like-long histories together: a model pads the shorter ones
    order = sorted(range(len(cases)), key=lambda place: len(cases[place].history))
    step = max(1, _BATCH_SCORES // n_items)
    for begin in range(0, len(order), step):
        places = order[begin : begin + step]
        batch = [cases[place] for place in places]
        scores = scorer.scores(batch)
        _check(scores, batch, n_items)
        if exclude_seen:
            for row, case in zip(scores, batch, strict=True):
                row[_columns(case.history.video_ids, index_of, n_items)] = -np.inf
        ranks[places] = target_ranks(
            scores, np.array([index_of.get(case.video_id, NO_ITEM) for case in batch], np.int64)
        )
        for place, row in zip(places, scores, strict=True):
            best = top(row, k)
            lists[place, : len(best)] = best
            list_scores[place, : len(best)] = row[best]
        if on_progress is not None:
            on_progress(begin + len(places))
    return Rankings(ranks, lists, list_scores, complete=True)


def target_ranks(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Ranks:
    """The place of each target in its row, of equals the lower number first.

    scores: (n, n_items); targets: (n,) columns. Infinite for a target outside the columns or scored -inf.
    """
    ranks = np.full(len(targets), np.inf)
    rows = np.flatnonzero((targets >= 0) & (targets < scores.shape[1]))
    rows = rows[scores[rows, targets[rows]] > -np.inf]
    if len(rows):
        held = scores[rows]
        columns = targets[rows, None]
        target = np.take_along_axis(held, columns, axis=1)
        better = (held > target).sum(axis=1)
        equal_before = ((held == target) & (np.arange(scores.shape[1]) < columns)).sum(axis=1)
        ranks[rows] = 1 + better + equal_before
    return ranks


def top(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """The columns of the best k of one row (n_items,), best first, of equals the lower number first; fewer than k
    where the others are -inf.
    """
    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero((scores >= least) & (scores > -np.inf))
    best: npt.NDArray[np.int64] = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return best


def rank_lists(
    cases: Sequence[Case],
    lists: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]] | None,
    index_of: Mapping[str, int],
    k: int,
) -> Rankings:
    """Rankings from lists of video ids, best first, one for each case; beyond the lists, ranks are not known.

    Raises ValueError for a list with a video twice, which would count it twice.
    """
    ranks = np.full(len(cases), np.inf)
    numbers = np.full((len(cases), k), NO_ITEM, np.int64)
    held = None if scores is None else np.full((len(cases), k), np.nan, np.float32)
    for place, (case, videos) in enumerate(zip(cases, lists, strict=True)):
        videos = videos[:k]
        if len(set(videos)) != len(videos):
            raise ValueError(f"the list of user {case.user_id!r} holds a video twice")
        numbers[place, : len(videos)] = [index_of[video] for video in videos]
        if case.video_id in videos:
            ranks[place] = videos.index(case.video_id) + 1
        if held is not None and scores is not None:
            held[place, : len(videos)] = scores[place][: len(videos)]
    return Rankings(ranks, numbers, held, complete=False)


def _columns(videos: Sequence[str], index_of: Mapping[str, int], n_items: int) -> list[int]:
    return [index for video in videos if (index := index_of.get(video, n_items)) < n_items]


def _check(scores: npt.NDArray[np.float32], batch: Sequence[Case], n_items: int) -> None:
    if scores.shape != (len(batch), n_items):
        raise ValueError(f"scores are {scores.shape}, where ({len(batch)}, {n_items}) is wanted")
    wrong = np.isnan(scores) | (scores == np.inf)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise InputError(
            f"the score of video number {column} for user {batch[row].user_id!r} is {scores[row, column]}, "
            "where a finite number is wanted: the model is broken"
        )
