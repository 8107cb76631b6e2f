"""Evaluation cases as the product serves them: the sequences that a daemon holds, and lists made from these."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from mtgr.attributes import pack_attributes
from mtgr.catalog import Catalog
from mtgr.config import ModelConfig, dropped_events
from mtgr.errors import InputError
from mtgr.evaluation.metrics import NO_ITEM
from mtgr.evaluation.profiles import ProfileTimeline
from mtgr.evaluation.protocol import Case
from mtgr.evaluation.rankings import OnProgress, Rankings, rank_lists
from mtgr.history import History
from mtgr.model.jagged import length_batches
from mtgr.requests import ListOutcome, ListRefusal, ListRequest

SCORE_TOLERANCE: Final = 1e-4
"""Log-probabilities nearer than this count as equal: sums in another order differ in the last digits."""

_REQUESTS: Final = 1024  # in one call of a generator


def held_history(history: History, config: ModelConfig) -> History:
    """What a daemon holds after these events: all of them up to the capacity, then cut back by whole blocks."""
    begin = dropped_events(len(history), config.max_events)
    if not begin:
        return history
    return History(history.records[begin:], history.video_ids[begin:])


class ScoresHistories(Protocol):
    """What `ReferenceScorer` asks of a model: `mtgr.reference.ReferenceRecommender` is one."""

    def scores(
        self, histories: Sequence[History], profiles: Sequence[Mapping[str, Any]] | None = None
    ) -> npt.NDArray[np.float32]:
        """(histories, videos of the catalog) logits, of histories up to the model's capacity."""


class ReferenceScorer:
    """Scores of the reference model, as its lists would show them: log-probabilities over what may be listed."""

    def __init__(
        self,
        model: ScoresHistories,
        config: ModelConfig,
        catalog: Catalog,
        *,
        exclude_seen: bool = True,
        profiles: ProfileTimeline | None = None,
    ) -> None:
        """With `exclude_seen` the videos of the sequence that a daemon would hold have no share."""
        self._model: Final = model
        self._config: Final = config
        self._catalog: Final = catalog
        self._exclude_seen: Final = exclude_seen
        self._profiles: Final = ProfileTimeline() if profiles is None else profiles

    def scores(self, cases: Sequence[Case]) -> npt.NDArray[np.float32]:
        """(cases, videos of the catalog), -inf for seen videos where they are excluded."""
        size = len(self._catalog)
        held = [held_history(case.history, self._config) for case in cases]
        scores = np.empty((len(cases), size), np.float32)
        for places in length_batches([len(history) + 1 for history in held], self._config):
            histories = [held[place] for place in places]
            profiles = [self._profiles.at(cases[place].user_id, cases[place].asked_ms) for place in places]
            scores[places] = self._model.scores(histories, profiles)
        if self._exclude_seen:
            for row, history in zip(scores, held, strict=True):
                seen = self._catalog.indices(history.video_ids)
                row[seen[seen < size]] = -np.inf
        best = scores.max(axis=1, keepdims=True)
        best[best == -np.inf] = 0.0  # everything is seen
        total = np.exp(scores - best).sum(axis=1, keepdims=True)
        scores -= best + np.log(np.where(total > 0, total, 1.0))
        return scores


def list_requests(
    cases: Sequence[Case],
    config: ModelConfig,
    catalog: Catalog,
    k: int,
    profiles: ProfileTimeline | None = None,
) -> list[ListRequest]:
    """The requests by which a daemon would ask for lists at these cases, one for each.

    A generator leaves out what is in the sequence it is sent. Where a daemon has forgotten events, more than k
    videos are asked for, so that k are left when all videos of the user's past are taken out; a user who has seen
    the whole catalog is asked none for.
    """
    known = ProfileTimeline() if profiles is None else profiles
    requests = []
    for case in cases:
        held = held_history(case.history, config)
        seen = set(held.video_ids)
        forgotten = {video for video in case.history.video_ids if video not in seen and video in catalog}
        left = len(catalog) - sum(1 for video in seen if video in catalog)
        requests.append(
            ListRequest(
                case.user_id,
                held.records.tobytes(),
                "".join(held.video_ids).encode(),
                min(k + len(forgotten), left),
                profile=pack_attributes(known.at(case.user_id, case.asked_ms)),
            )
        )
    return requests


async def rank_generated(
    cases: Sequence[Case],
    requests: Sequence[ListRequest],
    recommend: Callable[[Sequence[ListRequest]], Awaitable[list[ListOutcome]]],
    index_of: Mapping[str, int],
    k: int,
    on_progress: OnProgress | None = None,
) -> Rankings:
    """Rankings from the lists that a generator makes for `list_requests`; ranks are known down to k.

    Raises InputError if it refuses a case, naming the user and the reason.
    """
    lists: list[list[str]] = [[] for _ in cases]
    scores: list[list[float]] = [[] for _ in cases]
    asked = [place for place, request in enumerate(requests) if request.count]
    for begin in range(0, len(asked), _REQUESTS):
        places = asked[begin : begin + _REQUESTS]
        outcomes = await recommend([requests[place] for place in places])
        for place, outcome in zip(places, outcomes, strict=True):
            case = cases[place]
            if isinstance(outcome, ListRefusal):
                raise InputError(f"no list for user {case.user_id!r}: {outcome.message}")
            past = set(case.history.video_ids)
            for video, score in zip(outcome.video_ids, outcome.scores, strict=True):
                if video not in past and len(lists[place]) < k:
                    lists[place].append(video)
                    scores[place].append(score)
        if on_progress is not None:
            on_progress(begin + len(places))
    return rank_lists(cases, lists, scores, index_of, k)


class ListComparison(Struct, frozen=True):
    """Whether two generators made the same lists."""

    lists: int
    different: int
    """Lists of other videos or another order, where this is more than a change of places between equal scores."""
    largest_score_difference: float
    """Between the scores at the same place of two lists."""


def compare_lists(ours: Rankings, theirs: Rankings, tolerance: float = SCORE_TOLERANCE) -> ListComparison:
    """Compare the lists of the same cases; both need scores (ValueError).

    Scores nearer than the tolerance are equal: videos may change places between them, and one at the end of a
    list may give way to one that is as good.
    """
    if ours.scores is None or theirs.scores is None:
        raise ValueError("lists without scores cannot be compared")
    different, largest = 0, 0.0
    for our_list, our_scores, their_list, their_scores in zip(
        ours.lists, ours.scores, theirs.lists, theirs.scores, strict=True
    ):
        length = int(np.count_nonzero(our_list != NO_ITEM))
        if length != np.count_nonzero(their_list != NO_ITEM):
            different += 1
            continue
        if not length:
            continue
        gaps = np.abs(our_scores[:length] - their_scores[:length])
        largest = max(largest, float(gaps.max()))
        score_of = dict(zip(their_list[:length].tolist(), their_scores[:length].tolist(), strict=True))
        last = float(their_scores[length - 1])
        same = bool((gaps < tolerance).all()) and all(
            abs(score_of.get(item, last) - score) < tolerance
            for item, score in zip(our_list[:length].tolist(), our_scores[:length].tolist(), strict=True)
        )
        different += not same
    return ListComparison(len(ours.lists), different, largest)
