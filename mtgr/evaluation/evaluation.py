"""The cases of one split judged for several recommenders: figures with intervals, by slices of the users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from mtgr.evaluation import metrics
from mtgr.evaluation.intervals import Interval, bootstrap, paired_difference
from mtgr.evaluation.metrics import case_metrics
from mtgr.evaluation.popularity import ItemSpace, users_of_videos
from mtgr.evaluation.protocol import Split
from mtgr.evaluation.rankings import Rankings

ALL: Final = "all"
COLD_ITEMS: Final = "cold items"
COLD_USERS: Final = "cold users"


class SliceResult(Struct, frozen=True):
    """What a recommender reaches for some of the users."""

    users: int
    metrics: dict[str, Interval]
    """HR@k, NDCG@k, MRR@k and, of a full ranking, MRR; empty where there are no users."""


class ListsResult(Struct, frozen=True):
    """What the lists of a recommender are like as a whole, at their full length but for the coverage."""

    coverage: dict[int, float]
    """k -> the share of the catalog that stands in at least one of the lists of k."""
    popularity: float
    """Mean number of users who know a recommended video (ARP)."""
    target_popularity: float
    """The same of the videos that the users then went on to."""
    log_popularity: float
    target_log_popularity: float
    gini: float
    """Of how often each video of the catalog is recommended: 0 where all are, near 1 where one is."""
    novelty: float
    """Mean self-information of a recommended video, in bits."""


class SystemResult(Struct, frozen=True):
    """One recommender on all cases."""

    name: str
    slices: dict[str, SliceResult]
    lists: ListsResult
    ranks: list[int | None]
    """Of each case's target, in the order of the cases; None where it is not ranked, or below the lists."""
    complete: bool
    """Whether ranks reach below the lists."""
    seconds: float | None = None


class CaseTable(Struct, frozen=True):
    """The cases, column by column, so that other systems can be compared on the same users."""

    user_ids: list[str]
    video_ids: list[str]
    timestamps_ms: list[int]
    target_popularity: list[int]
    """Users who knew the target before the test."""
    history_events: list[int]


class Evaluation:
    """Judges recommenders on the test cases of one split, all by the same users, counts and seed.

    Popularity is the number of users with an event on a video in the part before the test.
    """

    def __init__(
        self,
        split: Split,
        catalog: Sequence[str],
        ks: Sequence[int],
        *,
        cold_items: int = 5,
        cold_users: int = 10,
        seed: int = 0,
    ) -> None:
        """catalog: the videos that can be recommended, as a scorer's columns have them.

        A case is in the slice `COLD_ITEMS` if fewer than `cold_items` users knew its target, and in
        `COLD_USERS` if its history has fewer than `cold_users` events.
        """
        self.cases: Final = split.test
        self.ks: Final = tuple(sorted(set(ks)))
        self._seed: Final = seed
        self._users: Final = len(split.known)
        known_to = users_of_videos(split.known)
        targets = [case.video_id for case in self.cases]
        self.items: Final = ItemSpace(catalog, [*sorted(known_to), *targets])
        self.popularity: Final = self.items.counts(known_to)
        self._targets: Final = np.array([self.items.index_of[video] for video in targets], np.int64)
        lengths = np.array([len(case.history) for case in self.cases], np.int64)
        self._slices: Final[dict[str, npt.NDArray[np.bool_]]] = {
            ALL: np.ones(len(self.cases), np.bool_),
            COLD_ITEMS: self.popularity[self._targets] < cold_items,
            COLD_USERS: lengths < cold_users,
        }
        missing = np.flatnonzero(self._targets >= self.items.catalog_size).tolist()
        self.missing_targets: Final = len(missing)
        """Cases whose target is not in the catalog: a miss for whoever ranks the catalog alone."""
        self.missing_videos: Final = list(dict.fromkeys(targets[place] for place in missing))
        """What these targets are, each once."""

    @property
    def table(self) -> CaseTable:
        """The cases as columns."""
        return CaseTable(
            user_ids=[case.user_id for case in self.cases],
            video_ids=[case.video_id for case in self.cases],
            timestamps_ms=[case.timestamp_ms for case in self.cases],
            target_popularity=self.popularity[self._targets].tolist(),
            history_events=[len(case.history) for case in self.cases],
        )

    def judge(self, name: str, rankings: Rankings, seconds: float | None = None) -> SystemResult:
        """The figures of one recommender; its lists must be as long as the greatest k."""
        values = case_metrics(rankings.ranks, self.ks, complete=rankings.complete)
        slices = {
            slice_name: SliceResult(
                int(np.count_nonzero(held)),
                bootstrap({metric: column[held] for metric, column in values.items()}, seed=self._seed),
            )
            for slice_name, held in self._slices.items()
        }
        return SystemResult(
            name=name,
            slices=slices,
            lists=self._lists(rankings),
            ranks=[int(rank) if np.isfinite(rank) else None for rank in rankings.ranks.tolist()],
            complete=rankings.complete,
            seconds=seconds,
        )

    def difference(self, ours: SystemResult, theirs: SystemResult) -> dict[str, Interval]:
        """How much better the first is than the second on the same users, for each metric of both."""
        return paired_difference(self._values(ours), self._values(theirs), seed=self._seed)

    def _values(self, result: SystemResult) -> Mapping[str, npt.NDArray[np.float64]]:
        ranks = np.array([np.inf if rank is None else rank for rank in result.ranks], np.float64)
        return case_metrics(ranks, self.ks, complete=result.complete)

    def _lists(self, rankings: Rankings) -> ListsResult:
        lists, size = rankings.lists[:, : self.ks[-1]], self.items.catalog_size
        return ListsResult(
            coverage={k: metrics.coverage(lists[:, :k], size) for k in self.ks},
            popularity=metrics.mean_popularity(lists, self.popularity),
            target_popularity=metrics.mean_popularity(self._targets, self.popularity),
            log_popularity=metrics.mean_log_popularity(lists, self.popularity),
            target_log_popularity=metrics.mean_log_popularity(self._targets, self.popularity),
            gini=metrics.gini(metrics.exposure(lists, size)),
            novelty=metrics.novelty(lists, self.popularity, self._users),
        )
